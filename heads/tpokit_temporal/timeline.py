"""A timeline: saliency as a curve, moments as bars, seconds below.

Everything is laid out in pixels of the finished panel, painted larger and reduced, so that edges
are smooth and letters stand where they should.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from tpokit.reporting.canvas import Colour, colour, contrast
from tpokit_temporal.results import Moment, Moments

GROUND: Colour = (255, 255, 255)
INK: Colour = (38, 42, 48)
_FAINT: Colour = (120, 126, 134)
_GRID: Colour = (226, 229, 233)
_ROWS = 5  # moments of one call that are shown
SMOOTH = 3  # times larger that things are painted


@dataclass(frozen=True)
class Axis:
    """Where seconds are on the panel.

    Attributes:
        left_px, right_px: Where the video begins and ends.
        duration_s: Its length.
        unit_px: Pixels that all sizes are multiples of; grows with the panel.
    """

    left_px: float
    right_px: float
    duration_s: float
    unit_px: float

    def x_px(self, seconds: float) -> float:
        """The place of a time; those outside the video are at its ends."""
        share = min(max(seconds / self.duration_s, 0.0), 1.0)
        return self.left_px + share * (self.right_px - self.left_px)

    def ticks_s(self) -> list[float]:
        """Round times, as many as there is room for."""
        room = (self.right_px - self.left_px) / (64 * self.unit_px)
        least_s = self.duration_s / max(room, 1.0)
        power = 10.0 ** math.floor(math.log10(least_s))
        step_s = next(m * power for m in (1, 2, 5, 10) if m * power >= least_s * (1 - 1e-9))
        return [index * step_s for index in range(int(self.duration_s / step_s + 1e-9) + 1)]


@dataclass(frozen=True)
class _Text:
    """A line of text: where its anchor is (as in Pillow), its size and colour."""

    at_px: tuple[float, float]
    text: str
    size_px: float
    colour: Colour
    anchor: str


class _Sheet:
    """Collects shapes and texts of a panel while they are laid out from top to bottom."""

    def __init__(self, width_px: int, axis: Axis) -> None:
        self.axis = axis
        self.width_px = width_px
        self.y_px = 0.0
        self.areas: list[tuple[list[tuple[float, float]], Colour]] = []
        self.lines: list[tuple[list[tuple[float, float]], Colour, float]] = []
        self.bars: list[tuple[tuple[float, float, float, float], Colour]] = []
        self.texts: list[_Text] = []

    def write(
        self,
        x_px: float,
        text: str,
        colour: Colour,
        anchor: str = "lm",
        size: float = 12,
        ground: Colour | None = GROUND,
    ) -> float:
        """Put text at the height of the sheet, on a ground that hides lines behind it; its width in
        pixels comes back.
        """
        size_px = size * self.axis.unit_px
        width_px = text_width_px(text, size_px)
        if ground is not None:
            pad, half = size_px / 4, size_px / 2
            left_px = x_px - {"l": 0.0, "m": width_px / 2, "r": width_px}[anchor[0]]
            box = (left_px - pad, self.y_px - half, left_px + width_px + pad, self.y_px + half)
            self.bars.append((box, ground))
        self.texts.append(_Text((x_px, self.y_px), text, size_px, colour, anchor))
        return width_px

    def paint(self) -> Image.Image:
        """The panel, as high as what is on it."""
        height_px = math.ceil(self.y_px)
        size = (self.width_px * SMOOTH, height_px * SMOOTH)
        large = Image.new("RGB", size, GROUND)
        draw = ImageDraw.Draw(large)
        for points, fill in self.areas:
            draw.polygon(_scaled(points), fill=fill)
        for points, fill, width_px in self.lines:
            draw.line(
                _scaled(points), fill=fill, width=max(round(width_px * SMOOTH), 1), joint="curve"
            )
        for (x0, y0, x1, y1), fill in self.bars:
            corners = _scaled([(x0, y0), (x1, y1)])
            radius = min(x1 - x0, y1 - y0) * SMOOTH / 2
            draw.rounded_rectangle(corners, radius=min(radius, 4 * SMOOTH), fill=fill)
        for line in self.texts:
            font = ImageFont.load_default(line.size_px * SMOOTH)
            at = _scaled([line.at_px])[0]
            draw.text(at, line.text, font=font, fill=line.colour, anchor=line.anchor)
        return large.reduce(SMOOTH)


def paint_timeline(results: Sequence[Moments], axis: Axis, width_px: int) -> Image.Image:
    """A panel with a section for each result and one axis of seconds.

    Args:
        results: At least one; in reading order, numbered from 1 if there are several.
        axis: Where seconds are.
        width_px: Of the panel.
    """
    sheet = _Sheet(width_px, axis)
    for index, result in enumerate(results):
        number = index + 1 if len(results) > 1 else None
        _caption(sheet, result, colour(index), number)
        if result.saliency:
            _curve(sheet, result, colour(index))
        _moments(sheet, result.moments, colour(index))
    _seconds(sheet)
    return sheet.paint()


def _caption(sheet: _Sheet, result: Moments, tone: Colour, number: int | None) -> None:
    """What the section is about: its number, and when the video fits best."""
    axis, unit = sheet.axis, sheet.axis.unit_px
    sheet.y_px += 14 * unit
    x_px = axis.left_px
    if number is not None:
        radius = 8 * unit
        box = (x_px, sheet.y_px - radius, x_px + 2 * radius, sheet.y_px + radius)
        sheet.bars.append((box, tone))
        sheet.write(x_px + radius, str(number), contrast(tone), "mm", 11, ground=None)
        x_px += 2 * radius + 6 * unit
    if result.saliency:
        x_px += sheet.write(x_px, "saliency", INK) + 8 * unit
        peak_s = (_peak(result.saliency) + 0.5) * result.clip_s
        sheet.write(x_px, f"highest at {peak_s:.1f} s", _FAINT)
    else:
        sheet.write(x_px, "moments" if result.moments else "no moment", INK)
    sheet.y_px += 12 * unit


def _curve(sheet: _Sheet, result: Moments, tone: Colour) -> None:
    """Saliency between its lowest and highest value, a point in the middle of each clip."""
    axis, unit = sheet.axis, sheet.axis.unit_px
    height = 60 * unit
    bottom = sheet.y_px + height
    points = [
        (axis.x_px((clip + 0.5) * result.clip_s), bottom - (0.06 + 0.88 * share) * height)
        for clip, share in enumerate(_shares(result.saliency))
    ]
    end_px = axis.x_px(len(points) * result.clip_s)
    points = [(axis.left_px, points[0][1]), *points, (end_px, points[-1][1])]
    ground = [(points[-1][0], bottom), (axis.left_px, bottom)]
    sheet.areas.append(([*points, *ground], _mix(tone, 0.22)))
    sheet.lines.append(([(axis.left_px, bottom), (axis.right_px, bottom)], _GRID, unit))
    sheet.lines.append((points, tone, 2 * unit))
    peak_px = points[1 + _peak(result.saliency)]
    radius = 3.5 * unit
    box = (peak_px[0] - radius, peak_px[1] - radius, peak_px[0] + radius, peak_px[1] + radius)
    sheet.bars.append((box, INK))
    sheet.y_px = bottom + 8 * unit


def _moments(sheet: _Sheet, moments: Sequence[Moment], tone: Colour) -> None:
    """A bar for each of the best moments, the stronger the higher its score."""
    axis, unit = sheet.axis, sheet.axis.unit_px
    for moment in moments[:_ROWS]:
        start_px, end_px = axis.x_px(moment.start_s), axis.x_px(moment.end_s)
        end_px = max(end_px, start_px + 3 * unit)
        shade = _mix(tone, 0.25 + 0.75 * min(max(moment.score, 0.0), 1.0))
        y_px = sheet.y_px + 10 * unit
        row = [(axis.left_px, y_px), (axis.right_px, y_px)]
        sheet.lines.append((row, _GRID, unit))
        sheet.bars.append(((start_px, y_px - 7 * unit, end_px, y_px + 7 * unit), shade))
        sheet.y_px = y_px
        _bar_label(sheet, moment, (start_px, end_px), shade)
        sheet.y_px = y_px + 10 * unit
    left = moments[_ROWS:]
    if left:
        best = max(moment.score for moment in left)
        sheet.y_px += 8 * unit
        sheet.write(axis.left_px, f"{len(left)} more, scores up to {best:.2f}", _FAINT, size=11)
        sheet.y_px += 8 * unit


def _bar_label(sheet: _Sheet, moment: Moment, ends_px: tuple[float, float], shade: Colour) -> None:
    """Start, end and score: right of the bar if there is room, else left of it, else inside."""
    axis, gap = sheet.axis, 7 * sheet.axis.unit_px
    text = f"{moment.start_s:.1f}-{moment.end_s:.1f} s    {moment.score:.2f}"
    width = text_width_px(text, 12 * axis.unit_px)
    if ends_px[1] + gap + width <= axis.right_px:
        place = (ends_px[1] + gap, "lm", INK, GROUND)
    elif ends_px[0] - gap - width >= axis.left_px:
        place = (ends_px[0] - gap, "rm", INK, GROUND)
    else:
        place = ((ends_px[0] + ends_px[1]) / 2, "mm", contrast(shade), shade)
    x_px, anchor, tone, ground = place
    sheet.write(x_px, text, tone, anchor, ground=ground)


def _seconds(sheet: _Sheet) -> None:
    """The axis: ticks through the whole panel, with their seconds."""
    axis, unit = sheet.axis, sheet.axis.unit_px
    sheet.y_px += 6 * unit
    base = sheet.y_px
    ticks = [(axis.x_px(tick_s), tick_s) for tick_s in axis.ticks_s()]
    grid = [([(x_px, 0.0), (x_px, base + 4 * unit)], _GRID, unit) for x_px, _ in ticks[1:]]
    sheet.lines[:0] = grid
    sheet.lines.append(([(axis.left_px, base), (axis.right_px, base)], _FAINT, unit))
    sheet.y_px += 13 * unit
    sheet.write(axis.left_px, "0 s", _FAINT, "lm", 11)
    for x_px, tick_s in ticks[1:]:
        if x_px < axis.right_px - 52 * unit:  # else the end of the video would be written over it
            sheet.write(x_px, f"{tick_s:g}", _FAINT, "mm", 11)
    sheet.write(axis.right_px, f"{axis.duration_s:.1f} s", _FAINT, "rm", 11)
    sheet.y_px += 13 * unit


def _shares(saliency: Sequence[float]) -> list[float]:
    """Values between the lowest (0) and the highest (1); a half if they are all the same."""
    finite = [value for value in saliency if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    if high == low:
        return [0.5] * len(saliency)
    return [(value - low) / (high - low) if math.isfinite(value) else 0.0 for value in saliency]


def _peak(saliency: Sequence[float]) -> int:
    """Number of the clip with the highest value."""
    return max(range(len(saliency)), key=lambda clip: saliency[clip])


def _mix(tone: Colour, share: float) -> Colour:
    """A colour thinned with the ground."""
    red, green, blue = (
        round(share * value + (1 - share) * ground)
        for value, ground in zip(tone, GROUND, strict=True)
    )
    return red, green, blue


def text_width_px(text: str, size_px: float) -> float:
    """Width of a line of text on the panel."""
    return float(ImageFont.load_default(size_px * SMOOTH).getlength(text)) / SMOOTH


def _scaled(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x_px * SMOOTH, y_px * SMOOTH) for x_px, y_px in points]
