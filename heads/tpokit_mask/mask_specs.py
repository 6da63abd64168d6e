"""Masks as they stand in annotations: checked at once, decoded when they are looked at."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from tpokit.errors import DataError
from tpokit_mask.run_lengths import Bools, Counts, decode_run_lengths, read_counts

MASK_FORMS = (
    "{'rle': {'size': [h, w], 'counts': ...}}, {'polygons': [[x, y, x, y, x, y]], 'size': [h, w]}, "
    "{'png': path, 'values': [1]}, a list of these, or null for an object that is not visible"
)
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B")
_VALUES_MAX = 2**16 - 1


class MaskPart(ABC):
    """A mask in one form; a frozen dataclass, so that it can be hashed and sent to workers."""

    @abstractmethod
    def decode(self, height_px: int, width_px: int, where: str) -> Bools:
        """The mask ``[height_px, width_px]``.

        Args:
            height_px, width_px: Size of the medium.
            where: For messages.

        Raises:
            DataError: It is broken, missing or of another size.
        """


MaskSpec = tuple[MaskPart, ...]
"""The union of its parts; at least one."""


@dataclass(frozen=True)
class RunLengths(MaskPart):
    """COCO RLE of the size of the medium.

    Attributes:
        counts: Text (compressed) or numbers.
    """

    counts: Counts

    def decode(self, height_px: int, width_px: int, where: str) -> Bools:
        """See `MaskPart.decode`."""
        return decode_run_lengths(height_px, width_px, self.counts, where)


@dataclass(frozen=True)
class Polygons(MaskPart):
    """Outlines in pixels of the medium, filled.

    Attributes:
        outlines: x, y, x, y, ... of each; at least three corners.
    """

    outlines: tuple[tuple[float, ...], ...]

    def decode(self, height_px: int, width_px: int, where: str) -> Bools:
        """See `MaskPart.decode`."""
        filled = coco.frPyObjects([list(line) for line in self.outlines], height_px, width_px)
        return np.ascontiguousarray(coco.decode(coco.merge(filled)), dtype=bool)


@dataclass(frozen=True)
class IndexPng(MaskPart):
    """A picture whose pixels are numbers of objects.

    Attributes:
        path: A PNG with one channel: palette or grey, up to 16 bits.
        values: The numbers that belong to the object; ``None``: all but 0.
    """

    path: Path
    values: tuple[int, ...] | None

    def decode(self, height_px: int, width_px: int, where: str) -> Bools:
        """See `MaskPart.decode`."""
        if not self.path.is_file():
            raise DataError(f"{where}: there is no mask {self.path}")
        try:
            with Image.open(self.path) as picture:
                self._check(picture, (height_px, width_px), where)
                numbers = np.asarray(picture)
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as cause:
            raise DataError(
                f"{where}: the mask {self.path} cannot be read as a picture: {cause}"
            ) from cause
        return numbers != 0 if self.values is None else np.isin(numbers, self.values)

    def _check(self, picture: Image.Image, size: tuple[int, int], where: str) -> None:
        if picture.mode not in _ONE_CHANNEL:
            raise DataError(
                f"{where}: the mask {self.path} is a picture of mode {picture.mode}, whose colours "
                "name no object; right is one channel, palette or grey, where the value of a pixel "
                "is the number of its object and 0 is background"
            )
        check_size((picture.height, picture.width), size, f"{where}: {self.path}")


def read_mask_spec(found: Any, size: tuple[int, int], where: str, folder: Path | None) -> MaskSpec:
    """A mask from an annotation; empty where the object is not visible (``null``, empty lists).

    Args:
        found: In one of `MASK_FORMS`.
        size: Height and width of the medium in pixels.
        where: For messages.
        folder: Relative paths are relative to it.

    Raises:
        DataError: In no such form, of another size than the medium, or a broken polygon. Run
            lengths and PNGs are only looked at when they are decoded.
    """
    if found is None:
        return ()
    if isinstance(found, list | tuple):
        return tuple(
            part for member in found for part in read_mask_spec(member, size, where, folder)
        )
    keys = set(found) if isinstance(found, Mapping) else set()
    if keys == {"rle"}:
        return (_read_rle(found["rle"], size, where),)
    if keys == {"polygons", "size"}:
        check_size(found["size"], size, where)
        return _read_polygons(found["polygons"], size, where)
    if "png" in keys and keys <= {"png", "values"}:
        return (_read_png(found, where, folder),)
    raise DataError(f"{where}: {short(found)} is no mask; a mask is {MASK_FORMS}")


def check_size(found: Any, size: tuple[int, int], where: str) -> None:
    """Whether a mask has the size of its medium.

    Raises:
        DataError: It has not, or ``found`` is no size.
    """
    numbers = list(found) if isinstance(found, list | tuple) else []
    if len(numbers) != 2 or not all(is_number(number) for number in numbers):
        raise DataError(
            f"{where}: the size of a mask is {short(found)}; it is [height, width] in pixels"
        )
    if tuple(numbers) == size:
        return
    hint = "; size is [height, width]" if tuple(numbers[::-1]) == size else ""
    raise DataError(
        f"{where}: the mask has {numbers[0]:g} x {numbers[1]:g} pixels (height x width), but the "
        f"medium has {size[0]} x {size[1]}{hint}"
    )


def is_number(value: Any) -> bool:
    """Whether it is a finite real number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def short(found: Any) -> str:
    """How a value is shown in a message."""
    shown = repr(found)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _read_rle(found: Any, size: tuple[int, int], where: str) -> RunLengths:
    if not isinstance(found, Mapping) or set(found) != {"size", "counts"}:
        raise DataError(
            f"{where}: broken RLE: {short(found)}; an RLE has 'size', [height, width] in pixels, "
            "and 'counts', and nothing else"
        )
    check_size(found["size"], size, where)
    return RunLengths(read_counts(found["counts"], where))


