"""Text files of tracking sets: names, boxes and flags.

Numbers may stand between commas, tabs or blanks: re-releases differ.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from tpokit.data.boxes import Corners
from tpokit.data.lines import TextLines
from tpokit.errors import DataError

_BETWEEN = re.compile(r"[,\s]+")


def read_names(path: Path) -> list[str]:
    """Names of sequences, one a line.

    Raises:
        DataError: There is no such file, nothing in it, or it is not UTF-8.
    """
    return list(TextLines(path))


def read_boxes(path: Path, size: tuple[int, int]) -> list[Corners | None]:
    """Boxes of the frames of a sequence as fractions of the image; ``None`` where there is none.

    Args:
        path: Lines of x, y, width, height in pixels, from the first pixel as 0. What leaves the
            image is cut off; a box without area in the image is none.
        size: Height and width of the image in pixels.

    Raises:
        DataError: A line has something else.
    """
    lines = TextLines(path)
    return [_box(line, size, lines.place(index)) for index, line in enumerate(lines)]


def read_flags(path: Path, count: int) -> list[bool]:
    """Whether a number is above 0, one for each of ``count`` frames, on one line or several.

    Raises:
        DataError: There are more or fewer, or something else.
    """
    lines = TextLines(path)
    numbers = [
        number for index, line in enumerate(lines) for number in _numbers(line, lines.place(index))
    ]
    if len(numbers) != count:
        raise DataError(f"{path}: has {len(numbers)} flags for {count} frames")
    return [number > 0 for number in numbers]


def _box(line: str, size: tuple[int, int], where: str) -> Corners | None:
    numbers = _numbers(line, where)
    if len(numbers) != 4:
        raise DataError(f"{where}: expected x, y, width, height in pixels, found {line!r:.80}")
    x, y, width, height = numbers
    x0, x1 = _inside(x, x + width, size[1])
    y0, y1 = _inside(y, y + height, size[0])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _inside(low: float, high: float, limit: int) -> tuple[float, float]:
    return max(low, 0.0) / limit, min(high, float(limit)) / limit


def _numbers(line: str, where: str) -> list[float]:
    try:
        found = [float(text) for text in _BETWEEN.split(line.strip(", \t"))]
    except ValueError as cause:
        raise DataError(f"{where}: expected numbers, found {line!r:.80}") from cause
    if not all(map(math.isfinite, found)):
        raise DataError(f"{where}: a number is not finite in {line!r:.80}")
    return found
