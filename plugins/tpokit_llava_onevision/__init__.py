"""The backbone plugin ``llava_onevision``: any LLaVA-OneVision checkpoint, through transformers."""

from __future__ import annotations

from collections.abc import Sequence

import tpokit


@tpokit.hookimpl
def tpokit_backbones() -> Sequence[tpokit.BackboneSpec]:
    """Offer LLaVA-OneVision."""
    return [
        tpokit.BackboneSpec(
            name="llava_onevision",
            factory="tpokit_llava_onevision.backbone:LlavaOnevisionBackbone",
            options="tpokit_llava_onevision.options:LlavaOnevisionOptions",
            summary="LLaVA-OneVision of any size: images, several images, videos",
            requires=("transformers>=5.17,<5.24", "torchvision>=0.26"),
            install="pip install tpokit",
            connectors=True,
        )
    ]


@tpokit.hookimpl
def tpokit_weights() -> Sequence[tpokit.WeightsSpec]:
    """Rules for its published weights."""
    return [
        tpokit.WeightsSpec(
            name="llava_onevision",
            format="llava_onevision",
            of="backbone",
            plugin="llava_onevision",
            factory="tpokit_llava_onevision.weights:LlavaOnevisionWeights",
            summary="LLaVA-OneVision of any size, as the hub has it",
        )
    ]
