"""J and F of the objects of a sequence, object by object and frame by frame.

Legend: o true objects, p predicted ones, t frames, H, W height and width in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from tpokit.errors import DataError
from tpokit_mask.metrics.boundary import boundary_accuracy, pairwise_boundary_accuracy
from tpokit_mask.metrics.region import (
    Bools,
    Floats,
    check_pixels,
    pairwise_overlap,
    region_similarity,
)

PROPOSALS = 20
"""Most predicted objects of a sequence in the unsupervised protocol of DAVIS."""
NO_PROPOSAL = -1


@dataclass(frozen=True)
class MaskQuality:
    """How well the masks of one sequence fit.

    Attributes:
        region: ``[o, t]`` J, in [0, 1].
        boundary: ``[o, t]`` F, in [0, 1].
        in_truth: ``[o, t]`` whether the true mask has a pixel.
        in_prediction: ``[o, t]`` whether the predicted mask has a pixel.
        name: Of the sequence, for messages.
    """

    region: Floats
    boundary: Floats
    in_truth: Bools
    in_prediction: Bools
    name: str = "masks"

    def without_ends(self) -> MaskQuality:
        """The same without the first and the last frame.

        Raises:
            DataError: No frame is left.
        """
        frames = self.region.shape[1]
        if frames < 3:
            raise DataError(
                f"{self.name}: of {frames} frames none is left without the first and the last, "
                "which this protocol drops; it needs at least 3"
            )
        inner = slice(1, -1)
        return MaskQuality(
            self.region[:, inner],
            self.boundary[:, inner],
            self.in_truth[:, inner],
            self.in_prediction[:, inner],
            self.name,
        )


class ProposalMatch(NamedTuple):
    """True objects with the predicted ones that answer for them.

    Attributes:
        quality: Of the true objects.
        proposals: ``[o]`` places of the predicted objects; `NO_PROPOSAL` where too few were
            predicted, which counts as empty masks.
    """

    quality: MaskQuality
    proposals: NDArray[np.int64]


def mask_quality(predicted: Bools, true: Bools, name: str = "masks") -> MaskQuality:
    """J and F where it is known which predicted object is which true one.

    Args:
        predicted: ``[p, t, H, W]``; object i is true object i. Objects that are missing at the end
            count as empty masks.
        true: ``[o, t, H, W]``; a referring expression is one object: the union of what it names.
        name: Of the sequence, for messages.

    Raises:
        DataError: More objects are predicted than there are, frames are missing, sizes differ, or
            masks are not bool.
    """
    _check_sequence(predicted, true, None, name)
    if len(predicted) > len(true):
        raise DataError(
            f"{name}: {len(predicted)} predicted objects, but the truth has {len(true)}; there may "
            "not be more"
        )
    predicted = _with_empty(predicted, len(true))
    return MaskQuality(
        region_similarity(predicted, true),
        boundary_accuracy(predicted, true),
        _any_pixel(true),
        _any_pixel(predicted),
        name,
    )


def match_proposals(
    predicted: Bools, true: Bools, void: Bools | None = None, name: str = "masks"
) -> ProposalMatch:
    """J and F of predicted objects in any order, given to the true ones such that the sum of
    (J + F) / 2, each a mean over frames, is highest.

    Source: davisvideochallenge/davis2017-evaluation, davis2017/evaluation.py (unsupervised). It
    lists objects in the order of the predictions, we in that of the true ones.

    Args:
        predicted: ``[p, t, H, W]`` with p at most `PROPOSALS`.
        true: ``[o, t, H, W]``.
        void: ``[t, H, W]`` pixels that count in no mask.
        name: Of the sequence, for messages.

    Raises:
        DataError: No true object, too many predicted ones, no frame, frames missing, sizes differ,
            or masks are not bool.
    """
    _check_sequence(predicted, true, void, name)
    if not len(true):
        raise DataError(f"{name}: the truth has no object to match; leave the sequence out")
    if len(predicted) > PROPOSALS:
        raise DataError(
            f"{name}: {len(predicted)} predicted objects; the unsupervised protocol of DAVIS "
            f"allows {PROPOSALS}"
        )
    if void is None:
        void = np.zeros(true.shape[1:], dtype=bool)
    given = len(predicted)
    predicted = _with_empty(predicted, len(true))
    region: Floats = np.empty((len(predicted), *true.shape[:2]))  # [p, o, t]
    boundary: Floats = np.empty(region.shape)
    for frame in range(true.shape[1]):
        found, wanted = (masks[:, frame] & ~void[frame] for masks in (predicted, true))
        region[..., frame] = pairwise_overlap(found, wanted).iou
        boundary[..., frame] = pairwise_boundary_accuracy(found, wanted)
    taken, objects = linear_sum_assignment(-(region.mean(-1) + boundary.mean(-1)) / 2)
    taken = taken[np.argsort(objects)]
    places = np.arange(len(true))
    quality = MaskQuality(
        region[taken, places],
        boundary[taken, places],
        _any_pixel(true & ~void),
        _any_pixel(predicted[taken] & ~void),
        name,
    )
    return ProposalMatch(quality, np.where(taken < given, taken, NO_PROPOSAL))


def _check_sequence(predicted: Bools, true: Bools, void: Bools | None, name: str) -> None:
    for what, masks in (("predicted", predicted), ("true", true)):
        if masks.ndim != 4:
            raise DataError(
                f"{name}: {what} masks have shape {masks.shape}; they must have four dimensions: "
                "objects, frames, height, width"
            )
    frames, expected = predicted.shape[1], true.shape[1]
    if frames != expected or expected == 0:
        raise DataError(
            f"{name}: masks are predicted on {frames} frames, the truth has {expected}; there must "
            "be masks for each frame of the truth, empty ones where an object is not seen"
        )
    check_pixels(predicted, true, void, where=name)
    if void is not None and void.shape != true.shape[1:]:
        raise DataError(
            f"{name}: void pixels of shape {void.shape}; they must be given for each frame, "
            f"{true.shape[1:]}"
        )


def _with_empty(predicted: Bools, objects: int) -> Bools:
    """Empty masks behind the predicted ones, so that there are at least so many objects."""
    missing = objects - len(predicted)
    if missing <= 0:
        return predicted
    return np.concatenate([predicted, np.zeros((missing, *predicted.shape[1:]), dtype=bool)])


def _any_pixel(masks: Bools) -> Bools:
    return np.asarray(masks.any((-2, -1)))
