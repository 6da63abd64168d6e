"""Tables of the lengths of videos, which some sets publish beside their annotations, others not."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpokit.data.lines import existing_file, json_document
from tpokit.errors import DataError
from tpokit_temporal.sources.queries import read_duration

_NAMES = ("id", "vid", "video", "video_id")
_LENGTHS = ("length", "duration", "duration_s", "seconds")


def read_durations(path: Path) -> dict[str, float]:
    """Name of a video to its length in seconds.

    Args:
        path: JSON (an object of numbers, or of objects with ``duration``), CSV with a header (one
            column ``id``, ``vid``, ``video`` or ``video_id`` and one ``length``, ``duration``,
            ``duration_s`` or ``seconds``), or lines of name and seconds with a blank, a tab or a
            comma between.

    Raises:
        DataError: The file is missing, in none of these forms, or a length is not above 0.
    """
    return _from_json(path) if path.suffix == ".json" else _from_rows(path)


def _from_json(path: Path) -> dict[str, float]:
    found = json_document(path)
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected an object of video to seconds, found {found!r:.60}")
    return {
        video: read_duration(_length(value), f"{path}, {video}") for video, value in found.items()
    }


def _length(value: Any) -> Any:
    return value.get("duration") if isinstance(value, Mapping) else value


def _from_rows(path: Path) -> dict[str, float]:
    try:
        text = existing_file(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as cause:
        raise DataError(f"{path}: this is not UTF-8 ({cause})") from cause
    lines = text.splitlines(keepends=True)  # a cell between quotes may hold an end of line
    rows = csv.reader(lines) if "," in text else (line.split() for line in lines)
    lengths: dict[str, float] = {}
    columns: tuple[int, int] | None = None
    for number, cells in enumerate(rows, start=1):
        if columns is None:
            columns = _columns(cells)
            if columns is not None:
                continue
            columns = (0, 1)
        if cells:
            video, length = _row(cells, columns, f"{path}, row {number}")
            lengths[video] = length
    if not lengths:
        raise DataError(f"{path}: there is no row with a video and its seconds")
    return lengths


def _columns(header: Sequence[str]) -> tuple[int, int] | None:
    """Where name and length stand, if this is a header."""
    names = [cell.strip().lower() for cell in header]
    name = next((names.index(known) for known in _NAMES if known in names), None)
    length = next((names.index(known) for known in _LENGTHS if known in names), None)
    return None if name is None or length is None else (name, length)


def _row(cells: Sequence[str], columns: tuple[int, int], where: str) -> tuple[str, float]:
    if len(cells) <= max(columns):
        raise DataError(f"{where}: expected a video and its seconds, found {list(cells)}")
    try:
        length = float(cells[columns[1]])
    except ValueError as cause:
        raise DataError(f"{where}: {cells[columns[1]]!r} is no number of seconds") from cause
    return cells[columns[0]].strip(), read_duration(length, where)
