"""DiDeMo: a JSON list of descriptions, each with the moments that several annotators gave.

``{"annotation_id": 5, "video": "u@n_123_abc.mov", "description": "the dog runs", "num_segments": 6,
"times": [[1, 1], [1, 1], [0, 1], [1, 2]]}``: a moment is the first and the last of its chunks of 5
seconds, both inclusive. Only the first 30 seconds of a video are meant (or as many chunks as
``num_segments`` says); the last chunk may be shorter.

Source: Hendricks et al., ICCV 2017 (LisaAnne/LocalizingMoments).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tpokit.data.lines import JsonLines, JsonList, json_entries
from tpokit.errors import DataError
from tpokit_temporal.sources.options import DidemoOptions
from tpokit_temporal.sources.queries import MomentS, Query, read_text
from tpokit_temporal.sources.source import MomentSource

_CHUNK_S = 5.0
_CHUNKS = 6
_AGREES = 0.5  # IoU from which on an annotator agrees with another


class DidemoSource(MomentSource):
    """The list is held in memory: a JSON list cannot be read in part."""

    Options = DidemoOptions
    _options: DidemoOptions

    def _open(self, path: Path) -> JsonLines | JsonList:
        return json_entries(path)

    def _file(self, video: str) -> str:
        return super()._file(video).replace("{stem}", PurePosixPath(video).stem)

    def _read(self, entry: Mapping[str, Any], index: int) -> Query:
        where = self._entries.place(index)
        chunks = entry.get("num_segments", _CHUNKS)
        if not isinstance(chunks, int) or chunks < 1:
            raise DataError(f"{where}: num_segments must be a whole number from 1, found {chunks}")
        found = entry.get("times")
        if not isinstance(found, list):
            raise DataError(
                f"{where}: no 'times'; without labels a set can be neither trained nor scored on"
            )
        given = [_moment_s(pair, where) for pair in found]
        video = read_text(entry.get("video"), "video", where)
        return Query(
            id=str(entry.get("annotation_id", f"entry-{index + 1}")),
            text=read_text(entry.get("description"), "description", where, may_be_empty=True),
            video=video,
            origin=video,
            moments_s=(agreed_moment(given, self._options.annotator),) if given else (),
            end_s=chunks * _CHUNK_S,
        )


def agreed_moment(given: list[MomentS], annotator: str) -> MomentS:
    """One moment from those of several annotators; see `DidemoOptions`."""
    times = Counter(given)
    # of equals the one that was given first, so that the choice does not depend on hashing
    chosen = max(times, key=lambda one: (times[one], sum(_iou(one, other) for other in given)))
    if annotator == "frequent":
        return chosen
    agreeing = [one for one in given if _iou(one, chosen) >= _AGREES]
    starts, ends = zip(*agreeing, strict=True)
    return sum(starts) / len(starts), sum(ends) / len(ends)


def _moment_s(pair: Any, where: str) -> MomentS:
    if (
        not isinstance(pair, list)
        or len(pair) != 2
        or not all(isinstance(chunk, int) and chunk >= 0 for chunk in pair)
    ):
        raise DataError(
            f"{where}: 'times' are [first, last] numbers of chunks from 0, found {pair!r}"
        )
    first, last = pair
    # reversed chunks must stay reversed, also where they are neighbours
    return first * _CHUNK_S, (last + 1 if last >= first else last) * _CHUNK_S


def _iou(one: MomentS, other: MomentS) -> float:
    overlap = min(one[1], other[1]) - max(one[0], other[0])
    hull = max(one[1], other[1]) - min(one[0], other[0])
    return max(overlap, 0.0) / hull if hull > 0 else 0.0
