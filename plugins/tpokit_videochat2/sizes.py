"""Sizes of a VideoChat2: a small one for dry runs, with the same tokens and pixels and without
weights, and what a batch runs through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tpokit
from tpokit import pretrained
from tpokit.interfaces import LayerStack
from tpokit_videochat2.config import VideoChat2Config, VisionOptions
from tpokit_videochat2.options import VideoChat2Options


def without_weights(options: tpokit.Options) -> VideoChat2Options:
    """Options of the same model that ask for no file of weights and no extra package."""
    assert isinstance(options, VideoChat2Options)
    changes = {"weights": "random", "start": "library", "attention": "sdpa"}
    return options.model_copy(update=changes)


def small_config(config: VideoChat2Config, layers: Sequence[int]) -> VideoChat2Config:
    """A configuration made small.

    Args:
        config: Of the model.
        layers: Of the tower that the connector looks at, by their place from the end.
    """
    vision = config.vision
    heads = min(vision.heads, 4)
    changes = {
        "heads": heads,
        "hidden_size": min(vision.hidden_size, 16 * heads),
        "intermediate_size": min(vision.intermediate_size, 32 * heads),
        "layers": min(vision.layers, max(2, *(-at for at in layers))),
    }
    llm = pretrained.small_config(config.llm)
    return config.model_copy(update={"vision": vision.model_copy(update=changes), "llm": llm})


def layer_stacks(vision: VisionOptions, llm: Any, tokens: int, pixels: int) -> list[LayerStack]:
    """Tower and LLM; see `tpokit.Backbone.layer_stacks`.

    The connector is left out: its queries are few beside the patches that they look at.

    Args:
        vision: Sizes of the tower.
        llm: Configuration of the LLM.
        tokens, pixels: Of a batch.
    """
    return [
        LayerStack(
            part="vision",
            layers=vision.layers,
            width=vision.hidden_size,
            keys=vision.hidden_size,
            inner=vision.intermediate_size,
            gated=False,
            tokens=pixels // vision.patch_size**2,
        ),
        LayerStack.of_config(
            llm, part="llm", layers=llm.num_hidden_layers, gated=True, tokens=tokens
        ),
    ]
