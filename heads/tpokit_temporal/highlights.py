"""Highlights: how well the saliency of clips ranks those that people found worth seeing.

Sources: QVHighlights and its evaluator (Lei, Berg, Bansal, NeurIPS 2021); TVSum and YouTube
Highlights as scored by CG-DETR (wjun0830/CGDETR, cg_detr/inference.py), which follows UMT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpokit_temporal.average_precision import (
    Bools,
    Floats,
    ranking_average_precision,
    trapezoid_average_precision,
)

RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}
"""Name to the rating from which on a clip counts, of ratings from 0 to 4."""
_TVSUM_TOP = 5


@dataclass(frozen=True)
class HighlightQuery:
    """One query with its saliency.

    Attributes:
        saliency: ``[k]`` predicted, one for each clip; may be more or fewer than the video has.
        positive: ``[c, a]`` whether annotator a finds clip c worth seeing.
    """

    saliency: Floats
    positive: Bools


@dataclass(frozen=True)
class HighlightScores:
    """Scores over some queries, as fractions.

    Attributes:
        mean_average_precision: Mean over queries and annotators; an annotator who finds nothing
            worth seeing counts 0.
        hit1: Share of queries whose most salient clip some annotator finds worth seeing.
    """

    mean_average_precision: float
    hit1: float


def highlight_scores(queries: Sequence[HighlightQuery]) -> HighlightScores | None:
    """Score queries as the evaluator of QVHighlights does; ``None`` without queries.

    Saliency that is missing counts as 0, saliency beyond the last clip is left out; but if the
    highest is there, it is no hit.
    """
    if not queries:
        return None
    rankings = [row for query in queries for row in _rankings(query)]
    longest = max(len(scores) for scores, _ in rankings)
    scores = np.full((len(rankings), longest), -np.inf)
    positive = np.zeros((len(rankings), longest), dtype=bool)
    for index, (row, wanted) in enumerate(rankings):
        scores[index, : len(row)] = row
        positive[index, : len(row)] = wanted
    precision = ranking_average_precision(scores, positive)
    hits = [_hit(query) for query in queries]
    return HighlightScores(float(precision.mean()), float(np.mean(hits)))


def tvsum_average_precision(saliency: Floats, ratings: Floats, top: int = _TVSUM_TOP) -> float:
    """Average precision of the most salient clips of one video of TVSum, as a fraction.

    Args:
        saliency: ``[k]``, at least one for each clip; what is beyond the last clip is left out.
        ratings: ``[c, a]`` ratings of clip c by annotator a; one above the annotator's median (of
            an even number of clips, the lower of the two in the middle) is worth seeing.
        top: That many clips count.

    Returns:
        Mean over the annotators; one with nothing worth seeing among those clips counts 0.
    """
    ranked = ratings[_ranking(saliency, len(ratings))]
    median = np.sort(ratings, axis=0)[(len(ratings) - 1) // 2]
    return float(trapezoid_average_precision((ranked > median)[:top].T).mean())


def youtube_average_precision(saliency: Floats, positive: Bools) -> float | None:
    """Average precision of all clips of one video of YouTube Highlights, as a fraction.

    Args:
        saliency: ``[k]``, at least one for each clip; what is beyond the last clip is left out.
        positive: ``[c]`` whether a clip is worth seeing.

    Returns:
        ``None`` if no clip is: such a video does not count.
    """
    if not positive.any():
        return None
    ranked = positive[_ranking(saliency, len(positive))]
    return float(trapezoid_average_precision(ranked[None])[0])


def _rankings(query: HighlightQuery) -> list[tuple[Floats, Bools]]:
    """One ranking for each annotator, of as many clips as the video has."""
    clips = len(query.positive)
    scores = np.zeros(clips)
    scores[: len(query.saliency)] = query.saliency[:clips]
    return [(scores, query.positive[:, annotator]) for annotator in range(query.positive.shape[1])]


def _hit(query: HighlightQuery) -> bool:
    if not len(query.saliency):
        return False
    best = int(query.saliency.argmax())
    return best < len(query.positive) and bool(query.positive[best].any())


def _ranking(saliency: Floats, clips: int) -> NDArray[np.intp]:
    """Numbers of the clips, most salient first."""
    return np.argsort(-saliency[:clips], kind="stable")
