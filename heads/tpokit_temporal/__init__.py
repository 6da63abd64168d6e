"""Moments in a video: heads that answer with start, end and saliency, and what belongs to the task.

This file only says what there is; importing it imports neither torch nor pillow.
"""

from __future__ import annotations

import tpokit
from tpokit_temporal.losses.weights import RELEASED_WEIGHTS, TERMS


@tpokit.hookimpl
def tpokit_heads() -> list[tpokit.HeadSpec]:
    """CG-DETR, with the published weights of its losses, and a plain head to compare with."""
    return [
        tpokit.HeadSpec(
            name="temporal",
            task="temporal",
            factory="tpokit_temporal.head:TemporalHead",
            options="tpokit_temporal.options:TemporalOptions",
            summary="moments and saliency in a video, from CG-DETR with the slot as a query word",
            terms=TERMS,
            losses={
                name: RELEASED_WEIGHTS[name] for name in sorted(RELEASED_WEIGHTS, reverse=True)
            },
        ),
        tpokit.HeadSpec(
            name="temporal_mlp",
            task="temporal",
            factory="tpokit_temporal.mlp_head:TemporalMlpHead",
            options="tpokit_temporal.options:MlpOptions",
            summary="one moment from the slot alone, by a 2-layer MLP",
            terms=("moment_l1", "moment_giou"),
            losses={"plain": {"moment_l1": 10.0, "moment_giou": 1.0}},
        ),
    ]


@tpokit.hookimpl
def tpokit_metrics() -> list[tpokit.MetricSpec]:
    """Moment retrieval and highlights."""
    return [
        tpokit.MetricSpec(
            name="temporal",
            task="temporal",
            factory="tpokit_temporal.metrics:TemporalMetric",
            summary="R1 at IoU 0.3, 0.5 and 0.7, mean IoU, mAP, highlight mAP and HIT@1",
        )
    ]


@tpokit.hookimpl
def tpokit_drawings() -> list[tpokit.DrawingSpec]:
    """A timeline."""
    return [
        tpokit.DrawingSpec(
            name="temporal",
            task="temporal",
            factory="tpokit_temporal.drawing:TemporalDrawing",
            summary="a timeline of frames, saliency and moments",
        )
    ]


@tpokit.hookimpl
def tpokit_sources() -> list[tpokit.SourceSpec]:
    """Published sets of sentences about moments; three of them share one layout and one class."""
    lines = "tpokit_temporal.sources.moment_lines:MomentLinesSource"
    line_options = "tpokit_temporal.sources.options:MomentLinesOptions"
    return [
        tpokit.SourceSpec(
            name="qvhighlights",
            factory=lines,
            options=line_options,
            summary="QVHighlights as published: moments and saliency, one JSON object a line",
        ),
        tpokit.SourceSpec(
            name="tacos",
            factory=lines,
            options=line_options,
            summary="TACoS, one JSON object a line (CG-DETR)",
        ),
        tpokit.SourceSpec(
            name="nlq",
            factory=lines,
            options=line_options,
            summary="Ego4D NLQ and alike, one JSON object a line (CG-DETR)",
        ),
        tpokit.SourceSpec(
            name="charades_sta",
            factory="tpokit_temporal.sources.charades:CharadesSource",
            options="tpokit_temporal.sources.options:MomentOptions",
            summary="Charades-STA: the published text file, or one JSON object a line (CG-DETR)",
        ),
        tpokit.SourceSpec(
            name="activitynet_captions",
            factory="tpokit_temporal.sources.activitynet:ActivitynetSource",
            options="tpokit_temporal.sources.options:MomentOptions",
            summary="ActivityNet Captions as published: a JSON file of videos",
        ),
        tpokit.SourceSpec(
            name="didemo",
            factory="tpokit_temporal.sources.didemo:DidemoSource",
            options="tpokit_temporal.sources.options:DidemoOptions",
            summary="DiDeMo as published: a JSON list, several annotators, chunks of 5 s",
        ),
    ]


@tpokit.hookimpl
def tpokit_weights() -> list[tpokit.WeightsSpec]:
    """Rules for its published weights."""
    return [
        tpokit.WeightsSpec(
            name="temporal_of_videochat_tpo",
            format="videochat_tpo",
            of="head",
            plugin="temporal",
            factory="tpokit_temporal.released_weights:TemporalReleasedWeights",
            summary="the temporal head of VideoChat-TPO",
        )
    ]
