"""Pictures: helpers to draw results over a medium, and loss curves."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont
from PIL.Image import Image

from tpokit.errors import UsageError
from tpokit.reporting import log_columns

Colour = tuple[int, int, int]

_PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Told apart by colour-blind people too. Source: Okabe and Ito, Color Universal Design, 2008."""


_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""The same for thin lines on white, where yellow would not be seen."""


def colour(index: int) -> Colour:
    """The colour (red, green, blue; 0 to 255) of the ``index``-th thing drawn; they repeat."""
    return _PALETTE[index % len(_PALETTE)]


def contrast(to: Colour) -> Colour:
    """Black or white, whichever is seen better beside a colour."""
    red, green, blue = to
    light = 0.299 * red + 0.587 * green + 0.114 * blue  # luma of ITU-R BT.601
    return (0, 0, 0) if light > 128 else (255, 255, 255)


def outline_box(picture: Image, box_px: Sequence[float], colour: Colour, label: str = "") -> None:
    """Draw a box into a picture: a coloured line between two of the contrasting colour, so that it
    shows on any ground.

    Args:
        picture: RGB; changed in place. Line and text grow with it.
        box_px: Corners x0, y0, x1, y1 in pixels; what lies outside the picture is not seen.
        colour: Of the line.
        label: Short text at the upper left corner.
    """
    width = max(round(min(picture.size) / 150), 1)
    rim = max(width // 2, 1)
    draw = ImageDraw.Draw(picture)
    x0, y0, x1, y1 = (round(value) for value in box_px)
    x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    draw.rectangle((x0, y0, x1, y1), outline=contrast(colour), width=width + 2 * rim)
    inner = (x0 + rim, y0 + rim, max(x1 - rim, x0 + rim), max(y1 - rim, y0 + rim))
    draw.rectangle(inner, outline=colour, width=width)
    if label:
        write_label(picture, (x0, y0), label, colour)


def write_label(picture: Image, at_px: tuple[float, float], text: str, colour: Colour) -> None:
    """Write a text on a coloured plate whose lower left corner is at ``at_px``, moved into the
    picture where it would leave it.

    Args:
        picture: RGB; changed in place.
        at_px: x, y in pixels.
        text: One line.
        colour: Of the plate; the text is black or white.
    """
    draw = ImageDraw.Draw(picture)
    font = _font(max(min(picture.size) / 25, 10))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = max(round((bottom - top) / 4), 1)
    width, height = math.ceil(right - left) + 2 * pad, math.ceil(bottom - top) + 2 * pad
    x = max(min(at_px[0], picture.width - width), 0)
    y = max(min(at_px[1] - height, picture.height - height), 0)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)  # the end is painted too
    draw.text((x + pad - left, y + pad - top), text, font=font, fill=contrast(colour))


@functools.lru_cache(maxsize=4)
def _font(size_px: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Kept, as reading it takes longer than drawing a frame of a video."""
    return ImageFont.load_default(size=size_px)


@dataclass(frozen=True)
class Panel:
    """Curves that are drawn over each other.

    Attributes:
        title: Above them.
        columns: Name of a curve to the column of the rows that it shows.
        logarithmic: Whether values are told apart by their ratio; they must be above 0.
    """

    title: str
    columns: Mapping[str, str]
    logarithmic: bool = False


def panels_of(rows: Sequence[Mapping[str, float]]) -> list[Panel]:
    """What there is to draw of the lines of a log: a panel for each loss term; then, as far as they
    were logged, the norms of the gradients of parts and of tasks, and how tasks get on with each
    other.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    terms = [Panel(name, {name: name}) for name in names if log_columns.is_term(name)]
    groups = (
        Panel("gradient norm", _below(names, log_columns.PART_NORM), logarithmic=True),
        Panel("gradient norm of each task", _below(names, log_columns.TASK_NORM), logarithmic=True),
        Panel("cosine between tasks", _below(names, log_columns.TASK_COSINE)),
    )
    return terms + [panel for panel in groups if panel.columns] if terms else []


def _below(names: Sequence[str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}


def loss_curves(
    rows: Sequence[Mapping[str, float]],
    path: Path,
    boundaries: Sequence[tuple[str, float]] = (),
) -> None:
    """Draw every loss term over the steps into one PNG, and gradients if they were logged.

    Args:
        rows: One for each logged step, in order: ``step``, counted over the whole run, and the
            columns of the log. What is missing or not finite is left out.
        path: The PNG; written whole or not at all.
        boundaries: Name and first step of each stage.

    Raises:
        UsageError: There is nothing to draw, or matplotlib is missing.
    """
    drawn = panels_of(rows)
    if not drawn:
        raise UsageError(f"{path}: no loss terms to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise UsageError('loss curves need matplotlib: pip install "tpokit[demo]"') from cause
    columns = min(len(drawn), 3)
    lines = math.ceil(len(drawn) / columns)
    # A figure of its own draws by Agg and leaves pyplot's global state alone.
    # Margins in inches: with many panels a layout engine measures every label for seconds.
    width, height = 4.5 * columns, 3.0 * lines
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        left=0.7 / width,
        right=1 - 0.2 / width,
        bottom=0.5 / height,
        top=1 - 0.4 / height,
        wspace=0.25,
        hspace=0.4,
    )
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for what, panel in zip(drawn, panels, strict=False):
        _draw_panel(panel, what, rows, boundaries)
    for panel in panels[len(drawn) :]:
        panel.set_visible(False)
    draft = path.with_name(f"{path.name}.part")
    figure.savefig(draft, format="png", dpi=120)
    draft.replace(path)


def _draw_panel(
    panel: Any,
    what: Panel,
    rows: Sequence[Mapping[str, float]],
    boundaries: Sequence[tuple[str, float]],
) -> None:
    for place, (name, column) in enumerate(what.columns.items()):
        found = [(row["step"], row.get(column, math.nan)) for row in rows]
        least = 0.0 if what.logarithmic else -math.inf
        points = [point for point in found if least < point[1] < math.inf]
        steps, values = zip(*points, strict=True) if points else ((), ())
        shade = _LINES[place % len(_LINES)]
        dashes = "--" if place // len(_LINES) % 2 else "-"
        panel.plot(steps, values, dashes, color=shade, alpha=0.3, linewidth=0.8)
        panel.plot(steps, _smooth(values), dashes, color=shade, linewidth=1.6, label=name)
    panel.set_title(what.title)
    panel.set_xlabel("step")
    panel.grid(alpha=0.3)
    if what.logarithmic:
        panel.set_yscale("log")
    if len(what.columns) > 1:
        # the best place would take long to look for
        panel.legend(fontsize=6, loc="upper right", framealpha=0.5)
    for stage, step in boundaries:
        panel.axvline(step, color="0.4", linestyle="--", linewidth=0.8)
        panel.annotate(
            stage,
            (step, 1.0),
            xycoords=("data", "axes fraction"),
            rotation=90,
            va="top",
            fontsize=7,
        )


def _smooth(values: Sequence[float]) -> NDArray[np.float64]:
    """Mean of each value and its neighbours, a twentieth of all values wide, less at the ends."""
    reach = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    places = np.arange(len(values))
    first = np.maximum(places - reach, 0)
    last = np.minimum(places + reach + 1, len(values))
    smooth: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return smooth
