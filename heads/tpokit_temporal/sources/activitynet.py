"""ActivityNet Captions: a JSON object of videos, each with sentences and their moments.

``{"v_abc": {"duration": 82.7, "timestamps": [[0.8, 19.9]], "sentences": [" A man sits."]}}``: one
sample for each sentence. Some moments there are reversed, sentences have leading blanks.

Source: Krishna et al., ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpokit.data.lines import json_document
from tpokit.errors import DataError
from tpokit_temporal.sources.options import MomentOptions
from tpokit_temporal.sources.queries import Query, read_duration, read_moment, read_text
from tpokit_temporal.sources.source import MomentSource


@dataclass(frozen=True, slots=True)
class _Sentence:
    """One sentence of a video: its number there, and what the file says of it."""

    video: str
    number: int
    duration: Any
    moment: Any
    text: Any


class ActivitynetSource(MomentSource):
    """The file is held in memory: a JSON object cannot be read in part."""

    Options = MomentOptions

    def _open(self, path: Path) -> _Sentences:
        return _Sentences(path)

    def _read(self, entry: _Sentence, index: int) -> Query:
        where = self._entries.place(index)
        return Query(
            id=f"{entry.video}-{entry.number}",
            text=read_text(entry.text, "sentences", where, may_be_empty=True),
            video=entry.video,
            origin=entry.video,
            moments_s=(read_moment(entry.moment, where),),
            duration_s=read_duration(entry.duration, where),
        )


class _Sentences:
    """The sentences of all videos, in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        videos = json_document(path)
        if not isinstance(videos, dict):
            raise DataError(
                f"{path}: expected an object of videos, found {type(videos).__name__}; each has "
                "'duration', 'timestamps' and 'sentences'"
            )
        self._sentences = [
            sentence
            for video, entry in videos.items()
            for sentence in _sentences(video, entry, f"{path}, video {video}")
        ]
        if not self._sentences:
            raise DataError(f"{path}: there is no sentence")

    def __len__(self) -> int:
        return len(self._sentences)

    def __iter__(self) -> Iterator[_Sentence]:
        return iter(self._sentences)

    def read(self, index: int) -> _Sentence:
        """The ``index``-th sentence."""
        return self._sentences[index]

    def place(self, index: int) -> str:
        """File, video and number of a sentence from 1, for messages."""
        sentence = self._sentences[index]
        return f"{self.path}, video {sentence.video}, sentence {sentence.number + 1}"


def _sentences(video: str, entry: Any, where: str) -> Iterator[_Sentence]:
    found = entry if isinstance(entry, Mapping) else {}
    moments, texts = found.get("timestamps"), found.get("sentences")
    if not isinstance(moments, list) or not isinstance(texts, list):
        raise DataError(f"{where}: needs 'duration', 'timestamps' and 'sentences'")
    if len(moments) != len(texts):
        raise DataError(f"{where}: has {len(moments)} timestamps for {len(texts)} sentences")
    for number, (moment, text) in enumerate(zip(moments, texts, strict=True)):
        yield _Sentence(video, number, found.get("duration"), moment, text)
