"""One JSON object a line, the layout of QVHighlights, in which CG-DETR publishes other sets too.

``qid``, ``query``, ``duration``, ``vid``, ``relevant_windows``; QVHighlights adds
``relevant_clip_ids`` and ``saliency_scores``, NLQ the ``video_uid`` that a video was cut from.

Source: Lei, Berg, Bansal, NeurIPS 2021 (jayleicn/moment_detr, ``data/``); wjun0830/CGDETR,
``data/``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpokit.data.lines import JsonLines
from tpokit.errors import DataError
from tpokit_temporal.sources.options import MomentLinesOptions
from tpokit_temporal.sources.queries import (
    Query,
    Saliency,
    read_duration,
    read_moments,
    read_text,
)
from tpokit_temporal.sources.source import MomentSource

_HIGHEST = 4.0  # raters give 0 to 4
_CUT = re.compile(r"(.+?)_\d+(?:\.\d+)?_\d+(?:\.\d+)?")


class MomentLinesSource(MomentSource):
    """QVHighlights, TACoS, NLQ and alike; lines are read when they are asked for."""

    Options = MomentLinesOptions
    _options: MomentLinesOptions

    def _open(self, path: Path) -> JsonLines:
        return JsonLines(path)

    def _read(self, entry: Mapping[str, Any], index: int) -> Query:
        where = self._entries.place(index)
        return read_line(entry, f"entry-{index + 1}", self._options.clip_s, where)


def read_line(entry: Mapping[str, Any], name: str, clip_s: float, where: str) -> Query:
    """A query from one object.

    Args:
        entry: The object.
        name: Its id if it has no ``qid``.
        clip_s: Seconds of one clip of ``relevant_clip_ids``.
        where: File and line, for messages.

    Raises:
        DataError: Something is missing or has another form.
    """
    if "relevant_windows" not in entry:
        raise DataError(
            f"{where}: no 'relevant_windows'; without labels (as the published test split of "
            "QVHighlights) a set can be neither trained nor scored on"
        )
    video = read_text(entry.get("vid", entry.get("video_uid")), "vid", where)
    cut = _CUT.fullmatch(video)
    origin = entry.get("video_uid", cut.group(1) if cut else video)
    found = entry.get("duration")
    duration_s = None if found is None else read_duration(found, where)
    return Query(
        id=str(entry.get("qid", name)),
        text=read_text(entry.get("query"), "query", where, may_be_empty=True),
        video=video,
        origin=read_text(origin, "video_uid", where),
        moments_s=read_moments(entry["relevant_windows"], where),
        duration_s=duration_s,
        saliency=_saliency(entry, duration_s, clip_s, where),
    )


def _saliency(
    entry: Mapping[str, Any], duration_s: float | None, clip_s: float, where: str
) -> Saliency | None:
    """Sum over the raters for each clip of the video; clips that nobody was asked about count 0."""
    if "saliency_scores" not in entry and "relevant_clip_ids" not in entry:
        return None
    clips, ratings = entry.get("relevant_clip_ids"), entry.get("saliency_scores")
    if not isinstance(clips, list) or not isinstance(ratings, list) or len(clips) != len(ratings):
        raise DataError(
            f"{where}: 'relevant_clip_ids' and 'saliency_scores' must be lists of one length"
        )
    if duration_s is None:
        raise DataError(f"{where}: 'duration' is missing; saliency needs it")
    values = [0.0] * math.ceil(duration_s / clip_s)
    raters = len(ratings[0]) if ratings and isinstance(ratings[0], list) else 0
    for clip, rating in zip(clips, ratings, strict=True):
        _check_rating(clip, rating, raters, where)
        if clip < len(values):  # some sets rate one clip that begins at the very end
            values[clip] = float(sum(rating))
    return Saliency(tuple(values), clip_s, _HIGHEST * max(raters, 1))


def _check_rating(clip: Any, rating: Any, raters: int, where: str) -> None:
    if not isinstance(clip, int) or clip < 0:
        raise DataError(f"{where}: 'relevant_clip_ids' are numbers from 0, found {clip!r}")
    if not isinstance(rating, list) or not rating or len(rating) != raters:
        raise DataError(
            f"{where}: 'saliency_scores' has one list for each clip with one rating of each of the "
            f"{raters} raters, found {rating!r}"
        )
    if not all(isinstance(value, (int, float)) and 0 <= value <= _HIGHEST for value in rating):
        raise DataError(f"{where}: 'saliency_scores' are ratings from 0 to 4, found {rating!r}")
