"""Boundary accuracy F: how much of the outlines of two masks lies close together.

Source: Perazzi et al., CVPR 2016 (DAVIS), and davisvideochallenge/davis2017-evaluation,
davis2017/metrics.py; the numbers are the same. We differ in how they are found: the neighbourhood
of an outline is a union of shifted rows of the disc, inside the window that holds both outlines;
less than a tenth of the time of distance transforms.

A mask that fills the picture has no outline, and so fits an empty one with F = 1. The tolerance
grows with the picture: compare masks at the original size.
"""

from __future__ import annotations

import math

import numpy as np

from tpokit_mask.metrics.region import Bools, Counts, Floats, check_masks, shared_pixels

_TOLERANCE = 0.008  # of the diagonal


def boundary_accuracy(predicted: Bools, true: Bools, void: Bools | None = None) -> Floats:
    """F of pairs of masks: harmonic mean of the share of predicted outline close to the true one
    (precision) and the share of true outline close to the predicted one (recall).

    Args:
        predicted: ``[..., H, W]``.
        true: Of the same shape.
        void: Broadcasts to that shape: pixels that are taken out of both masks first.

    Returns:
        ``[...]`` in [0, 1]; 1 where neither mask has an outline, 0 where one has none.

    Raises:
        DataError: Masks are not bool or not of the same shape.
    """
    check_masks(predicted, true, void)
    radius_px = tolerance_px(*true.shape[-2:])
    voids = np.broadcast_to(np.False_ if void is None else void, true.shape)
    counts: Counts = np.zeros((4, *true.shape[:-2]), dtype=np.int64)
    for place in np.ndindex(*true.shape[:-2]):  # one at a time: each has a window of its own
        pair = np.stack([predicted[place], true[place]]) & ~voids[place]
        first, second = _window(boundary_map(pair))
        close_first = first & near(second, radius_px)
        close_second = second & near(first, radius_px)
        pixels = [np.count_nonzero(maps) for maps in (close_first, close_second, first, second)]
        counts[(slice(None), *place)] = pixels
    return _f_measure(*counts)


def pairwise_boundary_accuracy(predicted: Bools, true: Bools) -> Floats:
    """F ``[p, m]`` of every mask of ``[p, H, W]`` with every mask of ``[m, H, W]``; the
    neighbourhood of each outline is found once.
    """
    radius_px = tolerance_px(*true.shape[-2:])
    first, second = boundary_map(predicted), boundary_map(true)
    # One mask at a time stays in the processor's cache.
    near_first, near_second = (
        np.stack([near(outline, radius_px) for outline in maps]) for maps in (first, second)
    )
    return _f_measure(
        shared_pixels(first, near_second),
        shared_pixels(near_first, second),
        np.count_nonzero(first, axis=(-2, -1))[:, None],
        np.count_nonzero(second, axis=(-2, -1))[None],
    )


def tolerance_px(height: int, width: int) -> int:
    """Greatest distance in pixels between outlines that are close: 0.8 % of the diagonal, rounded
    up.
    """
    return math.ceil(_TOLERANCE * math.hypot(height, width))


def boundary_map(masks: Bools) -> Bools:
    """Outlines ``[..., H, W]`` of masks ``[..., H, W]``: pixels that differ from their right,
    lower or lower right neighbour, of those that they have in the picture. In the last row only the
    right neighbour counts, in the last column only the lower one, so the last pixel is never set.
    """
    outline: Bools = np.zeros(masks.shape, dtype=bool)
    outline[..., :, :-1] = masks[..., :, :-1] != masks[..., :, 1:]
    outline[..., :-1, :] |= masks[..., :-1, :] != masks[..., 1:, :]
    outline[..., :-1, :-1] |= masks[..., :-1, :-1] != masks[..., 1:, 1:]
    return outline


def near(outlines: Bools, radius_px: int) -> Bools:
    """Pixels ``[..., H, W]`` at most ``radius_px`` from a pixel of ``outlines``, measured between
    the centres of pixels.
    """
    height, width = outlines.shape[-2:]
    padded = np.pad(outlines, [(0, 0)] * (outlines.ndim - 1) + [(radius_px, radius_px)])
    tall: Bools = np.zeros((*outlines.shape[:-2], height + 2 * radius_px, width), dtype=bool)
    row, reach = outlines.copy(), 0  # outlines, grown sideways by reach
    for down in range(radius_px, -1, -1):  # the disc from its top and bottom rows to the middle
        half = math.isqrt(radius_px**2 - down**2)
        for aside in range(reach + 1, half + 1):
            row |= padded[..., radius_px - aside : radius_px - aside + width]
            row |= padded[..., radius_px + aside : radius_px + aside + width]
        reach = half
        tall[..., radius_px - down : radius_px - down + height, :] |= row
        tall[..., radius_px + down : radius_px + down + height, :] |= row
    return tall[..., radius_px : radius_px + height, :]


def _window(maps: Bools) -> Bools:
    """The part of ``[2, H, W]`` that holds everything that is set; one pixel if nothing is."""
    rows, columns = np.flatnonzero(maps.any((0, 2))), np.flatnonzero(maps.any((0, 1)))
    if not len(rows):
        return maps[:, :1, :1]
    return maps[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _f_measure(
    close_predicted: Counts, close_true: Counts, predicted: Counts, true: Counts
) -> Floats:
    """F from the pixels of outlines that are close to the other one, and from all of them."""
    precision = close_predicted / np.maximum(predicted, 1)
    recall = close_true / np.maximum(true, 1)
    total = precision + recall
    measure: Floats = np.zeros(total.shape)
    np.divide(2 * precision * recall, total, out=measure, where=total > 0)
    neither: Bools = (predicted == 0) & (true == 0)
    return np.where(neither, 1.0, measure)
