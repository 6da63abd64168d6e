"""The source ``videochat2_it``: VideoChat2-IT as published, and data of one's own in that form.

A file is one JSON list; an entry has a medium and questions about it::

    {"video": "k710/abc.mp4", "start": 3.0, "end": 9.5,
     "QA": [{"i": "Look closely at the video.", "q": "What is the man doing?", "a": "Climbing."},
            {"q": "Where?", "a": "On a wall."}]}

Source: OpenGVLab/Ask-Anything, video_chat2: ``dataset/it_dataset_mistral.py``. We differ in two
points: turns go to the template of whatever backbone the recipe names, and an entry whose first
question has no instruction after shuffling takes the first one there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tpokit
from tpokit.data.lines import media_folder
from tpokit_videochat2.instruction_file import InstructionFile
from tpokit_videochat2.instruction_options import InstructionOptions

_KINDS = ("image", "video")
_TEXTS = {"i": "instruction", "q": "question", "a": "answer"}
_MEDIA_MARKS = ("<image>", "<video>")


class VideoChat2Instructions(tpokit.DataSource):
    """Samples in the order of the file; an entry is parsed when it is read."""

    Options = InstructionOptions

    def __init__(self, options: InstructionOptions, folder: Path) -> None:
        """Index the file and check its first entry; see `DataSource`."""
        self._options = options
        self._file = InstructionFile(folder / options.annotations)
        self._root = media_folder(folder, options.media_root, self._file.path)
        self._parts(0)

    def __len__(self) -> int:
        return len(self._file)

    def read(self, index: int, random: np.random.Generator) -> tpokit.Sample:
        """See `DataSource.read`; drawn is the order of the questions."""
        options = self._options
        medium, pairs = self._parts(index)
        if options.shuffle:
            pairs = [pairs[place] for place in random.permutation(len(pairs))]
        instruction = next((pair.instruction for pair in pairs if pair.instruction), "")
        turns = []
        if instruction and options.instruction == "keep":
            turns.append(tpokit.Turn("system", instruction))
        for pair in pairs[: options.turns_max]:
            turns += [tpokit.Turn("user", pair.question), tpokit.Turn("assistant", pair.answer)]
        return tpokit.Sample(f"entry-{index + 1}", tuple(turns), (medium,))

    def _parts(self, index: int) -> tuple[tpokit.Media, list[_Pair]]:
        entry, where = self._file.read(index), self._file.place(index)
        return self._medium(entry, where), _pairs(entry, where)

    def _medium(self, entry: Mapping[str, Any], where: str) -> tpokit.Media:
        named = [kind for kind in _KINDS if kind in entry]
        if len(named) != 1:
            found = "both" if named else ", ".join(sorted(entry)) or "nothing"
            raise tpokit.DataError(f"{where}: needs either 'image' or 'video', found {found}")
        (kind,), wanted = named, self._options.kind
        if wanted not in (None, kind):
            raise tpokit.DataError(f"{where}: is about {kind!r}, but the option kind says {wanted}")
        if not isinstance(entry[kind], str) or not entry[kind]:
            raise tpokit.DataError(f"{where}: {kind!r} must be a path, found {entry[kind]!r}")
        path = self._root / entry[kind]
        if kind == "image":
            return tpokit.Media("image", path)
        start_s, end_s = (_seconds(entry, key, where) for key in ("start", "end"))
        if end_s is not None and end_s <= (start_s or 0.0):
            raise tpokit.DataError(
                f"{where}: 'end' = {end_s:g} must be later than 'start' = {start_s or 0.0:g}"
            )
        # one list may hold files and folders of frames, and a file says its own rate
        rate = self._options.rate
        return tpokit.Media("video", path, start_s, end_s, rate if rate and path.is_dir() else None)


@dataclass(frozen=True)
class _Pair:
    """A question and its answer, and the instruction if the pair has one."""

    instruction: str
    question: str
    answer: str


def _pairs(entry: Mapping[str, Any], where: str) -> list[_Pair]:
    if "QA" not in entry:
        raise tpokit.DataError(f"{where}: 'QA' is missing; it lists questions 'q' and answers 'a'")
    found = entry["QA"]
    found = [found] if isinstance(found, Mapping) else found  # as users write a single one
    if not isinstance(found, list) or not found:
        raise tpokit.DataError(
            f"{where}: 'QA' must be a list with at least one {{q, a}}, found {found!r:.60}"
        )
    return [_pair(pair, f"{where}, QA {number}") for number, pair in enumerate(found, start=1)]


def _pair(pair: Any, where: str) -> _Pair:
    if not isinstance(pair, Mapping) or not {"q", "a"} <= set(pair):
        raise tpokit.DataError(
            f"{where}: needs 'q' (a question, may be empty) and 'a' (its answer), "
            f"found {pair!r:.60}"
        )
    texts = {key: _text(pair.get(key, ""), key, where) for key in _TEXTS}
    if not texts["a"]:
        raise tpokit.DataError(f"{where}: 'a', the answer, is empty: there is nothing to learn")
    return _Pair(texts["i"], texts["q"], texts["a"])


def _text(text: Any, key: str, where: str) -> str:
    """One of the texts, without blanks around it."""
    if not isinstance(text, str):
        raise tpokit.DataError(
            f"{where}: {key!r}, the {_TEXTS[key]}, must be a text, found {text!r}"
        )
    for media_mark in _MEDIA_MARKS:
        if media_mark in text:  # the encoder would take it for the place of the medium
            raise tpokit.DataError(
                f"{where}: {key!r}, the {_TEXTS[key]}, holds {media_mark}; the medium comes in "
                "front of the first question by itself, so take that out"
            )
    return text.strip()


def _seconds(entry: Mapping[str, Any], key: str, where: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise tpokit.DataError(f"{where}: {key!r} must be seconds from 0, found {value!r}")
    return float(value)
