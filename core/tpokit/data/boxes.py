"""Checks boxes as they stand in annotations, for heads and data sources; does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from tpokit.errors import DataError

SLACK = 0.005
"""Corners may lie outside the image by this fraction (3 pixels of 640) and are then put on its
border: annotation tools round outwards."""

Corners = tuple[float, float, float, float]
_NAMES = ("x0", "y0", "x1", "y1")


def read_box(annotation: Any, where: str) -> Corners:
    """A box from an annotation.

    Args:
        annotation: Four fractions x0, y0, x1, y1 of the image, upper left and lower right corner,
            or a mapping with such a ``box``.
        where: The sample, for messages.

    Returns:
        The corners in [0, 1]; what lies outside by up to `SLACK` is clamped.

    Raises:
        DataError: Not four finite numbers, corners swapped, no area, or outside the image.
    """
    box = read_numbers(annotation, where)
    x0, y0, x1, y1 = box
    for low, high, first, second, side in (
        (x0, x1, "x0", "x1", "left"),
        (y0, y1, "y0", "y1", "top"),
    ):
        if low > high:
            raise DataError(
                f"{where}: corners of the box {_show(box)} are swapped: {first} = {low:g} is "
                f"larger than {second} = {high:g}; the {side} one comes first: x0, y0, x1, y1"
            )
    for name, value in zip(_NAMES, box, strict=True):
        if not -SLACK <= value <= 1 + SLACK:
            hint = "; are these pixels? divide by width and height" if max(box) > 2 else ""
            raise DataError(
                f"{where}: the box {_show(box)} leaves the image: {name} = {value:g}, but corners "
                f"are fractions of the image in [0, 1]{hint}"
            )
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in box)
    if x0 == x1 or y0 == y1:
        side = "width" if x0 == x1 else "height"
        raise DataError(
            f"{where}: the box {_show(box)} is empty: its {side} is 0; it needs x0 < x1 and y0 < y1"
        )
    return x0, y0, x1, y1


def read_box_px(corners_px: Any, width: Any, height: Any, where: str) -> Corners:
    """A box ``corners_px`` in pixels of an image of ``width`` x ``height``, as checked fractions.

    Raises:
        DataError: As in `read_box`, or the size is not positive.
    """
    for name, size in (("width", width), ("height", height)):
        if not _is_number(size) or size <= 0:
            raise DataError(
                f"{where}: {name} = {size!r}; a box in pixels needs the size of its image in pixels"
            )
    x0, y0, x1, y1 = read_numbers(corners_px, where)
    place = f"{where}: in pixels {_show((x0, y0, x1, y1))} of {width} x {height}"
    return read_box((x0 / width, y0 / height, x1 / width, y1 / height), place)


def read_numbers(annotation: Any, where: str) -> Corners:
    """Four finite numbers, in whatever unit."""
    found = annotation
    if isinstance(annotation, Mapping):
        if "box" not in annotation:
            raise DataError(f"{where}: {dict(annotation)!r} has no 'box'")
        found = annotation["box"]
    if hasattr(found, "tolist"):  # an array or a tensor
        found = found.tolist()
    if isinstance(found, str) or not isinstance(found, Sequence) or len(found) != 4:
        raise DataError(f"{where}: {found!r} is no box; a box is four numbers x0, y0, x1, y1")
    for name, value in zip(_NAMES, found, strict=True):
        if not _is_number(value):
            raise DataError(f"{where}: {name} of the box {list(found)!r} is not a finite number")
    x0, y0, x1, y1 = (float(value) for value in found)
    return x0, y0, x1, y1


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _show(box: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"
