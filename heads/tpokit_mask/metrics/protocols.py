"""How benchmarks average J and F over frames, objects and sequences.

========================  ===========================  ============================================
protocol                  frames                       mean over
========================  ===========================  ============================================
DAVIS, semi-supervised    without first and last       frames of an object, objects of all sequences
DAVIS, unsupervised       all                          the same, after `quality.match_proposals`
referring video           all                          frames of an expression, then expressions
SA-V                      from where an object is      frames of an object, objects of all sequences
                          first seen; without first
                          and last of the sequence
========================  ===========================  ============================================

Sources: davisvideochallenge/davis2017-evaluation; magic-research/Sa2VA (evaluation of MeViS,
Ref-DAVIS and Ref-YouTube-VOS); facebookresearch/sam2, sav_dataset. All values here are fractions.
Papers print percent: `MaskScores.percentages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpokit.errors import DataError
from tpokit_mask.metrics.davis_statistics import ValueStatistics, value_statistics
from tpokit_mask.metrics.quality import MaskQuality
from tpokit_mask.metrics.region import Bools, Floats


@dataclass(frozen=True)
class MaskScores:
    """One number for each measure.

    Attributes:
        region: J, as a fraction.
        boundary: F, as a fraction.
    """

    region: float
    boundary: float

    @property
    def mean(self) -> float:
        """J&F: the mean of both."""
        return (self.region + self.boundary) / 2

    def percentages(self, decimals: int = 2) -> dict[str, float]:
        """``J&F``, ``J`` and ``F`` in percent, as tables of papers print them."""
        named = {"J&F": self.mean, "J": self.region, "F": self.boundary}
        return {name: round(100 * value, decimals) for name, value in named.items()}


@dataclass(frozen=True)
class ObjectScores:
    """Measures of single objects (or expressions), of all sequences in turn.

    Attributes:
        region: ``[objects]`` J, mean over frames.
        boundary: ``[objects]`` F, mean over frames.
    """

    region: Floats
    boundary: Floats

    @property
    def scores(self) -> MaskScores:
        """Mean over objects: each counts the same, however long its sequence."""
        return MaskScores(float(self.region.mean()), float(self.boundary.mean()))


@dataclass(frozen=True)
class DavisScores:
    """The numbers of the evaluator of DAVIS.

    Attributes:
        region: Statistics of J of the objects of all sequences in turn.
        boundary: The same of F.
    """

    region: ValueStatistics
    boundary: ValueStatistics

    @property
    def scores(self) -> MaskScores:
        """Mean over objects."""
        return ObjectScores(self.region.mean, self.boundary.mean).scores

    @property
    def recall(self) -> MaskScores:
        """Mean over objects of the share of frames with a value over 0.5."""
        return ObjectScores(self.region.recall, self.boundary.recall).scores

    @property
    def decay(self) -> MaskScores:
        """Mean over objects of what is lost from the first to the last quarter, in [-1, 1]."""
        return ObjectScores(self.region.decay, self.boundary.decay).scores


def davis_semi_supervised(sequences: Sequence[MaskQuality]) -> DavisScores:
    """DAVIS 2016 and 2017, first mask given.

    Raises:
        DataError: There is no object, or a sequence has fewer than three frames.
    """
    return _davis([quality.without_ends() for quality in sequences])


def davis_unsupervised(sequences: Sequence[MaskQuality]) -> DavisScores:
    """DAVIS without a given mask, of what `quality.match_proposals` made of each sequence.

    Raises:
        DataError: There is no object.
    """
    return _davis(sequences)


def referring_video(expressions: Sequence[MaskQuality]) -> ObjectScores:
    """MeViS, Ref-DAVIS and Ref-YouTube-VOS; each object of each quality is one expression.

    Raises:
        DataError: There is no expression.
    """
    _see_objects(expressions)
    return ObjectScores(
        np.concatenate([quality.region.mean(-1) for quality in expressions]),
        np.concatenate([quality.boundary.mean(-1) for quality in expressions]),
    )


def segment_anything_video(
    sequences: Sequence[MaskQuality], skip_ends: bool = True
) -> ObjectScores:
    """SA-V. An object counts from the first frame on which it is in the truth or in the
    prediction; after that, frames where both are empty count as right.

    Args:
        sequences: Of annotated frames only.
        skip_ends: Drop the first and the last of them first, as the evaluator does by default.

    Raises:
        DataError: There is no object, an object is on no counted frame of the truth, or a sequence
            has too few frames.
    """
    kept = [quality.without_ends() if skip_ends else quality for quality in sequences]
    _see_objects(kept)
    counted = [_seen(quality) for quality in kept]
    return ObjectScores(
        np.concatenate([_mean(q.region, seen) for q, seen in zip(kept, counted, strict=True)]),
        np.concatenate([_mean(q.boundary, seen) for q, seen in zip(kept, counted, strict=True)]),
    )


def _davis(sequences: Sequence[MaskQuality]) -> DavisScores:
    _see_objects(sequences)
    region = [value_statistics(quality.region) for quality in sequences]
    boundary = [value_statistics(quality.boundary) for quality in sequences]
    return DavisScores(_joined(region), _joined(boundary))


def _joined(parts: Sequence[ValueStatistics]) -> ValueStatistics:
    return ValueStatistics(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _seen(quality: MaskQuality) -> Bools:
    """Frames ``[o, t]`` from the first on which an object is."""
    absent = np.flatnonzero(~quality.in_truth.any(-1))
    if len(absent):
        raise DataError(
            f"{quality.name}: object {absent[0]} (counted from 0) is on none of the "
            f"{quality.in_truth.shape[1]} counted frames of the truth, so SA-V cannot score it; "
            "leave it out or count the first and the last frame"
        )
    return np.logical_or.accumulate(quality.in_truth | quality.in_prediction, axis=-1)


def _mean(values: Floats, counted: Bools) -> Floats:
    return np.asarray(values.mean(-1, where=counted), dtype=np.float64)


def _see_objects(sequences: Sequence[MaskQuality]) -> None:
    if not sum(len(quality.region) for quality in sequences):
        raise DataError("there is no object to score; give at least one sequence with an object")
