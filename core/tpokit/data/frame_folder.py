"""A video as a folder with one image for each frame, the way many data sets hold theirs.

It is read like a video file: by seconds, forward, and only wanted frames are decoded. What a file
says itself, when a frame is shown, follows here from the rate: frame k is shown from k / rate
seconds until the next one.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from tpokit.data.image import read_image
from tpokit.data.video import Shown, gathered
from tpokit.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png")
"""Files that are frames; anything else in the folder is left alone."""
_SLACK_S = 1e-6  # rounding of times


class FrameFolder:
    """A folder of frames; read as `tpokit.data.video.Video` is.

    Attributes:
        path: The folder.
        duration_s: Frames divided by their rate.
    """

    def __init__(self, path: Path, rate: float, limit_s: float) -> None:
        """List the frames; none is opened.

        Args:
            path: The folder. Frames are in the order of their names, in which numbers count as
                numbers: 9.jpg stands before 10.jpg.
            rate: Frames a second.
            limit_s: Longest that reading may take, in seconds; looked at between two frames.

        Raises:
            DataError: The rate is no positive number, or the folder holds no frame.
        """
        if not (math.isfinite(rate) and rate > 0):
            raise DataError(f"{path}: {rate:g} frames a second; the rate must be above 0")
        self.path = path
        self._rate = rate
        self._limit_s = limit_s
        self.renew_limit()
        self._names = frame_names(path)
        self._size: tuple[int, int] | None = None  # height and width of the first that was read
        self._first = ""
        self.duration_s = len(self._names) / rate

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is held open."""

    def renew_limit(self) -> None:
        """Count the time that reading may take from now on."""
        self._deadline = time.monotonic() + self._limit_s

    def frames(self, times_s: Sequence[float]) -> Shown:
        """The last frame at or before each time.

        Args:
            times_s: At least one, in rising order.

        Raises:
            DataError: A frame is broken or of another size than the others, or the time is up.
        """
        return gathered(self.at(times_s), len(times_s))

    def at(self, times_s: Sequence[float]) -> Iterator[tuple[float, np.ndarray]]:
        """The same frames one by one; those that stand for several times are read once.

        Yields:
            When a frame begins, in seconds, and its pixels ``[h, w, 3]``.
        """
        here, pixels = -1, np.empty(0)
        for at_s in times_s:
            place = self._place(at_s)
            if place != here:
                here, pixels = place, self._read(place)
            yield place / self._rate, pixels

    def every(self, start_s: float, end_s: float) -> Iterator[tuple[float, np.ndarray]]:
        """The frame that is shown at ``start_s`` and all that begin after it and before ``end_s``,
        in the form of `at`.
        """
        for place in range(self._place(start_s), len(self._names)):
            if place / self._rate >= end_s - _SLACK_S:
                return
            yield place / self._rate, self._read(place)

    def _place(self, at_s: float) -> int:
        return min(max(math.floor((at_s + _SLACK_S) * self._rate), 0), len(self._names) - 1)

    def _read(self, place: int) -> np.ndarray:
        if time.monotonic() > self._deadline:
            raise DataError(f"{self.path}: decoding took longer than {self._limit_s:g} s, given up")
        name = self._names[place]
        pixels = read_image(self.path / name)
        height, width = pixels.shape[:2]
        if self._size is None:
            self._size, self._first = (height, width), name
        if (height, width) != self._size:
            raise DataError(
                f"{self.path / name}: a frame of {width} x {height} pixels, but {self._first} has "
                f"{self._size[1]} x {self._size[0]}; frames of one video are of one size"
            )
        return pixels


def frame_names(path: Path) -> list[str]:
    """Names of the frames of a folder, in the order in which they are shown: the k-th one from
    k / rate seconds on. Numbers in names count as numbers; hidden files are none.

    Raises:
        DataError: It cannot be read, or holds no frame.
    """
    try:
        found = os.listdir(path)  # noqa: PTH208 - names are all that is wanted, often thousands
    except OSError as cause:
        raise DataError(f"{path}: cannot be read as a folder of frames: {cause}") from cause
    names = [name for name in found if name.lower().endswith(SUFFIXES) and name[0] != "."]
    if not names:
        raise DataError(f"{path}: a folder without frames; it must hold {', '.join(SUFFIXES)}")
    return sorted(names, key=_order)


def _order(name: str) -> tuple[list[str | int], str]:
    """Words and numbers in turns, so that like is compared with like."""
    pieces = re.split(r"([0-9]+)", name)
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)], name
