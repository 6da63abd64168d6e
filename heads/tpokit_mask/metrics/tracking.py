"""Curves of single-object tracking, and the numbers that are read off them.

Sources: Wu et al., CVPR 2013 (OTB: success, precision); Mueller et al., ECCV 2018 (TrackingNet:
normalised precision). Legend: s sequences, t frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tpokit_mask.metrics.boxes import box_iou, centre_distance_by_size, centre_distance_px
from tpokit_mask.metrics.region import Bools, Floats

OVERLAPS = np.linspace(0, 1, 21)
"""Thresholds of the success curve: 0, 0.05, ... 1."""
DISTANCES_PX = np.arange(51.0)
"""Thresholds of the precision curve: 0, 1, ... 50 pixels."""
DISTANCES_BY_SIZE = np.arange(51) / 100
"""Thresholds of the normalised precision curve: 0, 0.01, ... 0.5 sizes of the true box."""
_AT_50, _AT_75 = 10, 15  # places of overlaps of 0.5 and 0.75
_AT_20_PX = 20
_AT_020 = 20  # place of 0.2 sizes


class FrameErrors(NamedTuple):
    """How far boxes are off, frame by frame.

    Attributes:
        overlap: ``[t]`` IoU, in [0, 1].
        distance_px: ``[t]`` between centres.
        distance_by_size: ``[t]`` between centres, in widths and heights of the true box.
    """

    overlap: Floats
    distance_px: Floats
    distance_by_size: Floats


class TrackCurves(NamedTuple):
    """Curves of sequences, as fractions of their frames.

    Attributes:
        success: ``[s, 21]`` frames with an IoU over each of `OVERLAPS`.
        precision: ``[s, 51]`` frames whose centre is at most each of `DISTANCES_PX` off.
        normalised_precision: ``[s, 51]`` the same for `DISTANCES_BY_SIZE`.
    """

    success: Floats
    precision: Floats
    normalised_precision: Floats


@dataclass(frozen=True)
class TrackingScores:
    """Scores over sequences, as fractions; each sequence counts the same, however long it is.

    Attributes:
        names: Of the s sequences.
        curves: Of each sequence.
        overlaps: ``[s]`` mean IoU of each sequence over the frames where the target is to be seen.
    """

    names: tuple[str, ...]
    curves: TrackCurves
    overlaps: Floats

    @property
    def mean_curves(self) -> TrackCurves:
        """Mean over sequences, ``[21]``, ``[51]``, ``[51]``."""
        return TrackCurves(*(curve.mean(0) for curve in self.curves))

    @property
    def success_auc(self) -> float:
        """Mean of the 21 values of the success curve ("success" or AUC of OTB and LaSOT). A perfect
        track has 20/21, as no IoU is over 1 (but for rounding, which pytracking lets through).
        """
        return float(self.mean_curves.success.mean())

    @property
    def success_at_50(self) -> float:
        """Share of frames with an IoU over 0.5 (success rate, OP50)."""
        return float(self.mean_curves.success[_AT_50])

    @property
    def success_at_75(self) -> float:
        """Share of frames with an IoU over 0.75 (OP75)."""
        return float(self.mean_curves.success[_AT_75])

    @property
    def precision_at_20_px(self) -> float:
        """Share of frames whose centre is at most 20 pixels off ("precision")."""
        return float(self.mean_curves.precision[_AT_20_PX])

    @property
    def normalised_precision_at_020(self) -> float:
        """Share of frames whose centre is at most 0.2 sizes off: "normalised precision" of
        pytracking.
        """
        return float(self.mean_curves.normalised_precision[_AT_020])

    @property
    def normalised_precision_mean(self) -> float:
        """Mean of the normalised precision curve from 0 to 0.5: "normalised precision" of the
        GOT-10k toolkit. Not to be compared with the value at 0.2.
        """
        return float(self.mean_curves.normalised_precision.mean())

    @property
    def mean_overlap(self) -> float:
        """Mean over sequences of the mean IoU."""
        return float(self.overlaps.mean())


def frame_errors(predicted_xywh_px: Floats, true_xywh_px: Floats, clip: bool = True) -> FrameErrors:
    """Errors of boxes ``[t, 4]`` (x, y, width, height in pixels); ``clip``: see `box_iou`."""
    return FrameErrors(
        box_iou(predicted_xywh_px, true_xywh_px, clip),
        centre_distance_px(predicted_xywh_px, true_xywh_px),
        centre_distance_by_size(predicted_xywh_px, true_xywh_px),
    )


def track_curves(errors: FrameErrors, hopeless: Bools | None = None) -> TrackCurves:
    """Curves ``[21]``, ``[51]``, ``[51]`` of one sequence.

    Args:
        errors: Of all frames that count, ``[t]`` with t at least 1.
        hopeless: ``[t]`` frames that count as misses whatever was predicted.
    """
    kept = np.ones(errors.overlap.shape, dtype=bool) if hopeless is None else ~hopeless
    return TrackCurves(
        success_curve(np.where(kept, errors.overlap, -1.0), OVERLAPS),
        _within(np.where(kept, errors.distance_px, np.inf), DISTANCES_PX),
        _within(np.where(kept, errors.distance_by_size, np.inf), DISTANCES_BY_SIZE),
    )


def success_curve(overlap: Floats, thresholds: Floats) -> Floats:
    """Share of frames whose IoU ``[t]`` is over each threshold, not equal to it."""
    return np.asarray((overlap[:, None] > thresholds).mean(0))


def _within(distance: Floats, thresholds: Floats) -> Floats:
    return np.asarray((distance[:, None] <= thresholds).mean(0))
