"""COCO's run lengths as they stand in annotations, checked before pycocotools sees them: it reads
past the end of broken ones, or gives a mask that nobody drew.

Run lengths count pixels column by column, in turn outside and inside the mask, outside first. As
text each is written in groups of 5 bits, from the third one on as the difference to the run two
before it.

Source: cocodataset/cocoapi, common/maskApi.c (rleFrString).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from tpokit.errors import DataError

Counts = str | tuple[int, ...]
Bools = NDArray[np.bool_]

_GROUPS_MAX = 10  # of one number; more would not fit into 64 bits


def decode_run_lengths(height_px: int, width_px: int, counts: Counts, where: str) -> Bools:
    """The mask ``[height_px, width_px]`` of run lengths.

    Args:
        height_px, width_px: Its size.
        counts: Text (compressed), or numbers.
        where: For messages.

    Raises:
        DataError: The text holds other characters or ends within a number, a run is negative, or
            the runs do not add up to the pixels of the mask.
    """
    runs = _read_text(counts, where) if isinstance(counts, str) else _read_numbers(counts, where)
    pixels = height_px * width_px
    # no run is longer than the mask, so that a sum of them cannot overflow
    faulty = np.flatnonzero((runs < 0) | (runs > pixels))
    if len(faulty):
        raise DataError(
            f"{where}: broken RLE: run {faulty[0] + 1} has {runs[faulty[0]]} pixels, but a mask of "
            f"{height_px} x {width_px} (height x width) has 0 to {pixels}"
        )
    total = int(runs.sum())
    if total != pixels:
        raise DataError(
            f"{where}: broken RLE: its runs add up to {total} pixels, but a mask of {height_px} x "
            f"{width_px} (height x width) has {pixels}"
        )
    plain = {"size": [height_px, width_px], "counts": [int(run) for run in runs]}
    return np.ascontiguousarray(
        coco.decode(coco.frPyObjects(plain, height_px, width_px)), dtype=bool
    )


def read_counts(counts: Any, where: str) -> Counts:
    """``counts`` of an annotation as text or whole numbers; runs are checked when decoded.

    Raises:
        DataError: It is something else, or has no run.
    """
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, str) and counts:
        return counts
    if isinstance(counts, list | tuple) and counts:
        for count in counts:
            if isinstance(count, bool) or not isinstance(count, int | np.integer):
                raise DataError(f"{where}: broken RLE: the run {count!r} is not a whole number")
        return tuple(int(count) for count in counts)
    raise DataError(
        f"{where}: broken RLE: counts are {counts!r:.60}; they are a text (compressed) or a list "
        "of whole numbers, one or more"
    )


def _read_numbers(counts: Sequence[int], where: str) -> NDArray[np.int64]:
    if max(map(abs, counts)) > sys.maxsize:
        raise DataError(f"{where}: broken RLE: a run has {max(counts, key=abs)} pixels")
    return np.array(counts, dtype=np.int64)


def _read_text(text: str, where: str) -> NDArray[np.int64]:
    """The runs ``[n]`` of compressed text, not yet known to make sense."""
    groups = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.int64) - ord("0")
    strange = np.flatnonzero((groups < 0) | (groups > 63))
    if len(strange):
        raise DataError(
            f"{where}: broken RLE: character {strange[0] + 1} is {text[strange[0]]!r}; compressed "
            "counts have characters from '0' to 'o'"
        )
    last = np.flatnonzero(groups < 32)  # bit 5: the number goes on
    if not len(last) or last[-1] != len(groups) - 1:
        raise DataError(f"{where}: broken RLE: the text ends within a number; is it cut off?")
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > _GROUPS_MAX:
        raise DataError(f"{where}: broken RLE: a number in the text is longer than any run")
    shifts = 5 * (np.arange(len(groups)) - np.repeat(first, lengths))
    runs = np.add.reduceat((groups & 31) << shifts, first)
    runs -= (groups[last] & 16) // 16 << (5 * lengths)  # bit 4 of the last group is the sign
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
