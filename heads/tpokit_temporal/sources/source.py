"""From a published file of sentences to samples: what all sources of moments have in common.

A sample asks for the moments of one sentence. Its annotation of the task ``temporal``, which is
also what JSONL of one's own has to give::

    {"moments_s": [[24.3, 30.4]],      start and end in seconds of each moment
     "saliency": [0, 7, 12, 3],        how much each clip is worth seeing; absent if not known
     "clip_s": 2.0,                    seconds of such a clip
     "saliency_max": 12.0,             the value that counts as 1
     "video": "AB12C",                 samples of the same name may show the same thing
     "query": "a person opens a door", the sentence
     "query_id": "7",                  names it, for features of sentences that are made beforehand
     "duration_s": 30.96}              length of the video, if the annotations say it
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tpokit.data.lines import media_folder
from tpokit.errors import DataError
from tpokit.interfaces import DataSource
from tpokit.types import Media, Sample, Turn
from tpokit_temporal.sources.durations import read_durations
from tpokit_temporal.sources.options import MomentOptions
from tpokit_temporal.sources.queries import Query, screen

_log = logging.getLogger(__name__)


class Entries(Protocol):
    """The entries of a file, such as `tpokit.data.lines.JsonLines`.

    Attributes:
        path: The file.
    """

    path: Path

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def read(self, index: int) -> Any:
        """One entry."""

    def place(self, index: int) -> str:
        """File and number of an entry, for messages."""


class MomentSource(DataSource):
    """Samples in the order of the file.

    Every entry is checked once, when the file is opened (12 000 lines in 0.3 s). What is not in the
    format is an error. What the published files are known to contain is left out, counted, and said
    in one warning: moments that are reversed, outside the video or without length (unless
    ``shortest_s`` widens them), and entries with an empty query or without a moment that is left.
    A moment that begins before or ends behind the video is cut to it.
    """

    Options = MomentOptions

    def __init__(self, options: MomentOptions, folder: Path) -> None:
        """Open and check the file; see `DataSource`."""
        self._options = options
        self._durations = (
            None if options.durations is None else read_durations(folder / options.durations)
        )
        self._entries = self._open(folder / options.annotations)
        self._root = media_folder(folder, options.media_root, self._entries.path)
        self._used = self._check_all()

    @abstractmethod
    def _open(self, path: Path) -> Entries:
        """The entries of the file."""

    @abstractmethod
    def _read(self, entry: Any, index: int) -> Query:
        """The ``index``-th entry, its moments as they stand there."""

    def _file(self, video: str) -> str:
        """Path of a video below the folder of media."""
        return self._options.video_file.replace("{video}", video)

    def __len__(self) -> int:
        return len(self._used)

    def read(self, index: int, random: np.random.Generator) -> Sample:
        """See `DataSource.read`."""
        place = int(self._used[index])
        query, _ = self._query(self._entries.read(place), place)
        return Sample(
            id=query.id,
            turns=_turns(query, self._options, random),
            media=(Media("video", self._root / self._file(query.video), end_s=query.end_s),),
            targets={"temporal": (_annotation(query),)},
        )

    def _query(self, entry: Any, index: int) -> tuple[Query, list[str]]:
        query = self._read(entry, index)
        duration_s = self._duration(query, index)
        if duration_s is not None and query.end_s is not None:
            duration_s = min(duration_s, query.end_s)
        query = replace(query, duration_s=duration_s)
        return screen(query, self._options.shortest_s)

    def _duration(self, query: Query, index: int) -> float | None:
        if self._durations is None:
            return query.duration_s
        found = self._durations.get(query.video, query.duration_s)
        if found is None:
            raise DataError(
                f"{self._entries.place(index)}: the length of the video {query.video!r} is not in "
                f"{self._options.durations}"
            )
        return found

    def _check_all(self) -> np.ndarray:
        """Indices of the entries that can be used."""
        used: list[int] = []
        counts: Counter[str] = Counter()
        first: dict[str, str] = {}
        for index, entry in enumerate(self._entries):
            query, faults = self._query(entry, index)
            counts.update(faults)
            for fault in faults:
                first.setdefault(fault, self._entries.place(index))
            if query.text and query.moments_s:
                used.append(index)
        found = "; ".join(
            f"{count} x {fault} (first: {first[fault]})" for fault, count in counts.items()
        )
        if not used:
            raise DataError(f"{self._entries.path}: no entry can be used: {found}")
        if found:
            _log.warning(
                "%s: %d of %d entries are used. Dropped: %s",
                self._entries.path,
                len(used),
                len(self._entries),
                found,
            )
        return np.array(used, dtype=np.int64)


def _turns(query: Query, options: MomentOptions, random: np.random.Generator) -> tuple[Turn, ...]:
    question = options.questions[int(random.integers(len(options.questions)))]
    answer = options.answers[int(random.integers(len(options.answers)))]
    seconds = " and ".join(f"{start_s:.1f}-{end_s:.1f}" for start_s, end_s in query.moments_s)
    answer = answer.replace("{seconds}", seconds)  # first: a sentence may hold anything
    return (
        Turn("user", question.replace("{query}", query.text)),
        Turn("assistant", answer.replace("{query}", query.text)),
    )


def _annotation(query: Query) -> dict[str, Any]:
    found: dict[str, Any] = {
        "moments_s": [list(moment) for moment in query.moments_s],
        "video": query.origin,
        "query": query.text,
        "query_id": query.id,
    }
    if query.duration_s is not None:
        found["duration_s"] = query.duration_s
    if query.saliency is not None:
        found["saliency"] = list(query.saliency.values)
        found["clip_s"] = query.saliency.clip_s
        found["saliency_max"] = query.saliency.maximum
    return found
