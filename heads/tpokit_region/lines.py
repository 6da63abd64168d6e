"""Files with one JSON object a line, read by line without holding them in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tpokit.errors import DataError


class JsonLines:
    """A JSONL file of which only the places of its lines are kept (16 bytes each).

    The file is opened for each reading: a handle shared by forked workers would share its position.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        """Find the lines that are not blank.

        Raises:
            DataError: There is no such file, or nothing in it.
        """
        self.path = path
        places = np.fromiter(_places(existing_file(path)), dtype=(np.int64, 2))
        if not len(places):
            raise DataError(f"{path}: the file is empty; it needs one JSON object a line")
        self._offsets, self._lines = places.T

    def __len__(self) -> int:
        return len(self._offsets)

    def place(self, index: int) -> str:
        """File and line of an entry, for messages."""
        return f"{self.path}, line {self._lines[index]}"

    def read(self, index: int) -> dict[str, Any]:
        """The object on the ``index``-th line that is not blank.

        Raises:
            DataError: The line is no JSON object.
        """
        with self.path.open("rb") as file:
            file.seek(int(self._offsets[index]))
            line = file.readline()
        return json_object(line, self.place(index))


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


def json_object(text: bytes | str, place: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: It is not JSON, or no object.
    """
    try:
        found = json.loads(text)
    except ValueError as cause:  # bad JSON and bad UTF-8
        raise DataError(f"{place}: this is not JSON ({cause})") from cause
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
