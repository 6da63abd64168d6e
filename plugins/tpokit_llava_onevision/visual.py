"""From pixels to tokens of the LLM: tower and connector of a LLaVA-OneVision, one call of each.

The connector is the model's own (projector, pooling of video frames, newline vectors), or another
one that a recipe puts in its place. That sees each tile of an image and each video as a clip of its
own, tiles without padding taken off, as the HD stage of VideoChat2 does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from tpokit.errors import UsageError
from tpokit.interfaces import Connector, ConnectorHost


class NewlineVector(nn.Module):
    """The vector at the end of a row of image features, as a module of its own.

    In transformers it is a bare parameter of a module whose ``forward`` is not used here, and
    ZeRO-3 gathers a parameter only around a call of its module.
    """

    def __init__(self, vector: nn.Parameter) -> None:
        """Share the parameter ``[d]`` of the model."""
        super().__init__()
        self.weight = vector

    def forward(self) -> Tensor:
        """The vector ``[d]``; a copy, as ZeRO-3 takes the parameter away again."""
        return self.weight.clone()


class OwnConnector:
    """The model's own connector, set aside while another one stands in its place."""

    def __init__(self, projector: nn.Module, newline: nn.Parameter) -> None:
        """Keep both."""
        self._projector, self._newline = projector, newline

    @classmethod
    def taken_out(cls, inner: Any) -> OwnConnector:
        """Take it out of transformers' model, which cannot run on its own any more."""
        own = cls(inner.multi_modal_projector, inner.image_newline)
        del inner.multi_modal_projector, inner.image_newline
        return own

    @contextmanager
    def put_back(self, inner: Any) -> Iterator[None]:
        """Have it in the model for a while, so that the model is saved whole."""
        inner.multi_modal_projector, inner.image_newline = self._projector, self._newline
        try:
            yield
        finally:
            del inner.multi_modal_projector, inner.image_newline


def host_of(config: LlavaOnevisionConfig, folder: Path) -> ConnectorHost:
    """What another connector stands between; SigLIP has no leading tokens."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    return ConnectorHost(
        vision.hidden_size, config.text_config.hidden_size, (side, side), 0, folder
    )


class VisualPath:
    """Tower and connector of a model; registers nothing, the backbone does.

    Attributes:
        width: Of the features of a frame.
    """

    def __init__(
        self,
        model: LlavaOnevisionForConditionalGeneration,
        newline: NewlineVector | None,
        connector: Connector | None,
        layers: tuple[int, ...] | None,
    ) -> None:
        """Look at a model.

        Args:
            model: Its tower is used, and without ``connector`` its projector.
            newline: Of the model's own connector.
            connector: In place of the model's own.
            layers: That the connector asks for, counted from the last one that the model uses.

        Raises:
            UsageError: The tower has no such layers.
        """
        self._model, self._newline, self._connector = model, newline, connector
        config = model.config
        own = config.vision_feature_layer
        chosen = [own] if isinstance(own, int) else list(own)
        self.width = config.vision_config.hidden_size * len(chosen)
        self._own_layers = chosen
        self._layers = chosen if layers is None else [chosen[-1] + at + 1 for at in layers]
        recorded = config.vision_config.num_hidden_layers + 1
        wrong = [at for at in self._layers if not -recorded <= at < recorded]
        if wrong:
            raise UsageError(
                f"backbone.connector: it asks for layers {list(layers or ())} of the vision tower, "
                f"which has {recorded - 1}"
            )

    def tokens(self, media: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Tokens of all images ``[tokens, d]`` and of all videos ``[tokens, d]`` of a batch."""
        states = self._states(media["pixels"], self._layers)
        tiles = sum(media["image_tiles"])
        if self._connector is not None:
            frames = [1] * tiles + media["video_frames"]
            found = self._connector(states, frames)
            images = sum(media["image_tokens"])
            return found[:images], found[images:]
        return self._own_tokens(media, tiles, states)

    def idle(self) -> Tensor:
        """Zero, by way of every parameter that media would use."""
        states = self._states(self.idle_pixels(), self._layers)
        if self._connector is not None:
            return 0.0 * self._connector(states, [1]).sum()
        features = self._model.model.multi_modal_projector(states)
        nothing: Tensor = 0.0 * (features[0, 0].sum() + self._ends().sum())
        return nothing

    def unread_layers(self) -> range:
        """Layers of the tower behind the last one that is read."""
        count = self._model.config.vision_config.num_hidden_layers
        read = (layer if layer >= 0 else count + 1 + layer for layer in self._layers)
        return range(max(read), count)

    def idle_pixels(self) -> Tensor:
        """One black tile, the smallest input of the tower."""
        side = self._model.config.vision_config.image_size
        return torch.zeros(1, 3, side, side, dtype=self._model.dtype, device=self._model.device)

    def encode_frames(self, pixels: Tensor, grid: int) -> Tensor:
        """Frames ``[t, 3, side, side]`` to ``[t, grid * grid * width]``: states of the layer that
        the model's own connector reads, averaged over the cells of a grid.
        """
        states = self._states(pixels, self._own_layers)
        rows = math.isqrt(states.shape[1])  # SigLIP has no class token: patches form a square
        squares = states.transpose(1, 2).unflatten(2, (rows, rows))  # [t, c, rows, rows]
        cells = nn.functional.adaptive_avg_pool2d(squares, grid)  # [t, c, grid, grid]
        return cells.permute(0, 2, 3, 1).flatten(1)

    def _own_tokens(
        self, media: dict[str, Any], tiles: int, states: Tensor
    ) -> tuple[Tensor, Tensor]:
        inner = self._model.model
        features = inner.multi_modal_projector(states)
        newline = self._ends()
        images = videos = features.new_empty(0, features.shape[-1])
        if tiles:
            packed, _ = inner.pack_image_features(
                torch.split(features[:tiles], media["image_tiles"]),
                media["image_sizes"],
                image_newline=newline,
                vision_aspect_ratio=self._model.config.vision_aspect_ratio,
            )
            images = torch.cat(packed)
        if media["video_frames"]:
            pooled = inner.apply_pooling(features[tiles:])
            pieces = [
                piece
                for clip in torch.split(pooled, media["video_frames"])
                for piece in (clip.flatten(0, 1), newline[None].to(pooled))
            ]
            videos = torch.cat(pieces)
        return images, videos

    def _ends(self) -> Tensor:
        assert self._newline is not None, "the model's own connector has one"
        vector: Tensor = self._newline()
        return vector

    def _states(self, pixels: Tensor, layers: list[int]) -> Tensor:
        """Tiles ``[t, 3, side, side]`` to states of the tower ``[t, patches, c]``."""
        tower = self._model.model.vision_tower
        trained = any(parameter.requires_grad for parameter in tower.parameters())
        # transformers 5.23 keeps the one layer that is named; 5.17 takes any number but 0 as "all"
        recorded: int | bool = layers[0] if len(layers) == 1 and layers[0] else True
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            seen = tower(
                pixels.to(self._model.dtype), output_hidden_states=recorded, return_dict=True
            )
        found = [seen.hidden_states[layer] for layer in layers]
        states: Tensor = found[0] if len(found) == 1 else torch.cat(found, dim=-1)
        if trained:
            # The norm behind the last layer (and a pooling head) is not used; with no gradient at
            # all it would stop DDP, so it takes part with a gradient of zero.
            states = states + 0.0 * seen.last_hidden_state[0, 0].sum()
            if seen.pooler_output is not None:
                states = states + 0.0 * seen.pooler_output[0].sum()
        return states
