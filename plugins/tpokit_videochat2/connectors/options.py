"""What a recipe may set on the connectors; imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tpokit.options import Options

PositiveInt = Annotated[int, Field(ge=1)]


class _ConnectorOptions(Options):
    """Common to all connectors.

    Attributes:
        vision_layers: Layers of the vision tower that it sees, by their place from the end: -1 is
            the last that the backbone uses. Several are joined along the width.
    """

    vision_layers: tuple[Annotated[int, Field(le=-1)], ...] = Field(default=(-1,), min_length=1)

    @field_validator("vision_layers")
    @classmethod
    def _no_layer_twice(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(layers)) < len(layers):
            raise ValueError("a layer stands twice")
        return layers


class MlpOptions(_ConnectorOptions):
    """Options of the connector ``mlp``.

    Attributes:
        layers: 2: linear, GELU, linear; 1: linear alone.
        hidden: Width between the two layers; default the width of the LLM.
        norm: Whether a LayerNorm stands in front.
        leading: Whether tokens of a frame before its patches, such as a class token, become tokens
            of the LLM, too.
    """

    layers: Literal[1, 2] = 2
    hidden: int | None = Field(default=None, ge=1)
    norm: bool = False
    leading: bool = False

    @model_validator(mode="after")
    def _hidden_lies_between(self) -> MlpOptions:
        if self.layers == 1 and self.hidden is not None:
            raise ValueError("hidden is the width between two layers, and layers is 1")
        return self


class PoolAdapterOptions(_ConnectorOptions):
    """Options of the connector ``pool_adapter``.

    Attributes:
        grid: Rows and columns of tokens that a frame gives; one number stands for both.
        frames: A second stage over time: frames that a video gives, each the average of equally
            many that follow one another; default: as many as it has. An image stays one frame.
        mode: ``exact``: equal windows, and an error where numbers do not divide. ``adaptive``:
            windows that differ by a patch or frame and may overlap, and a video with fewer frames
            than ``frames`` keeps what it has.
        norm: Whether a LayerNorm stands in front, as in the published model.
        hidden: Width between the two layers of the MLP; default the width of the LLM, as published.
    """

    grid: tuple[PositiveInt, PositiveInt]
    frames: int | None = Field(default=None, ge=1)
    mode: Literal["exact", "adaptive"] = "exact"
    norm: bool = True
    hidden: int | None = Field(default=None, ge=1)

    @field_validator("grid", mode="before")
    @classmethod
    def _one_number_for_both(cls, grid: Any) -> Any:
        if isinstance(grid, int) and not isinstance(grid, bool):
            return (grid, grid)
        if not isinstance(grid, list | tuple) or len(grid) != 2:
            raise ValueError("must be a whole number, or [rows, columns]")
        return grid


class QFormerOptions(_ConnectorOptions):
    """Options of the connector ``qformer``; the defaults are the sizes of the release.

    Attributes:
        queries: Query vectors that come first.
        extra_queries: Query vectors that VideoChat2 has added behind them.
        layers: Of the transformer.
        width: Of the transformer.
        heads: Of its attention.
        intermediate: Width inside its feed-forward layers.
        cross_attention_every: Queries look at the frames in the first layer and in every n-th one
            from there.
        dropout: Share of hidden values and of attention weights that is dropped in training.
        layer_norm_eps: Of all its norms and of the one in front.
        vocabulary: Words that an instruction may use, 30523 in the release; 0: it reads none, and
            what only an instruction needs is not there.
        positions: Most tokens of an instruction.
        attention: Implementation of attention, by transformers' name.
    """

    queries: int = Field(default=32, ge=1)
    extra_queries: int = Field(default=64, ge=0)
    layers: int = Field(default=12, ge=1)
    width: int = Field(default=768, ge=1)
    heads: int = Field(default=12, ge=1)
    intermediate: int = Field(default=3072, ge=1)
    cross_attention_every: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    layer_norm_eps: float = Field(default=1e-12, gt=0)
    vocabulary: int = Field(default=0, ge=0)
    positions: int = Field(default=512, ge=1)
    attention: Literal["sdpa", "eager"] = "sdpa"

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> QFormerOptions:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self
