"""Region similarity J: intersection over union of masks.

Source: Perazzi et al., CVPR 2016 (DAVIS), and davisvideochallenge/davis2017-evaluation,
davis2017/metrics.py. Legend: H, W height and width in pixels; p predicted, m true masks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tpokit.errors import DataError

Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


class Overlap(NamedTuple):
    """How masks overlap.

    Attributes:
        intersection_px: ``[...]`` pixels in both masks.
        union_px: ``[...]`` pixels in at least one of them.
    """

    intersection_px: Counts
    union_px: Counts

    @property
    def iou(self) -> Floats:
        """``[...]`` in [0, 1]; 1 where both masks are empty."""
        iou: Floats = np.ones(np.shape(self.union_px))
        np.divide(
            self.intersection_px, self.union_px, out=iou, where=np.not_equal(self.union_px, 0)
        )
        return iou


def region_similarity(predicted: Bools, true: Bools, void: Bools | None = None) -> Floats:
    """J of pairs of masks.

    Args:
        predicted: ``[..., H, W]``.
        true: Of the same shape.
        void: Broadcasts to that shape: pixels that count in neither mask.

    Returns:
        ``[...]`` in [0, 1]; 1 where both masks are empty.

    Raises:
        DataError: Masks are not bool or not of the same shape.
    """
    return overlap(predicted, true, void).iou


def overlap(predicted: Bools, true: Bools, void: Bools | None = None) -> Overlap:
    """Intersection and union of pairs of masks; arguments and errors as `region_similarity`."""
    check_masks(predicted, true, void)
    both, either = predicted & true, predicted | true
    if void is not None:
        both &= ~void
        either &= ~void
    return Overlap(_area_px(both), _area_px(either))


def pairwise_overlap(predicted: Bools, true: Bools) -> Overlap:
    """Intersection and union ``[p, m]`` of every mask of ``[p, H, W]`` with every mask of
    ``[m, H, W]``.
    """
    shared = shared_pixels(predicted, true)
    sums = _area_px(predicted)[:, None] + _area_px(true)[None]
    return Overlap(shared, sums - shared)


def shared_pixels(first: Bools, second: Bools) -> Counts:
    """Pixels ``[p, m]`` that each mask of ``[p, H, W]`` shares with each of ``[m, H, W]``."""
    both = _packed(first)[:, None] & _packed(second)[None]  # [p, m, words]
    return np.asarray(np.bitwise_count(both).sum(-1, dtype=np.int64))


def check_masks(predicted: Bools, true: Bools, void: Bools | None = None) -> None:
    """See that each predicted mask ``[..., H, W]`` can be compared with its true one.

    Raises:
        DataError: They do not pass `check_pixels`, there is not one for each, or ``void`` does not
            broadcast to them.
    """
    check_pixels(predicted, true, void)
    if predicted.shape != true.shape:
        raise DataError(
            f"predicted masks of shape {predicted.shape} for true ones of shape {true.shape}; "
            "there must be one for each"
        )
    if void is not None and not _broadcasts(void.shape, true.shape):
        raise DataError(
            f"void pixels of shape {void.shape} for masks of shape {true.shape}; give them once "
            "for all or for each mask"
        )


def check_pixels(
    predicted: Bools, true: Bools, void: Bools | None = None, where: str = "masks"
) -> None:
    """See that masks ``[..., H, W]`` are masks, and of one size.

    Raises:
        DataError: They are not bool, have no pixels, or differ in height or width; the message
            begins with ``where``.
    """
    given = {"predicted": predicted, "true": true} | ({} if void is None else {"void": void})
    for what, masks in given.items():
        if masks.dtype != np.bool_:
            raise DataError(
                f"{where}: {what} masks are {masks.dtype}, they must be bool; binarise logits by "
                "> 0 after they were resized to the frames, and split index pictures by object"
            )
        if masks.ndim < 2 or 0 in masks.shape[-2:]:
            raise DataError(f"{where}: {what} masks of shape {masks.shape} have no pixels")
        if masks.shape[-2:] != true.shape[-2:]:
            raise DataError(
                f"{where}: {what} masks are {_size(masks)} pixels (width x height), true ones "
                f"{_size(true)}; resize logits to the frames before they are binarised"
            )


def _broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    pairs = zip(reversed(shape), reversed(wanted), strict=False)
    return len(shape) <= len(wanted) and all(one in (1, other) for one, other in pairs)


def _packed(masks: Bools) -> NDArray[np.uint64]:
    """Masks ``[n, H, W]`` as ``[n, words]`` of 64 pixels, the last one filled up with zeros."""
    octets = np.packbits(masks.reshape(len(masks), -1), axis=-1)
    return np.pad(octets, [(0, 0), (0, -octets.shape[1] % 8)]).view(np.uint64)


def _area_px(masks: Bools) -> Counts:
    return np.asarray(np.count_nonzero(masks, axis=(-2, -1)), dtype=np.int64)


def _size(masks: Bools) -> str:
    return f"{masks.shape[-1]} x {masks.shape[-2]}"