def _read_polygons(found: Any, size: tuple[int, int], where: str) -> MaskSpec:
    if not isinstance(found, list | tuple):
        raise DataError(
            f"{where}: 'polygons' is {short(found)}; it is a list of [x, y, x, y, x, y, ...]"
        )
    outlines = tuple(
        _read_outline(outline, size, f"{where}, polygon {number}")
        for number, outline in enumerate(found, start=1)
    )
    return (Polygons(outlines),) if outlines else ()


def _read_outline(found: Any, size: tuple[int, int], where: str) -> tuple[float, ...]:
    if not isinstance(found, list | tuple) or not all(is_number(value) for value in found):
        raise DataError(
            f"{where}: {short(found)} is no polygon; a polygon is a list of finite numbers x, y, "
            "x, y, ... in pixels"
        )
    if len(found) % 2:
        raise DataError(
            f"{where}: has {len(found)} numbers; x and y of each corner make an even count"
        )
    if len(found) < 6:
        raise DataError(f"{where}: has {len(found) // 2} corners; a polygon needs at least 3")
    _check_corners(found, size, where)
    return tuple(float(value) for value in found)


def _check_corners(outline: Sequence[float], size: tuple[int, int], where: str) -> None:
    """A corner may lie outside by one image: what lies there is cut off. Further out it is a wrong
    unit or a wrong image, and drawing the way there would take memory without bounds.
    """
    height_px, width_px = size
    for name, values, limit in (
        ("x", outline[::2], width_px),
        ("y", outline[1::2], height_px),
    ):
        far = [value for value in values if not -limit <= value <= 2 * limit]
        if far:
            raise DataError(
                f"{where}: {name} = {far[0]:g} is far outside the medium, which has {height_px} x "
                f"{width_px} pixels (height x width)"
            )


def _read_png(found: Mapping[str, Any], where: str, folder: Path | None) -> IndexPng:
    path, values = found["png"], found.get("values")
    if not isinstance(path, str | Path) or not str(path):
        raise DataError(f"{where}: 'png' is {short(path)}; it is the path of an index PNG")
    if values is not None and (
        not isinstance(values, list | tuple)
        or not values
        or not all(type(value) is int and 0 <= value <= _VALUES_MAX for value in values)
    ):
        raise DataError(
            f"{where}: 'values' is {short(values)}; it is a list of the numbers that the object "
            f"has in the PNG, whole and from 0 to {_VALUES_MAX}"
        )
    full = Path(path) if folder is None else folder / path
    return IndexPng(full, None if values is None else tuple(values))
