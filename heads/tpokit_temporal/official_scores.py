"""The numbers that the evaluator of QVHighlights prints, from files in its own formats.

Source: standalone_eval/eval.py of jayleicn/moment_detr and wjun0830/CGDETR. We differ in two
points: a range of length without a true moment is left out, where the release fills in zeros, and a
query without a prediction is wrong in R1, where the release stops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tpokit.errors import DataError
from tpokit_temporal.average_precision import Floats
from tpokit_temporal.highlights import RATINGS, HighlightQuery, highlight_scores
from tpokit_temporal.retrieval import (
    LENGTHS_S,
    RetrievalQuery,
    RetrievalScores,
    in_range,
    retrieval_scores,
)

_CLIP_S = 2  # of QVHighlights
_ALL_LENGTHS = (-np.inf, np.inf)

Rows = Sequence[Mapping[str, Any]]


def official_scores(
    predictions: Rows, annotations: Rows, skip_unanswered: bool = True
) -> dict[str, Any]:
    """Score a submission to QVHighlights, or to another set in its format.

    Args:
        predictions: ``qid``, ``pred_relevant_windows`` (start, end in seconds, score) and, if clips
            are to be scored, ``pred_saliency_scores``.
        annotations: ``qid``, ``duration``, ``relevant_windows`` and, for clips,
            ``relevant_clip_ids`` and ``saliency_scores`` of three raters.
        skip_unanswered: As released; see `retrieval_scores`.

    Returns:
        Percentages with two decimals, under the released names: ``brief``; ``full``, ``short``,
        ``middle`` and ``long`` with ``MR-mAP``, ``MR-R1`` and ``MR-mIoU``; ``HL-min-Fair``,
        ``HL-min-Good`` and ``HL-min-VeryGood``.

    Raises:
        DataError: The two are not about the same queries.
    """
    found = _by_query(predictions, "predictions")
    pairs = [(found[qid], row) for qid, row in _matched(found, annotations)]
    report: dict[str, Any] = {}
    queries = [_retrieval_query(*pair) for pair in pairs]
    for name, (over_s, up_to_s) in {"full": _ALL_LENGTHS, **LENGTHS_S}.items():
        scores = retrieval_scores(in_range(queries, over_s, up_to_s), skip_unanswered)
        if scores is not None:
            report[name] = _retrieval_report(scores)
    brief = _brief(report)
    if all("pred_saliency_scores" in row for row in predictions):
        ratings = [_ratings(row) for _, row in pairs]
        saliency = [np.asarray(row["pred_saliency_scores"], dtype=np.float64) for row, _ in pairs]
        for name, least in RATINGS.items():
            ranked = highlight_scores(
                [HighlightQuery(s, r >= least) for s, r in zip(saliency, ratings, strict=True)]
            )
            if ranked is not None:
                precision, hit1 = _percent(ranked.mean_average_precision), _percent(ranked.hit1)
                report[f"HL-min-{name}"] = {"HL-mAP": precision, "HL-Hit1": hit1}
                brief |= {f"HL-min-{name}-mAP": precision, f"HL-min-{name}-Hit1": hit1}
    return {"brief": brief, **report}


def _by_query(rows: Rows, what: str) -> dict[Any, Mapping[str, Any]]:
    counts = Counter(row["qid"] for row in rows)
    twice = [str(qid) for qid, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"the {what} hold query {twice[0]} twice; each may be there once")
    return {row["qid"]: row for row in rows}


def _matched(
    found: Mapping[Any, Mapping[str, Any]], annotations: Rows
) -> list[tuple[Any, Mapping[str, Any]]]:
    """Annotations by query, in the order of the predictions."""
    true = _by_query(annotations, "annotations")
    missing, surplus = sorted(set(true) - set(found)), sorted(set(found) - set(true))
    if missing or surplus:
        raise DataError(
            "predictions and annotations must be about the same queries: "
            f"{len(missing)} without a prediction (such as {missing[:3]}), "
            f"{len(surplus)} without an annotation (such as {surplus[:3]})"
        )
    return [(qid, true[qid]) for qid in found]


def _retrieval_query(
    prediction: Mapping[str, Any], annotation: Mapping[str, Any]
) -> RetrievalQuery:
    return RetrievalQuery(
        np.array(prediction["pred_relevant_windows"], dtype=np.float64).reshape(-1, 3),
        np.array(annotation["relevant_windows"], dtype=np.float64).reshape(-1, 2),
    )


def _ratings(annotation: Mapping[str, Any]) -> Floats:
    """Ratings ``[clips, raters]``, 0 where a clip was not rated; a clip that begins within the
    last, incomplete two seconds does not count.
    """
    given = np.array(annotation["saliency_scores"], dtype=np.float64).reshape(-1, 3)
    places = np.array(annotation["relevant_clip_ids"], dtype=np.int64)
    ratings = np.zeros((int(annotation["duration"] / _CLIP_S), 3))
    inside = places < len(ratings)
    ratings[places[inside]] = given[inside]
    return ratings


def _retrieval_report(scores: RetrievalScores) -> dict[str, Any]:
    precision = {str(least): _percent(v) for least, v in scores.average_precision.items()}
    return {
        "MR-mIoU": _percent(scores.mean_iou),
        "MR-mAP": {**precision, "average": _percent(scores.mean_average_precision)},
        "MR-R1": {str(least): _percent(value) for least, value in scores.recall.items()},
    }


def _brief(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that papers print."""
    brief = {f"MR-{name}-mAP": report[name]["MR-mAP"]["average"] for name in report}
    if "full" in report:
        full = report["full"]
        brief |= {f"MR-full-mAP@{least}": full["MR-mAP"][least] for least in ("0.5", "0.75")}
        brief |= {f"MR-full-R1@{least}": full["MR-R1"][least] for least in ("0.3", "0.5", "0.7")}
        brief["MR-full-mIoU"] = full["MR-mIoU"]
    return brief


def _percent(fraction: float) -> float:
    return float(f"{100 * fraction:.2f}")
