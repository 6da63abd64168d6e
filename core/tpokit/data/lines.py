"""Files of annotations for data sources: entries that are found again without holding them all.

`JsonLines` and `TextLines` keep the places of lines and read a line when it is asked for, so that
a table of millions of rows costs 16 bytes a row in each data worker. `JsonList` holds a JSON list,
which cannot be read in part. All have the same doors: ``len``, ``read(index)``, ``place(index)``
for messages, and iteration, which goes through the file once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tpokit.errors import DataError


class _Lines:
    """A text file of which only the places of its lines are kept (16 bytes each).

    The file is opened for each reading: a handle shared by forked workers would share its position.
    """

    _needs: ClassVar[str]

    def __init__(self, path: Path) -> None:
        """Find the lines that are not blank.

        Raises:
            DataError: There is no such file, or nothing in it.
        """
        self.path = path
        places = np.fromiter(_places(existing_file(path)), dtype=(np.int64, 2))
        if not len(places):
            raise DataError(f"{path}: the file is empty; it needs {self._needs}")
        self._offsets, self._numbers = places.T

    def __len__(self) -> int:
        return len(self._offsets)

    def place(self, index: int) -> str:
        """File and line of an entry, for messages."""
        return f"{self.path}, line {self._numbers[index]}"

    def _line(self, index: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(int(self._offsets[index]))
            return file.readline()

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


def _places(path: Path) -> Iterator[tuple[int, int]]:
    """Offset in bytes and number from 1 of each line that is not blank."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                yield offset, number
            offset += len(line)
