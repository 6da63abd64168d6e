"""Tracking benchmarks: which frames count, and how sequences are averaged.

Two public programs score OTB and LaSOT, and disagree; a convention is named in each call:

- ``pytracking`` (visionml/pytracking, pytracking/analysis): a predicted box without width or height
  is replaced by the one before. Frames on which the target is not to be seen, by the flags of LaSOT
  or since a value of the true box is not positive, stay in the denominator and count as misses. For
  OTB, predicted boxes that are missing at the end are zeros. IoU is not clipped, so the given first
  box counts at the threshold 1 of the success curve where rounding makes its IoU greater than 1. We
  differ in one point: there, a frame with such a true box but a visible target counts as a hit in
  normalised precision.
- ``toolkit`` (got-10k/toolkit, got10k/experiments): predicted boxes are taken as they are, flags
  are not read, and LaSOT frames whose true box is NaN are left out.

In both the first predicted box is replaced by the true one, which the tracker was given, and counts
as right. LaSOT's own toolkit was not run. All scores are fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from tpokit.errors import DataError
from tpokit_mask.metrics.boxes import (
    box_iou,
    checked_track,
    checked_truth,
    clip_to_image,
    repeat_empty,
)
from tpokit_mask.metrics.region import Bools, Floats
from tpokit_mask.metrics.tracking import (
    TrackCurves,
    TrackingScores,
    frame_errors,
    success_curve,
    track_curves,
)

Convention = Literal["pytracking", "toolkit"]

GOT10K_OVERLAPS = np.linspace(0, 1, 101)
"""Thresholds of the success curve of GOT-10k: 0, 0.01, ... 1."""
_AT_50, _AT_75 = 50, 75


@dataclass(frozen=True)
class TrackedSequence:
    """One sequence with its track. Boxes are x, y of the upper left corner, width, height.

    Attributes:
        name: For messages.
        predicted_xywh_px: ``[t, 4]`` one for each frame.
        true_xywh_px: ``[t, 4]``.
        visible: ``[t]`` whether the target is to be seen: for LaSOT neither occluded nor out of
            view, for GOT-10k a cover above 0. ``None``: always.
        size_px: Width and height of the frames, for GOT-10k.
    """

    name: str
    predicted_xywh_px: Floats
    true_xywh_px: Floats
    visible: Bools | None = None
    size_px: tuple[float, float] | None = None


@dataclass(frozen=True)
class Got10kScores:
    """Scores of GOT-10k, as fractions, of the frames of all sequences together: long sequences
    count more.

    Attributes:
        success: ``[101]`` share of frames with an IoU over each of `GOT10K_OVERLAPS`.
        average_overlap: AO, mean IoU.
        sequences: Of each sequence alone; empty where this is one.
    """

    success: Floats
    average_overlap: float
    sequences: tuple[Got10kScores, ...] = ()

    @property
    def success_at_50(self) -> float:
        """SR 0.5: share of frames with an IoU over 0.5."""
        return float(self.success[_AT_50])

    @property
    def success_at_75(self) -> float:
        """SR 0.75: share of frames with an IoU over 0.75."""
        return float(self.success[_AT_75])


class _Scored(NamedTuple):
    """Curves of one sequence and its mean IoU where the target is to be seen."""

    curves: TrackCurves
    overlap: float


def otb_scores(
    sequences: Sequence[TrackedSequence], convention: Convention = "pytracking"
) -> TrackingScores:
    """Score OTB, or another set in its way; all frames count, `TrackedSequence.visible` is not
    read.

    Raises:
        DataError: There is no sequence, boxes are missing (``toolkit``: also at the end) or too
            many, or a box is not finite or of negative size.
    """
    if convention == "toolkit":
        return _averaged(sequences, [_score_plainly(sequence, False) for sequence in sequences])
    return _averaged(sequences, [_score_all_frames(sequence, True) for sequence in sequences])


def lasot_scores(
    sequences: Sequence[TrackedSequence], convention: Convention = "pytracking"
) -> TrackingScores:
    """Score LaSOT, or another set in its way.

    Raises:
        DataError: There is no sequence, there is not one box and one flag for each frame, or a box
            is not finite or of negative size (true boxes may be NaN in ``toolkit``).
    """
    if convention == "toolkit":
        return _averaged(sequences, [_score_plainly(sequence, True) for sequence in sequences])
    return _averaged(sequences, [_score_all_frames(sequence, False) for sequence in sequences])


def got10k_scores(sequences: Sequence[TrackedSequence]) -> Got10kScores:
    """Score GOT-10k: without the first frame and those where the target is not visible, boxes
    clipped to the image (see `clip_to_image`), frames of all sequences pooled.

    Raises:
        DataError: There is no sequence, one has no size of its frames or no frame that counts,
            there is not one box and one flag for each frame, or a box is not finite or of negative
            size.
    """
    overlaps = [_got10k_overlap(sequence) for sequence in sequences]
    if not overlaps:
        raise DataError("there is no sequence to score; give at least one")
    return Got10kScores(
        *_pooled(np.concatenate(overlaps)),
        tuple(Got10kScores(*_pooled(overlap)) for overlap in overlaps),
    )


def _pooled(overlap: Floats) -> tuple[Floats, float]:
    return success_curve(overlap, GOT10K_OVERLAPS), float(overlap.mean())


def _got10k_overlap(sequence: TrackedSequence) -> Floats:
    if sequence.size_px is None:
        raise DataError(
            f"{sequence.name}: GOT-10k clips boxes to the image; give width and height of the "
            "frames as size_px"
        )
    predicted = checked_track(sequence.predicted_xywh_px, sequence.name)
    true = checked_truth(sequence.true_xywh_px, sequence.name, may_lack=False)
    _see_one_each(predicted, true, sequence.name)
    counted = _visible(sequence, len(true))
    counted[0] = False
    if not counted.any():
        raise DataError(
            f"{sequence.name}: no frame counts; after the first one the target must be visible on "
            "at least one frame"
        )
    return box_iou(
        clip_to_image(predicted, *sequence.size_px)[counted],
        clip_to_image(true, *sequence.size_px)[counted],
    )


def _score_all_frames(sequence: TrackedSequence, for_otb: bool) -> _Scored:
    """One sequence in the way of pytracking."""
    predicted = repeat_empty(checked_track(sequence.predicted_xywh_px, sequence.name))
    true = checked_truth(sequence.true_xywh_px, sequence.name, may_lack=False)
    if for_otb and len(predicted) < len(true):
        predicted = np.concatenate([predicted, np.zeros((len(true) - len(predicted), 4))])
    _see_one_each(predicted, true, sequence.name)
    predicted[0] = true[0]
    errors = frame_errors(predicted, true, clip=False)
    seen = np.ones(len(true), dtype=bool) if for_otb else _visible(sequence, len(true))
    seen &= (true > 0).all(-1)
    return _Scored(track_curves(errors, ~seen), _mean(errors.overlap[seen], sequence.name))


def _score_plainly(sequence: TrackedSequence, may_lack: bool) -> _Scored:
    """One sequence in the way of the GOT-10k toolkit."""
    predicted = checked_track(sequence.predicted_xywh_px, sequence.name)
    true = checked_truth(sequence.true_xywh_px, sequence.name, may_lack)
    _see_one_each(predicted, true, sequence.name)
    predicted[0] = true[0]
    known = ~np.isnan(true).any(-1)
    errors = frame_errors(predicted[known], true[known])
    overlap = _mean(errors.overlap, sequence.name)
    return _Scored(track_curves(errors), overlap)


def _averaged(sequences: Sequence[TrackedSequence], scored: Sequence[_Scored]) -> TrackingScores:
    if not scored:
        raise DataError("there is no sequence to score; give at least one")
    return TrackingScores(
        tuple(sequence.name for sequence in sequences),
        TrackCurves(*(np.stack(c) for c in zip(*(one.curves for one in scored), strict=True))),
        np.array([one.overlap for one in scored]),
    )


def _mean(overlap: Floats, name: str) -> float:
    if not len(overlap):
        raise DataError(f"{name}: no frame has a true box of a visible target; leave it out")
    return float(overlap.mean())


def _visible(sequence: TrackedSequence, frames: int) -> Bools:
    """Flags ``[frames]`` as a copy."""
    if sequence.visible is None:
        return np.ones(frames, dtype=bool)
    visible = np.array(sequence.visible, dtype=bool)
    if visible.shape != (frames,):
        raise DataError(
            f"{sequence.name}: flags of visibility of shape {visible.shape} for {frames} frames; "
            "there must be one for each"
        )
    return visible


def _see_one_each(predicted: Floats, true: Floats, name: str) -> None:
    if len(predicted) != len(true):
        raise DataError(
            f"{name}: {len(predicted)} predicted boxes for {len(true)} frames; there must be one "
            "for each"
        )
