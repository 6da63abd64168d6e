"""Overlap of moments, and average precision: of found moments, and of ranked clips.

Pure functions on numpy arrays, over all queries at once. A moment is start and end in seconds, in
the last dimension. Legend: n queries, p predicted and m true moments of a query, t thresholds,
r rankings, c clips.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NO_MOMENT = np.nan
"""Fills the rows of queries with fewer moments; overlaps with nothing."""


def stack_rows(rows: Sequence[Floats], width: int, fill: float = NO_MOMENT) -> Floats:
    """Tables ``[k, width]`` of different lengths side by side, ``[n, longest k, width]``."""
    longest = max((len(row) for row in rows), default=0)
    stacked = np.full((len(rows), longest, width), fill)
    for place, row in zip(stacked, rows, strict=True):
        place[: len(row)] = row
    return stacked


def moment_iou(first: Floats, second: Floats) -> Floats:
    """Intersection over union ``[...]`` of moments ``[..., 2]`` that broadcast, in [0, 1].

    Moments without a length, with swapped ends, or `NO_MOMENT`, overlap with nothing.
    """
    start_s = np.maximum(first[..., 0], second[..., 0])
    end_s = np.minimum(first[..., 1], second[..., 1])
    both_s = np.clip(end_s - start_s, 0, None)
    any_s = (first[..., 1] - first[..., 0]) + (second[..., 1] - second[..., 0]) - both_s
    iou: Floats = np.zeros(both_s.shape)
    np.divide(both_s, any_s, out=iou, where=both_s > 0)  # which is false for NaN too
    return iou


def match_moments(iou: Floats, thresholds: Sequence[float]) -> Bools:
    """Which predictions are right, each true moment being met only once.

    In the order of the predictions, each takes the free true moment with which it has the highest
    IoU, if that reaches the threshold; among equals the last one.

    Args:
        iou: ``[n, p, m]``, predictions best first.
        thresholds: t values above 0.

    Returns:
        ``[n, t, p]``.
    """
    queries, predictions, truths = iou.shape
    least = np.asarray(thresholds, dtype=np.float64)[:, None]
    right = np.zeros((queries, len(thresholds), predictions), dtype=bool)
    free = np.ones((queries, len(thresholds), truths), dtype=bool)
    if truths == 0:
        return right
    for rank in range(predictions):
        here = iou[:, rank, None, :]  # [n, 1, m]
        usable = np.where(free & (here >= least), here, -1.0)  # [n, t, m]
        taken = truths - 1 - usable[..., ::-1].argmax(-1)  # the last of equals
        right[..., rank] = np.take_along_axis(usable, taken[..., None], -1)[..., 0] > 0
        free &= ~(right[..., rank, None] & (np.arange(truths) == taken[..., None]))
    return right


def detection_average_precision(right: Bools, truths: NDArray[np.int64]) -> Floats:
    """Area under precision over recall, precision being the best at that recall or a higher one
    (all points, as in PASCAL VOC 2010).

    Args:
        right: ``[n, t, p]`` of `match_moments`, best first; padding is wrong.
        truths: ``[n]`` number of true moments, at least 1.

    Returns:
        ``[n, t]`` in [0, 1].
    """
    precision = right.cumsum(-1) / np.arange(1, right.shape[-1] + 1)
    areas: Floats = (_best_from_here(precision) * right).sum(-1) / truths[:, None]
    return areas


def ranking_average_precision(scores: Floats, positive: Bools) -> Floats:
    """Average precision of rankings as in the evaluator of QVHighlights: the mean, over the ranks
    at which recall grows, of the best precision at that recall or a higher one. Equal scores share
    one rank.

    Args:
        scores: ``[r, c]``, highest first in the ranking; ``-inf``: no such clip.
        positive: ``[r, c]`` whether a clip belongs to the front.

    Returns:
        ``[r]`` in [0, 1]; 0 where nothing is positive.
    """
    order = np.argsort(-scores, axis=-1, kind="stable")
    scores = np.take_along_axis(scores, order, -1)
    found = np.take_along_axis(positive, order, -1).cumsum(-1)
    last = np.ones(scores.shape, dtype=bool)  # of the clips with the same score
    last[:, :-1] = scores[:, :-1] != scores[:, 1:]
    precision = np.where(last, found / np.arange(1, scores.shape[-1] + 1), 0.0)
    # What was found up to the rank before; counts grow, so the highest so far is the latest.
    earlier = np.maximum.accumulate(np.where(last, found, 0), axis=-1)
    earlier = np.concatenate([np.zeros_like(earlier[:, :1]), earlier[:, :-1]], axis=-1)
    grows = last & (found > earlier)
    sums = (_best_from_here(precision) * grows).sum(-1)
    return np.asarray(sums / np.maximum(grows.sum(-1), 1), dtype=np.float64)


def trapezoid_average_precision(positive: Bools) -> Floats:
    """Area under precision over recall by trapezoids, from precision 1 at recall 0; as TVSum and
    YouTube Highlights are scored since UMT (Liu et al., CVPR 2022).

    Args:
        positive: ``[r, c]`` in the order of the ranking.

    Returns:
        ``[r]`` in [0, 1]; 0 where nothing is positive.
    """
    found = positive.cumsum(-1)
    total = np.maximum(found[:, -1:], 1)
    precision = found / np.arange(1, positive.shape[-1] + 1)
    before = np.concatenate([np.ones_like(precision[:, :1]), precision[:, :-1]], axis=-1)
    areas: Floats = (positive / total * (before + precision) / 2).sum(-1)
    return areas


def _best_from_here(precision: Floats) -> Floats:
    """The highest value at each place or behind it, along the last dimension."""
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
