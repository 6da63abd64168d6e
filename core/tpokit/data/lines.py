"""Files of annotations for data sources: entries that are found again without holding them all.

`JsonLines` and `TextLines` know the places of lines and read a line when it is asked for. Of a
large file the places are kept on disk (`tpokit.data.places`), so that a table of millions of rows
costs neither time at a start nor memory in each data worker. `JsonList` holds a JSON list,
which cannot be read in part. All have the same doors: ``len``, ``read(index)``, ``place(index)``
for messages, and iteration, which goes through the file once.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tpokit.data.places import places_in
from tpokit.errors import DataError

_BLOCK = 1 << 24  # bytes that are looked through at once
_LINE_END = ord("\n")
_IS_BLANK = np.array([bytes([byte]).isspace() for byte in range(256)])


class _Lines:
    """A text file of which only the places of its lines are kept (8 bytes each).

    The file stays open and is read at given places: forked workers, which share the handle, would
    otherwise share its position.
    """

    _needs: ClassVar[str]

    def __init__(self, path: Path) -> None:
        """Find the lines that are not blank.

        Raises:
            DataError: There is no such file, or nothing in it.
        """
        self.path = path
        self._places = places_in(existing_file(path), "lines 1", _line_places)
        if not len(self):
            raise DataError(f"{path}: the file is empty; it needs {self._needs}")
        self._handle: int | None = None

    def __len__(self) -> int:
        return len(self._places) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}  # another process opens the file itself

    def place(self, index: int) -> str:
        """File and line of an entry, for messages."""
        line = self._places[index, 1] if self._places.shape[1] > 1 else index + 1
        return f"{self.path}, line {line}"

    def _line(self, index: int) -> bytes:
        """The line, with the blank ones behind it."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} entries, there is no entry {index}")
        start, end = self._places.item(index, 0), self._places.item(index + 1, 0)
        before = min(
            start, 1
        )  # the end of the line before is read too: is the file still the same?
        found = os.pread(self._open(), before + end - start, start - before)
        if len(found) != before + end - start or (before and found[0] != _LINE_END):
            raise DataError(f"{self.place(index)}: the file has changed since it was opened")
        return found[before:]

    def _open(self) -> int:
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._handle)
        return self._handle

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from (line for line in file if not line.isspace())


class JsonLines(_Lines):
    """A file with one JSON object a line; blank lines do not count.

    Attributes:
        path: The file.
    """

    _needs = "one JSON object a line"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index, line in enumerate(self._lines()):
            yield json_object(line, self.place(index))

    def read(self, index: int) -> dict[str, Any]:
        """The object on the ``index``-th line.

        Raises:
            DataError: The line is no JSON object.
        """
        return json_object(self._line(index), self.place(index))


class TextLines(_Lines):
    """A UTF-8 file with one entry a line; blank lines do not count.

    Attributes:
        path: The file.
    """

    _needs = "one entry a line"

    def __iter__(self) -> Iterator[str]:
        for index, line in enumerate(self._lines()):
            yield self._text(line, index)

    def read(self, index: int) -> str:
        """The ``index``-th line, without blanks around it.

        Raises:
            DataError: The line is not UTF-8.
        """
        return self._text(self._line(index), index)

    def _text(self, line: bytes, index: int) -> str:
        try:
            return line.decode("utf-8-sig").strip()
        except UnicodeDecodeError as cause:
            raise DataError(f"{self.place(index)}: this is not UTF-8 ({cause})") from cause


class JsonList:
    """A JSON list of objects, held in memory.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        """Read the whole file.

        Raises:
            DataError: There is no such file, it is no JSON list, or the list is empty.
        """
        self.path = path
        entries = json_document(path)
        if not isinstance(entries, list):
            raise DataError(f"{path}: expected a JSON list, found {type(entries).__name__}")
        if not entries:
            raise DataError(f"{path}: the list is empty")
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.read(index) for index in range(len(self)))

    def place(self, index: int) -> str:
        """File and number of an entry, for messages."""
        return f"{self.path}, entry {index + 1}"

    def read(self, index: int) -> dict[str, Any]:
        """The ``index``-th object.

        Raises:
            DataError: The entry is no object.
        """
        return _checked_object(self._entries[index], self.place(index))


def json_entries(path: Path) -> JsonLines | JsonList:
    """The objects of a file that is either one JSON list or one JSON object a line.

    Raises:
        DataError: As in those classes.
    """
    with existing_file(path).open("rb") as file:
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    return JsonList(path) if start[:1] == b"[" else JsonLines(path)


def json_document(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: There is no such file, or it is not JSON.
    """
    try:
        return json.loads(existing_file(path).read_bytes())
    except ValueError as cause:  # bad JSON and bad UTF-8
        raise DataError(f"{path}: this is not JSON ({cause})") from cause


def json_object(text: bytes | str, place: str) -> dict[str, Any]:
    """A JSON object from its text; ``place`` is for messages.

    Raises:
        DataError: It is not JSON, or no object.
    """
    try:
        found = json.loads(text)
    except ValueError as cause:  # bad JSON and bad UTF-8
        raise DataError(f"{place}: this is not JSON ({cause})") from cause
    return _checked_object(found, place)


def existing_file(path: Path) -> Path:
    """The path, if it is a file.

    Raises:
        DataError: It is not.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    return path


def media_folder(folder: Path, wanted: Path | None, annotations: Path) -> Path:
    """Where the paths of media start from.

    Args:
        folder: Of the recipe.
        wanted: The option ``media_root``.
        annotations: Their folder is the default.

    Raises:
        DataError: There is no such folder.
    """
    root = annotations.parent if wanted is None else folder / wanted
    if not root.is_dir():
        raise DataError(f"media_root: there is no folder {root}")
    return root


def _checked_object(found: Any, place: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise DataError(f"{place}: expected a JSON object, found {type(found).__name__}")
    return found


def _line_places(path: Path) -> np.ndarray:
    """Offset in bytes of each line that is not blank, then the end of the file: ``[lines + 1, 1]``.

    With blank lines among them the number of each line, from 1, stands beside it.
    """
    found: list[np.ndarray] = []
    size = 0
    with path.open("rb", buffering=0) as file:
        begins = True  # the block begins with a line
        while block := file.read(_BLOCK):
            signs = np.frombuffer(block, np.uint8)
            ends = np.flatnonzero(signs == _LINE_END)
            starts = np.concatenate([np.zeros(int(begins), np.int64), ends + 1])
            begins = bool(signs[-1] == _LINE_END)
            starts = starts[: len(starts) - begins]
            found.append(np.stack([starts + size, _IS_BLANK[signs[starts]]]))
            size += len(block)
        offsets, doubtful = np.concatenate(found, axis=1) if found else np.zeros((2, 0), np.int64)
        blank = doubtful.astype(bool)  # so far: its first sign is
        for index in np.flatnonzero(blank).tolist():
            end = offsets[index + 1] if index + 1 < len(offsets) else size
            blank[index] = os.pread(
                file.fileno(), int(end - offsets[index]), offsets[index]
            ).isspace()
    numbers = np.flatnonzero(~blank) + 1
    places = np.append(offsets[~blank], size)[:, None]
    if blank.any():
        places = np.column_stack([places, np.append(numbers, 0)])
    return places
