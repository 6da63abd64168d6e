"""Sizes of a VideoChat2 as the shapes of published tensors tell them, or a model of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tpokit.errors import CheckpointError
from tpokit.interfaces import Shape, Shapes

SCALE = 2.0
"""alpha / rank of all published adapters; files do not say it."""
ADAPTER = ".lora_A.default.weight"
"""How the name of the first matrix of an adapter ends."""


@dataclass(frozen=True)
class VisionSizes:
    """Of the vision tower: width, blocks, side of a patch in pixels, width inside an MLP."""

    width: int
    layers: int
    patch: int
    inner: int

    @classmethod
    def of_published(cls, shapes: Shapes) -> VisionSizes:
        """From files.

        Raises:
            CheckpointError: They lack the vision tower.
        """
        encoder = "vision_encoder.encoder."
        patches = shape_of(shapes, f"{encoder}patch_embed.proj.weight", 5)
        inner = shape_of(shapes, f"{encoder}blocks.0.mlp.fc1.weight", 2)[0]
        return cls(patches[0], count_layers(shapes, f"{encoder}blocks."), patches[-1], inner)


@dataclass(frozen=True)
class QFormerSizes:
    """Of the connector.

    Attributes:
        queries, extra: Query vectors, and those that were added behind them.
        width, layers, inner: Of the transformer; width inside a feed-forward layer.
        vision: Width of what it looks at.
        every: Layers with cross-attention: the first, and every n-th from there.
        words, positions: Of the text side; 0: there is none.
    """

    queries: int
    extra: int
    width: int
    layers: int
    inner: int
    vision: int
    every: int
    words: int
    positions: int

    @classmethod
    def of_published(cls, shapes: Shapes) -> QFormerSizes:
        """From files.

        Raises:
            CheckpointError: They lack it.
        """
        bert = "qformer.bert."
        layer = f"{bert}encoder.layer."
        layers = count_layers(shapes, layer)
        queries = shape_of(shapes, "query_tokens", 3)
        words, positions = (
            shapes.get(f"{bert}embeddings.{kind}_embeddings.weight", (0,))[0]
            for kind in ("word", "position")
        )
        return cls(
            queries=queries[1],
            extra=shapes.get("extra_query_tokens", (1, 0))[1],
            width=queries[2],
            layers=layers,
            inner=shape_of(shapes, f"{layer}0.intermediate_query.dense.weight", 2)[0],
            vision=shape_of(shapes, f"{layer}0.crossattention.self.key.weight", 2)[1],
            every=_step(shapes, layer, layers),
            words=words,
            positions=positions,
        )

    def crosses(self, layer: int) -> bool:
        """Whether a layer looks at the frames."""
        return layer % self.every == 0


@dataclass(frozen=True)
class LlmSizes:
    """Of the LLM: words, width, layers, width inside an MLP, rows of queries and of keys."""

    words: int
    width: int
    layers: int
    inner: int
    query: int
    key: int


@dataclass(frozen=True)
class LoraSizes:
    """Of the adapters: their rank, and whether the output layer has one, too."""

    rank: int
    output: bool

    @classmethod
    def of_names(cls, shapes: Shapes) -> LoraSizes | None:
        """From the tensors of files or of a model; ``None``: there is no adapter.

        Raises:
            CheckpointError: Adapters of several ranks.
        """
        ranks = {name: shape[0] for name, shape in shapes.items() if name.endswith(ADAPTER)}
        if not ranks:
            return None
        if len(set(ranks.values())) > 1:
            named = {rank: name for name, rank in ranks.items()}
            raise CheckpointError(
                "adapters of several ranks: "
                + ", ".join(f"{rank} ({name})" for rank, name in sorted(named.items()))
                + "; they must have one"
            )
        return cls(next(iter(ranks.values())), any(f"lm_head{ADAPTER}" in name for name in ranks))

    def recipe(self) -> dict[str, Any]:
        """The section ``lora`` of a recipe; dropout as in the training of the release."""
        return {"rank": self.rank, "alpha": SCALE * self.rank, "dropout": 0.1}


@dataclass(frozen=True)
class ModelSizes:
    """Of all parts; ``lora``: ``None`` without adapters."""

    vision: VisionSizes
    connector: QFormerSizes
    llm: LlmSizes
    lora: LoraSizes | None = None


def shape_of(shapes: Shapes, name: str, dimensions: int) -> Shape:
    """Shape of a tensor that sizes are read from.

    Raises:
        CheckpointError: It is not there, or has another number of dimensions.
    """
    if name not in shapes:
        raise CheckpointError(
            f"{name} is missing: the files are of this family but not whole; are all of them here?"
        )
    shape = shapes[name]
    if len(shape) != dimensions:
        raise CheckpointError(
            f"{name} has shape {list(shape)}; it must have {dimensions} dimensions"
        )
    return shape


def count_layers(shapes: Shapes, prefix: str) -> int:
    """How many numbered layers there are behind a prefix.

    Raises:
        CheckpointError: None.
    """
    behind = [name.removeprefix(prefix) for name in shapes if name.startswith(prefix)]
    steps = {rest.partition(".")[0] for rest in behind}
    numbers = [int(step) for step in steps if step.isdecimal()]
    if not numbers:
        raise CheckpointError(f"{prefix}0 is missing: the files are of this family but not whole")
    return max(numbers) + 1


def _step(shapes: Shapes, prefix: str, layers: int) -> int:
    """Every how many layers there is cross-attention; of one layer with it: all layers."""
    for layer in range(1, layers):
        if f"{prefix}{layer}.crossattention.self.key.weight" in shapes:
            return layer
    return layers
