"""One sentence about moments of a video: what every layout is read into, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from tpokit.errors import DataError

MomentS = tuple[float, float]
"""Start and end in seconds."""

REVERSED = "a moment ends before it starts"
POINT = "a moment has no length (shortest_s would widen it)"
OUTSIDE = "a moment lies outside the video"
NO_MOMENT = "there is no moment"
NO_QUERY = "the query is empty"


@dataclass(frozen=True, slots=True)
class Saliency:
    """How much each clip of a video is worth seeing.

    Attributes:
        values: One for each clip, from the start of the video.
        clip_s: Seconds of a clip.
        maximum: The largest value there can be.
    """

    values: tuple[float, ...]
    clip_s: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Query:
    """A sentence and the moments that it is about.

    Attributes:
        id: As published; unique within its source.
        text: The sentence, without blanks around it.
        video: Name of the video, as published.
        origin: Name of the video that it is a cut of, else the same name: two samples of one origin
            may show the same thing.
        moments_s: Start and end of each moment.
        duration_s: Length of the video, if it is known.
        end_s: Only so much of the file is meant, if not all of it.
        saliency: If it is known.
    """

    id: str
    text: str
    video: str
    origin: str
    moments_s: tuple[MomentS, ...]
    duration_s: float | None = None
    end_s: float | None = None
    saliency: Saliency | None = None


def screen(query: Query, shortest_s: float) -> tuple[Query, list[str]]:
    """The same query with moments that lie inside the video, and what was wrong with the others.

    A moment is first widened to ``shortest_s``, then cut to the video. One that is reversed, has no
    length or lies outside is dropped.

    Returns:
        The query, and one entry for each thing that was dropped. A query without text or without a
        moment cannot be used.
    """
    faults = [] if query.text else [NO_QUERY]
    if not query.moments_s:
        faults.append(NO_MOMENT)
    limits = [limit for limit in (query.duration_s, query.end_s) if limit is not None]
    kept: list[MomentS] = []
    for moment in query.moments_s:
        found = _inside(moment, min(limits, default=math.inf), shortest_s)
        if isinstance(found, str):
            faults.append(found)
        else:
            kept.append(found)
    return replace(query, moments_s=tuple(kept)), faults


def _inside(moment: MomentS, limit_s: float, shortest_s: float) -> MomentS | str:
    """The part of a moment that lies in the video, or what is wrong."""
    start_s, end_s = moment
    if start_s > end_s:
        return REVERSED
    if end_s - start_s < shortest_s:
        middle_s = (start_s + end_s) / 2
        start_s, end_s = middle_s - shortest_s / 2, middle_s + shortest_s / 2
    if start_s == end_s:
        return POINT
    start_s, end_s = max(start_s, 0.0), min(end_s, limit_s)
    return (start_s, end_s) if start_s < end_s else OUTSIDE


def read_moments(found: Any, where: str) -> tuple[MomentS, ...]:
    """A list of pairs of seconds, as it stands in JSON.

    Raises:
        DataError: It is none.
    """
    if not isinstance(found, list):
        raise DataError(f"{where}: moments are a list of [start, end] in seconds, found {found!r}")
    return tuple(read_moment(moment, where) for moment in found)


def read_moment(found: Any, where: str) -> MomentS:
    """A pair of seconds, as it stands in JSON.

    Raises:
        DataError: It is none.
    """
    if not isinstance(found, list) or len(found) != 2:
        raise DataError(f"{where}: a moment is [start, end] in seconds, found {found!r}")
    start_s, end_s = (_seconds(value, "a moment", where) for value in found)
    return start_s, end_s


def read_duration(found: Any, where: str) -> float:
    """The length of a video in seconds.

    Raises:
        DataError: Not a number above 0.
    """
    duration_s = _seconds(found, "duration", where)
    if duration_s <= 0:
        raise DataError(f"{where}: duration = {found!r}; it must be above 0, in seconds")
    return duration_s


def read_text(found: Any, name: str, where: str, may_be_empty: bool = False) -> str:
    """A text without blanks around it.

    Raises:
        DataError: It is none, or empty without being allowed to.
    """
    if not isinstance(found, str) or not (may_be_empty or found.strip()):
        raise DataError(f"{where}: {name!r} must be a text, found {found!r}")
    return found.strip()


def _seconds(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise DataError(f"{where}: {name} needs seconds as finite numbers, found {value!r}")
    return float(value)
