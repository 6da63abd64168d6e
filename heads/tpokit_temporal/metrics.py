"""How well the temporal head's results fit, for ``tpokit evaluate``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tpokit.errors import DataError
from tpokit.interfaces import Metric
from tpokit.types import MediaInfo
from tpokit_temporal.average_precision import Bools, Floats, moment_iou, stack_rows
from tpokit_temporal.highlights import HighlightQuery, highlight_scores
from tpokit_temporal.results import Moments
from tpokit_temporal.retrieval import PRECISION_THRESHOLDS, RetrievalQuery, retrieval_scores

RELEVANT = 0.66
"""Expected saliency from which on a clip is a highlight. Yes-or-no labels are 0 and 1. Of the sum
of three ratings from 0 to 4 it is 8 points of 12: of the rated clips of QVHighlights (val) as many
have that (76 %) as have a "Very Good" from some rater, mostly the same ones (F1 0.91)."""
_SHOWN = (0.3, 0.5, 0.7)
_STEPS = 40  # constant moments start and end at multiples of 1/40 of the video
_AT_ONCE = 4_000_000  # overlaps in memory while constant moments are tried
_PLACES = 100  # parts of a video that a constant saliency tells apart


class TemporalMetric(Metric):
    """Moments: ``r1@0.3``, ``r1@0.5``, ``r1@0.7`` (share of expected results one of whose moments
    the first predicted moment meets with at least that IoU), ``mean_iou`` of the first moment,
    ``map`` (mean average precision at IoU 0.5 to 0.95 of the first ten). Clips: ``hl_map`` (mean
    average precision of the ranking by saliency), ``hl_hit1`` (share whose most salient clip is a
    highlight).

    Results are paired in reading order; an expected one without a prediction is wrong in every
    measure, predictions beyond the expected ones are neither rewarded nor punished. Where no moment
    is expected, moments do not count; where no clip is a highlight (see `RELEVANT`), saliency does
    not. The measures are those of QVHighlights but for one rater instead of three and for missing
    predictions; `official_scores` gives its exact numbers.
    """

    task = "temporal"

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._queries: list[RetrievalQuery] = []
        self._true_fractions: list[Floats] = []
        self._highlights: list[HighlightQuery] = []

    def add(
        self, predicted: Sequence[Moments], expected: Sequence[Moments], media: MediaInfo
    ) -> None:
        """Take in one sample; results are in seconds of the medium. See `Metric.add`.

        Raises:
            DataError: The medium has no duration.
        """
        if expected and media.duration_s <= 0:
            raise DataError(
                f"moments are expected in {'an image' if media.kind == 'image' else 'a video'} "
                f"of {media.duration_s:g} s; they need a video that lasts"
            )
        for index, wanted in enumerate(expected):
            found = predicted[index] if index < len(predicted) else Moments(())
            if wanted.moments:
                true = _table(wanted)[:, :2]
                self._queries.append(RetrievalQuery(_table(found), true))
                self._true_fractions.append(true / media.duration_s)
            positive = np.array(wanted.saliency) >= RELEVANT
            if positive.any():
                saliency = _on_clips(found, wanted)
                self._highlights.append(HighlightQuery(saliency, positive[:, None]))

    def scores(self) -> dict[str, float]:
        """All measures; those of moments or of clips are left out where none were expected."""
        measures: dict[str, float] = {}
        found = retrieval_scores(self._queries)
        if found is not None:
            measures |= {f"r1@{least}": found.recall[least] for least in _SHOWN}
            measures |= {"mean_iou": found.mean_iou, "map": found.mean_average_precision}
        if self._highlights:
            answered = [query for query in self._highlights if len(query.saliency)]
            share = len(answered) / len(self._highlights)
            ranked = highlight_scores(answered)
            measures["hl_map"] = share * ranked.mean_average_precision if ranked else 0.0
            measures["hl_hit1"] = share * ranked.hit1 if ranked else 0.0
        return measures

    def constant(self) -> dict[str, float]:
        """What an answer that ignores the video and the question could have scored at best.

        Of moments: each measure with the constant moment that is best for it, all being tried that
        start and end at multiples of 1/40 of the video. ``hl_hit1``: with the hundredth of the
        video that most often lies in a highlight. ``hl_map``: with the hundredths ranked by how
        often they do.
        """
        moments = _constant_moment(self._true_fractions) if self._true_fractions else {}
        clips = _constant_saliency([query.positive[:, 0] for query in self._highlights])
        return moments | clips


def _table(result: Moments) -> Floats:
    """Start, end in seconds and score ``[k, 3]``."""
    rows = [(moment.start_s, moment.end_s, moment.score) for moment in result.moments]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _on_clips(found: Moments, wanted: Moments) -> Floats:
    """Predicted saliency at the expected clips; clips of another length are asked for by the time
    in the middle. What lies beyond the predicted clips is ranked last.
    """
    saliency = np.array(found.saliency, dtype=np.float64)
    if not len(saliency):
        return saliency
    clips = np.arange(len(wanted.saliency))
    if found.clip_s > 0 and wanted.clip_s > 0 and found.clip_s != wanted.clip_s:
        clips = ((clips + 0.5) * wanted.clip_s / found.clip_s).astype(np.int64)
    last = np.append(saliency, saliency.min() - 1.0)
    return np.asarray(last[np.minimum(clips, len(saliency))])


def _constant_moment(true: Sequence[Floats]) -> dict[str, float]:
    """The best of each measure over all constant moments; ``true`` as fractions ``[m, 2]``."""
    edges = np.arange(_STEPS + 1) / _STEPS
    starts, ends = np.triu_indices(_STEPS + 1, k=1)
    moments = np.stack([edges[starts], edges[ends]], axis=-1)
    stacked = stack_rows(true, 2)
    counts = np.array([len(rows) for rows in true])
    best: dict[str, float] = {}
    step = max(_AT_ONCE // stacked[..., 0].size, 1)
    for first in range(0, len(moments), step):
        some = moments[first : first + step, None, None]
        iou = moment_iou(some, stacked).max(-1)  # [candidates, n]
        tried = {f"r1@{least}": (iou >= least).mean(-1) for least in _SHOWN}
        tried["mean_iou"] = iou.mean(-1)
        # One moment meets one of the m true ones: precision 1 up to the recall 1/m.
        met = np.mean([iou >= least for least in PRECISION_THRESHOLDS], axis=0)
        tried["map"] = (met / counts).mean(-1)
        best = {name: max(best.get(name, 0.0), float(v.max())) for name, v in tried.items()}
    return best


def _constant_saliency(highlights: Sequence[Bools]) -> dict[str, float]:
    """The best place of a video to call a highlight, and the best ranking of its places."""
    if not highlights:
        return {}
    middles = (np.arange(_PLACES) + 0.5) / _PLACES
    inside = [clips[(middles * len(clips)).astype(np.int64)] for clips in highlights]
    often = np.mean(inside, axis=0)  # [places]
    ranked = highlight_scores(
        [HighlightQuery(often[_places(len(clips))], clips[:, None]) for clips in highlights]
    )
    precision = ranked.mean_average_precision if ranked else 0.0
    return {"hl_map": precision, "hl_hit1": float(often.max())}


def _places(clips: int) -> NDArray[np.int64]:
    """The place of the middle of each clip."""
    return ((np.arange(clips) + 0.5) / clips * _PLACES).astype(np.int64)
