"""Checks moments and saliency as they stand in annotations; does not import torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from tpokit.errors import DataError
from tpokit.types import Seen
from tpokit_temporal.labels import (
    GRADES,
    Edges,
    Pair,
    choose_pairs,
    clips_inside,
    released_inside,
    resample,
    to_fractions,
)

MOMENTS_MAX = 5
"""So many moments of a call are learnt from, as released (``max_windows``)."""

_KEYS = ("moments_s", "saliency", "saliency_max", "clip_s", "video")
_OTHERS = ("query", "query_id", "duration_s")  # of our sources, not for targets


@dataclass(frozen=True)
class TemporalTarget:
    """What is right for one call.

    Attributes:
        moments: Centre and width of each as fractions of the video, in the order of the annotation.
        learnt: Indices of the moments to learn from, at most `MOMENTS_MAX`, drawn where there are
            more.
        saliency: Grade of each clip from 0 to `GRADES`; above 0 the clip is relevant. Where only
            moments are known, it is 1 inside them, as released.
        saliency_max: The largest grade there can be: `GRADES`, or 1 where only moments are known.
        pairs: Two pairs of clips, the first of each to be more salient than the second.
        video: Which video it is about, to tell whether another call is about another one.
    """

    moments: tuple[Edges, ...]
    learnt: tuple[int, ...]
    saliency: tuple[float, ...]
    saliency_max: float
    pairs: tuple[Pair, Pair]
    video: str


def read_annotation(
    annotation: Any,
    clips: int | None,
    duration_s: float,
    where: str,
    video: str | None = None,
    released_quirks: bool = False,
) -> TemporalTarget:
    """A target from an annotation, a mapping.

    - ``moments_s``: one or more ``[start, end]`` in seconds from the start of the video. An end may
      lie behind the end of the video by up to one clip and is then put on it.
    - ``saliency`` (optional): how much each clip is worth seeing, from 0: it has nothing to do with
      the query. There need not be as many values as the head sees clips: see `labels.resample`.
      Without it, what is known is that the clips inside a moment are relevant.
    - ``saliency_max`` (optional): the value that means most; default 1. QVHighlights: 12.
    - ``clip_s`` (optional): how many seconds each value of ``saliency`` stands for; default: the
      values stand for equal parts of the video.
    - ``video`` (optional): names the video; negatives are queries about another one.

    Other keys of our data sources are left alone.

    What is drawn by chance follows from moments and saliency alone: the same annotation always
    gives the same target.

    Args:
        annotation: Such a mapping.
        clips: Number of clips of the video that the head sees; ``None``: as many as ``saliency``
            has values, or one for each second.
        duration_s: Length of the video.
        where: The sample, for messages.
        video: Names the video where the annotation does not; default ``where``.
        released_quirks: Which clips are inside a moment follows `labels.released_inside`.

    Raises:
        DataError: Not in this form, no moment, a moment that is reversed, without length or outside
            the video, or saliency outside its scale.
    """
    fields = _read_fields(annotation, where)
    if not _is_number(duration_s) or duration_s <= 0:
        raise DataError(f"{where}: moments need a video that lasts, this one has {duration_s!r} s")
    given = _read_saliency(fields, where)
    if clips is None:
        clips = len(given) or math.ceil(duration_s)
    if clips < 1:
        raise DataError(f"{where}: the video has no clips, so no moment can be found in it")
    moments_s = _read_moments(fields.get("moments_s"), duration_s, duration_s / clips, where)
    if given:
        part_s = _read_positive(fields, "clip_s", duration_s / len(given), where)
        saliency = resample(given, part_s, clips, duration_s)
    else:
        inside = released_inside if released_quirks else clips_inside
        rows = [inside(edges_s, clips, duration_s) for edges_s in moments_s]
        saliency = tuple(max(values) for values in zip(*rows, strict=True))
    random = _generator(moments_s, saliency)
    return TemporalTarget(
        moments=to_fractions(moments_s, duration_s),
        learnt=_choose_learnt(len(moments_s), random),
        saliency=saliency,
        saliency_max=float(GRADES) if given else 1.0,
        pairs=choose_pairs(saliency, random),
        video=str(fields.get("video", where if video is None else video)),
    )


def require_video(seen: Seen) -> float:
    """Length of the video that a call is about, in seconds.

    Raises:
        DataError: The first medium is not a video, or there is none.
    """
    if seen.info and seen.info[0].kind == "video":
        return seen.info[0].duration_s
    found = f"the first medium is an {seen.info[0].kind}" if seen.info else "there is no medium"
    raise DataError(f"{seen.where}: moments are found in a video, but {found}")


def _generator(moments_s: Sequence[Edges], saliency: Sequence[float]) -> np.random.Generator:
    digest = hashlib.sha256(repr((moments_s, saliency)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _choose_learnt(count: int, random: np.random.Generator) -> tuple[int, ...]:
    if count <= MOMENTS_MAX:
        return tuple(range(count))
    return tuple(int(index) for index in random.permutation(count)[:MOMENTS_MAX])


def _read_fields(annotation: Any, where: str) -> dict[str, Any]:
    if not isinstance(annotation, Mapping) or "moments_s" not in annotation:
        raise DataError(
            f"{where}: {_short(annotation)} has no 'moments_s'; a target of the temporal head is "
            "such as {'moments_s': [[2.0, 5.5]]}"
        )
    unknown = [repr(key) for key in annotation if key not in _KEYS + _OTHERS]
    if unknown:
        raise DataError(
            f"{where}: a target of the temporal head has no {', '.join(unknown)}; it has "
            f"{', '.join(_KEYS)}"
        )
    return {key: value for key, value in annotation.items() if value is not None}


def _read_moments(found: Any, duration_s: float, slack_s: float, where: str) -> tuple[Edges, ...]:
    rows = _as_list(found)
    if not rows:
        raise DataError(
            f"{where}: moments_s is {_short(found)}; it is a list of one or more [start, end] in "
            "seconds"
        )
    return tuple(_read_moment(row, duration_s, slack_s, where) for row in rows)


def _read_moment(found: Any, duration_s: float, slack_s: float, where: str) -> Edges:
    edges = _as_list(found)
    if edges is None or len(edges) != 2 or not all(map(_is_number, edges)):
        raise DataError(
            f"{where}: {_short(found)} is no moment; a moment is two finite numbers, start and end "
            "in seconds"
        )
    start, end = float(edges[0]), float(edges[1])
    shown = f"{where}: the moment [{start:g}, {end:g}] s"
    if start > end:
        raise DataError(f"{shown} is reversed; the start comes first")
    if start < 0 or end > duration_s + slack_s:
        raise DataError(
            f"{shown} leaves the video, which lasts from 0 to {duration_s:g} s; an end may lie "
            f"behind it by one clip ({slack_s:.3g} s) at most"
        )
    if start >= min(end, duration_s):
        raise DataError(f"{shown} has no length in a video of {duration_s:g} s; start < end")
    return start, min(end, duration_s)


def _read_saliency(fields: Mapping[str, Any], where: str) -> tuple[float, ...]:
    """Grades as annotated; empty where not annotated."""
    found = fields.get("saliency")
    if found is None:
        return ()
    values = _as_list(found)
    if not values or not all(map(_is_number, values)):
        raise DataError(
            f"{where}: saliency is {_short(found)}; it is a list of finite numbers, one for each "
            "clip"
        )
    largest = _read_positive(fields, "saliency_max", 1.0, where)
    outside = [value for value in values if not 0 <= value <= largest]
    if outside:
        hint = "" if "saliency_max" in fields else "; of another scale, say the largest value"
        raise DataError(
            f"{where}: saliency holds {outside[0]:g}, which is not in 0 to saliency_max = "
            f"{largest:g}{hint}"
        )
    return tuple(float(value) * GRADES / largest for value in values)


def _read_positive(fields: Mapping[str, Any], key: str, default: float, where: str) -> float:
    found = fields.get(key, default)
    if not _is_number(found) or found <= 0:
        raise DataError(f"{where}: {key} is {found!r}; it is a number above 0")
    return float(found)


def _as_list(found: Any) -> list[Any] | None:
    """A list from a list, a tuple, an array or a tensor; ``None`` from anything else."""
    if hasattr(found, "tolist"):
        found = found.tolist()
    return list(found) if isinstance(found, list | tuple) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _short(found: Any) -> str:
    shown = repr(found)
    return shown if len(shown) <= 80 else shown[:77] + "..."
