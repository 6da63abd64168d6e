"""Moment retrieval: how well the moments found for queries fit the true ones.

Source: Lei, Berg, Bansal, QVHighlights, NeurIPS 2021, and its evaluator; `retrieval_scores` gives
the evaluator's numbers, as fractions and not rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpokit_temporal.average_precision import (
    Floats,
    detection_average_precision,
    match_moments,
    moment_iou,
    stack_rows,
)

LENGTHS_S = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, 150.0)}
"""Ranges of length of true moments, in seconds: longer than the first, up to the second."""
RECALL_THRESHOLDS = tuple(round(0.3 + 0.05 * step, 2) for step in range(14))
PRECISION_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
_PREDICTIONS = 10  # only so many of a query count


@dataclass(frozen=True)
class RetrievalQuery:
    """One query with its answers.

    Attributes:
        predicted: ``[p, 3]`` start, end in seconds, score; in the order in which they were given.
        true: ``[m, 2]`` start, end in seconds.
    """

    predicted: Floats
    true: Floats


@dataclass(frozen=True)
class RetrievalScores:
    """Scores over some queries, as fractions.

    Attributes:
        recall: IoU threshold to the share of queries whose first moment reaches it with one of the
            true moments.
        mean_iou: Mean over queries of the IoU of the first moment with the true moment that it
            meets best.
        average_precision: IoU threshold to mean average precision.
    """

    recall: dict[float, float]
    mean_iou: float
    average_precision: dict[float, float]

    @property
    def mean_average_precision(self) -> float:
        """Mean over the thresholds."""
        return float(np.mean(list(self.average_precision.values())))


def retrieval_scores(
    queries: Sequence[RetrievalQuery], skip_unanswered: bool = False
) -> RetrievalScores | None:
    """Score queries.

    Args:
        queries: Those without a true moment are left out: nothing could be right.
        skip_unanswered: Leave queries without a prediction out of average precision, as the
            evaluator of QVHighlights does, which so rewards silence. By default they count 0.

    Returns:
        ``None`` if no query is left.
    """
    queries = [query for query in queries if len(query.true)]
    if not queries:
        return None
    top = top_iou(queries)
    precision = query_average_precision(queries)
    if skip_unanswered:
        precision = precision[[len(query.predicted) > 0 for query in queries]]
    means = precision.mean(0) if len(precision) else np.zeros(len(PRECISION_THRESHOLDS))
    return RetrievalScores(
        recall={least: float((top >= least).mean()) for least in RECALL_THRESHOLDS},
        mean_iou=float(top.mean()),
        average_precision=dict(zip(PRECISION_THRESHOLDS, means.tolist(), strict=True)),
    )


def in_range(
    queries: Sequence[RetrievalQuery], over_s: float, up_to_s: float
) -> list[RetrievalQuery]:
    """Queries with only those of their true moments whose length is in the range; queries that
    keep none are left out. Predictions stay, whatever their length.
    """
    kept = []
    for query in queries:
        length_s = query.true[:, 1] - query.true[:, 0]
        inside = (length_s > over_s) & (length_s <= up_to_s)
        if inside.any():
            kept.append(RetrievalQuery(query.predicted, query.true[inside]))
    return kept


def top_iou(queries: Sequence[RetrievalQuery]) -> Floats:
    """IoU ``[n]`` of the first predicted moment (not of that with the highest score) with the true
    moment that it meets best; 0 without a prediction.
    """
    first = stack_rows([query.predicted[:1, :2] for query in queries], 2)
    true = stack_rows([query.true for query in queries], 2)
    if first.shape[1] == 0 or true.shape[1] == 0:
        return np.zeros(len(queries))
    best: Floats = moment_iou(first, true).max(-1)  # [n, 1, 2] and [n, m, 2]
    return best


def query_average_precision(queries: Sequence[RetrievalQuery]) -> Floats:
    """Average precision ``[n, t]`` of each query at `PRECISION_THRESHOLDS`, of the ten predictions
    that were given first, in the order of their scores.
    """
    ranked = stack_rows([_best_first(query.predicted[:_PREDICTIONS]) for query in queries], 3)
    true = stack_rows([query.true for query in queries], 2)
    counts: NDArray[np.int64] = np.array([len(query.true) for query in queries])
    iou = moment_iou(ranked[:, :, None, :2], true[:, None])  # [n, p, m]
    right = match_moments(iou, PRECISION_THRESHOLDS)
    return detection_average_precision(right, counts)


def _best_first(predicted: Floats) -> Floats:
    return predicted[np.argsort(-predicted[:, 2], kind="stable")]
