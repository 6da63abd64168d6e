"""Region grounding: a head that answers with a box, and what belongs to the task.

This file only says what there is; importing it imports neither torch nor pillow.
"""

from __future__ import annotations

import tpokit


@tpokit.hookimpl
def tpokit_heads() -> list[tpokit.HeadSpec]:
    """The region head, with the weights of the released code (default) and of the paper."""
    return [
        tpokit.HeadSpec(
            name="region",
            task="region",
            factory="tpokit_region.head:RegionHead",
            options="tpokit_region.options:RegionOptions",
            summary="one box for each call, from a 2-layer MLP",
            terms=("l1", "mse", "giou"),
            losses={"release": {"l1": 2.0, "giou": 0.2}, "paper": {"mse": 1.0}},
        )
    ]


@tpokit.hookimpl
def tpokit_sources() -> list[tpokit.SourceSpec]:
    """Referring expressions."""
    return [
        tpokit.SourceSpec(
            name="refcoco",
            factory="tpokit_region.refcoco:RefcocoSource",
            options="tpokit_region.options:RefcocoOptions",
            summary="RefCOCO, RefCOCO+, RefCOCOg as published: refs pickle and COCO instances",
        ),
        tpokit.SourceSpec(
            name="refcoco_json",
            factory="tpokit_region.refcoco_json:RefcocoJsonSource",
            options="tpokit_region.options:RefcocoJsonOptions",
            summary="referring expressions, one JSON object each (InternVL, Shikra)",
        ),
    ]


@tpokit.hookimpl
def tpokit_metrics() -> list[tpokit.MetricSpec]:
    """Acc@0.5 and mean IoU."""
    return [
        tpokit.MetricSpec(
            name="region",
            task="region",
            factory="tpokit_region.metrics:RegionMetric",
            summary="share of boxes with IoU >= 0.5, mean IoU",
        )
    ]


@tpokit.hookimpl
def tpokit_drawings() -> list[tpokit.DrawingSpec]:
    """Numbered outlines."""
    return [
        tpokit.DrawingSpec(
            name="region",
            task="region",
            factory="tpokit_region.drawing:RegionDrawing",
            summary="a numbered outline around each box",
        )
    ]


@tpokit.hookimpl
def tpokit_weights() -> list[tpokit.WeightsSpec]:
    """Rules for its published weights."""
    return [
        tpokit.WeightsSpec(
            name="region_of_videochat_tpo",
            format="videochat_tpo",
            of="head",
            plugin="region",
            factory="tpokit_region.released_weights:RegionReleasedWeights",
            summary="the region head of VideoChat-TPO",
        )
    ]
