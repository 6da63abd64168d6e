"""Masks of objects in images and videos: a head over SAM 2, and what belongs to the task.

This file only says what there is; importing it imports neither torch nor pillow.
"""

from __future__ import annotations

import tpokit
from tpokit_mask.losses.weights import RELEASED_WEIGHTS, TERMS


@tpokit.hookimpl
def tpokit_heads() -> list[tpokit.HeadSpec]:
    """The mask head, with the weights of SAM 2 (default) and of the released code."""
    return [
        tpokit.HeadSpec(
            name="mask",
            task="mask",
            factory="tpokit_mask.head:MaskHead",
            options="tpokit_mask.options:MaskOptions",
            summary="masks in images and through videos, by SAM 2 from the slot as its prompt",
            terms=TERMS,
            losses={
                "sam2": RELEASED_WEIGHTS["sam2"],
                "videochat_tpo": RELEASED_WEIGHTS["videochat_tpo"],
            },
        )
    ]


@tpokit.hookimpl
def tpokit_metrics() -> list[tpokit.MetricSpec]:
    """Overlap in images, J&F in videos, overlap of boxes in tracks."""
    return [
        tpokit.MetricSpec(
            name="mask",
            task="mask",
            factory="tpokit_mask.metric:MaskMetric",
            summary="gIoU and cIoU in images, J&F in videos, AUC, AO and SR of tracks",
        )
    ]


@tpokit.hookimpl
def tpokit_drawings() -> list[tpokit.DrawingSpec]:
    """Masks over the picture, or over each frame of the video."""
    return [
        tpokit.DrawingSpec(
            name="mask",
            task="mask",
            factory="tpokit_mask.drawing:MaskDrawing",
            summary="each mask in a colour of its own, also as an mp4",
        )
    ]


@tpokit.hookimpl
def tpokit_sources() -> list[tpokit.SourceSpec]:
    """Published sets of masks and tracks."""
    tracks = "tpokit_mask.sources.box_tracks"
    options = "tpokit_mask.sources.options"
    return [
        tpokit.SourceSpec(
            name="mevis",
            factory="tpokit_mask.sources.mevis:MevisSource",
            options=f"{options}:MevisOptions",
            summary="MeViS as published: expressions and masks of videos",
        ),
        tpokit.SourceSpec(
            name="ref_youtube_vos",
            factory="tpokit_mask.sources.ref_youtube_vos:RefYoutubeVosSource",
            options=f"{options}:RefYoutubeVosOptions",
            summary="Ref-YouTube-VOS and Ref-DAVIS as published: expressions and masks of videos",
        ),
        tpokit.SourceSpec(
            name="sa_v",
            factory="tpokit_mask.sources.sa_v:SavSource",
            options=f"{options}:SavOptions",
            summary="SA-V as published: masks of videos, by a given box",
        ),
        tpokit.SourceSpec(
            name="davis",
            factory="tpokit_mask.sources.davis:DavisSource",
            options=f"{options}:DavisOptions",
            summary="folders of frames and index PNGs as of DAVIS, by expression or given box",
        ),
        tpokit.SourceSpec(
            name="lasot",
            factory=f"{tracks}:LasotSource",
            options=f"{options}:LasotOptions",
            summary="LaSOT as published: tracks of boxes, by given box or sentence",
        ),
        tpokit.SourceSpec(
            name="got10k",
            factory=f"{tracks}:Got10kSource",
            options=f"{options}:Got10kOptions",
            summary="GOT-10k as published: tracks of boxes, by given box",
        ),
    ]


@tpokit.hookimpl
def tpokit_weights() -> list[tpokit.WeightsSpec]:
    """Rules for its published weights."""
    return [
        tpokit.WeightsSpec(
            name="mask_of_videochat_tpo",
            format="videochat_tpo",
            of="head",
            plugin="mask",
            factory="tpokit_mask.released_weights:MaskReleasedWeights",
            summary="the mask head of VideoChat-TPO, with its SAM 2",
        )
    ]
