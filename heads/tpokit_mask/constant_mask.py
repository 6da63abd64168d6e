"""How well the best constant mask fits: one answer for every question.

All masks are compared on a grid of 64 x 64 cells over the image, which is kept as bits, 512 bytes a
mask; so F, whose tolerance is one cell there, is only close to what it is at the original size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tpokit_mask.metrics.boundary import pairwise_boundary_accuracy
from tpokit_mask.metrics.protocols import MaskScores
from tpokit_mask.metrics.referring import ReferringScores
from tpokit_mask.metrics.region import Bools, Floats, Overlap, pairwise_overlap

Bits = NDArray[np.uint8]
"""Masks on the grid, ``[..., 512]``."""

_CELLS = 64  # in each direction
_SHARES = np.arange(1, 10) / 10  # of the largest mean that candidates are cut at
_AT_ONCE = 4096  # masks that are unpacked at the same time


def grid_bits(mask: Bools) -> Bits:
    """A mask ``[h, w]`` on the grid, ``[512]``: cells that it covers by half or more, of a smaller
    mask those that it covers most; so only an empty mask is empty there.
    """
    if not mask.any():
        return np.zeros(_CELLS * _CELLS // 8, dtype=np.uint8)
    picture = Image.fromarray(mask.astype(np.float32))
    covered = np.asarray(picture.resize((_CELLS, _CELLS), Image.Resampling.BOX))
    return np.packbits(covered >= min(0.5, covered.max()))


def constant_for_images(true: Sequence[Bits], areas_px: Sequence[int]) -> ReferringScores:
    """Scores of the constant mask with the best ``giou``.

    Args:
        true: Right masks, at least one.
        areas_px: Height times width of each image; large ones count more in ``ciou``.
    """
    masks = np.stack(true)
    candidates = _candidates(masks, np.full(len(masks), 1 / len(masks)))
    found = _overlaps(candidates, masks)
    best = found.iou.mean(-1).argmax()
    intersection, union = (
        float((counts[best] * np.array(areas_px)).sum())
        for counts in (found.intersection_px, found.union_px)
    )
    return ReferringScores(
        giou=float(found.iou[best].mean()), ciou=intersection / union if union else 1.0
    )


def constant_for_videos(true: Sequence[Bits]) -> MaskScores:
    """J and F of the mask that has the best J when it is shown on every frame of every video.

    Args:
        true: Right masks ``[t, 512]`` of each call, at least one; t: frames, at least one.
    """
    frames = np.array([len(call) for call in true])
    masks = np.concatenate(true)
    shares = np.repeat(1 / frames / len(frames), frames)  # each call counts the same
    candidates = _candidates(masks, shares)
    region = _overlaps(candidates, masks).iou @ shares
    best = candidates[region.argmax()]
    boundary = [pairwise_boundary_accuracy(best[None], some)[0] for some in _unpacked(masks)]
    return MaskScores(float(region.max()), float(np.concatenate(boundary) @ shares))


def _candidates(masks: Bits, shares: Floats) -> Bools:
    """Masks ``[k, 64, 64]`` to try: none, all, and the weighted mean mask, cut at tenths of its
    largest value.
    """
    mean = np.zeros(_CELLS * _CELLS)
    for first, some in zip(range(0, len(masks), _AT_ONCE), _unpacked(masks), strict=True):
        mean += shares[first : first + _AT_ONCE] @ some.reshape(len(some), -1)
    cuts = mean >= _SHARES[:, None] * mean.max()
    ends = np.array([[False], [True]]).repeat(mean.size, axis=1)
    return np.concatenate([ends, cuts]).reshape(-1, _CELLS, _CELLS)


def _overlaps(candidates: Bools, masks: Bits) -> Overlap:
    """Cells ``[k, n]`` of every candidate with every mask."""
    parts = [pairwise_overlap(candidates, some) for some in _unpacked(masks)]
    return Overlap(*(np.concatenate(counts, axis=-1) for counts in zip(*parts, strict=True)))


def _unpacked(masks: Bits) -> Iterator[Bools]:
    """The masks ``[n, 64, 64]``, some at a time."""
    for first in range(0, len(masks), _AT_ONCE):
        bits = np.unpackbits(masks[first : first + _AT_ONCE], axis=-1)
        yield bits.astype(bool).reshape(-1, _CELLS, _CELLS)
