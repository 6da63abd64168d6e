"""A JSON list of objects of any length, of which only the places of its entries are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import tpokit
from tpokit.data.lines import existing_file, json_object
from tpokit.data.places import places_in

_CHUNK = 1 << 20  # bytes that are read at once
_ENTRY_MAX = 1 << 26  # bytes after which an entry without an end is taken as broken
_BLANKS = " \t\r\n"
_MARK = "\xef\xbb\xbf"  # of UTF-8, in Latin-1


class InstructionFile:
    """Entries of a JSON list, each parsed when it is read: 16 bytes an entry in a data worker.

    The whole file is parsed once, entry by entry, when it is opened first, so that what is no JSON
    is found before a run starts; then its places are known. It is opened again for each reading: a
    handle shared by forked workers would share its position.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        """Find the entries.

        Raises:
            DataError: There is no such file, or it is no JSON list of objects, or the list is
                empty.
        """
        self.path = path
        self._places = places_in(existing_file(path), "JSON list 1", _places)
        if not len(self._places):
            raise tpokit.DataError(f"{path}: the list is empty")

    def __len__(self) -> int:
        return len(self._places)

    def place(self, index: int) -> str:
        """File and number of an entry, for messages."""
        return _place(self.path, index)

    def read(self, index: int) -> dict[str, Any]:
        """The ``index``-th entry.

        Raises:
            DataError: It is not UTF-8.
        """
        offset, length = self._places[index].tolist()
        with self.path.open("rb") as file:
            file.seek(offset)
            return json_object(file.read(length), self.place(index))


def _places(path: Path) -> np.ndarray:
    """Offset and length of each entry in bytes, ``[entries, 2]``."""
    with path.open("rb") as file:
        return np.fromiter(_Reader(path, file).places(), dtype=(np.int64, 2))


class _Reader:
    """Goes through a JSON list in chunks.

    Its bytes are taken as Latin-1, where a character is a byte: JSON's own signs are the same there
    as in UTF-8, and so a place in the text is one in the file.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._text, self._at = "", 0  # what was read and not dropped yet, and the place in it
        self._dropped = 0  # bytes in front of it
        self._ended = False
        self._decoder = json.JSONDecoder()

    def places(self) -> Iterator[tuple[int, int]]:
        """Offset and length of each entry in bytes."""
        self._more()
        if self._text.startswith(_MARK):
            self._at = len(_MARK)
        if self._next() != "[":
            raise tpokit.DataError(
                f"{self._path}: expected a JSON list of entries, found {self._found()}"
            )
        self._at += 1
        count = 0
        while count or self._next() != "]":
            yield self._entry(count)
            sign = self._next()
            if sign not in ("]", ","):
                raise self._broken(count, "',' or ']' must follow it")
            if sign == "]":
                break
            self._at += 1
            count += 1
        self._at += 1
        if self._next():
            raise tpokit.DataError(f"{self._path}: this is not JSON: there is more behind the list")

    def _entry(self, index: int) -> tuple[int, int]:
        if self._next() != "{":
            raise self._broken(index, "an object is expected")
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as cause:
                if self._ended or len(self._text) - self._at > _ENTRY_MAX:
                    byte = self._dropped + cause.pos
                    reason = f"this is not JSON ({cause.msg}, byte {byte} of the file)"
                    raise tpokit.DataError(f"{_place(self._path, index)}: {reason}") from cause
                self._more()
            else:
                found = self._dropped + self._at, end - self._at
                self._at = end
                return found

    def _next(self) -> str:
        """The next character that is not blank, where the reader then stands; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _BLANKS:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._more()

    def _more(self) -> None:
        """Read on; as much again as is left, so that a long entry is not tried too often."""
        left = self._text[self._at :]
        chunk = self._file.read(max(_CHUNK, len(left)))
        self._ended = not chunk
        self._dropped += self._at
        self._text, self._at = left + chunk.decode("latin-1"), 0

    def _broken(self, index: int, wanted: str) -> tpokit.DataError:
        return tpokit.DataError(f"{_place(self._path, index)}: {wanted}, found {self._found()}")

    def _found(self) -> str:
        return repr(self._next()) if self._next() else "the end of the file"


def _place(path: Path, index: int) -> str:
    return f"{path}, entry {index + 1}"
