"""Sizes of a LLaVA-OneVision: a small one for dry runs, with the same tokens and pixels and without
weights, and what a batch runs through.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

import tpokit
from tpokit import pretrained
from tpokit.interfaces import LayerStack
from tpokit_llava_onevision.options import LlavaOnevisionOptions


def without_weights(options: tpokit.Options) -> LlavaOnevisionOptions:
    """Options of the same model that ask for no file of weights and no extra package."""
    assert isinstance(options, LlavaOnevisionOptions)
    changes = {"weights": "random", "start": "library", "attention": "sdpa"}
    return options.model_copy(update=changes)


def small_config(config: LlavaOnevisionConfig, layers: Sequence[int]) -> LlavaOnevisionConfig:
    """A configuration made small, with as many layers of the tower as are looked at.

    Args:
        config: Of the model.
        layers: Of the tower that another connector looks at, counted from the last one used.
    """
    described = config.to_dict()
    own = described["vision_feature_layer"]
    last = own[-1] if isinstance(own, list) else own
    looked_at = [*(own if isinstance(own, list) else [own]), *(last + at + 1 for at in layers)]
    deepest = max(-at if at < 0 else at for at in looked_at)
    vision = described["vision_config"]
    described["vision_config"] = pretrained.small_config(vision, max(2, deepest))
    described["text_config"] = pretrained.small_config(described["text_config"])
    return LlavaOnevisionConfig.from_dict(described)


def layer_stacks(
    model: LlavaOnevisionForConditionalGeneration, tokens: int, pixels: int
) -> list[LayerStack]:
    """SigLIP and the language model; see `tpokit.Backbone.layer_stacks`."""
    vision, inner = model.config.vision_config, model.model
    return [
        LayerStack.of_config(
            vision,
            part="vision",
            layers=len(inner.vision_tower.encoder.layers),
            gated=False,
            tokens=pixels // vision.patch_size**2,
        ),
        LayerStack.of_config(
            model.config.text_config,
            part="llm",
            layers=len(inner.language_model.layers),
            gated=True,
            tokens=tokens,
        ),
    ]
