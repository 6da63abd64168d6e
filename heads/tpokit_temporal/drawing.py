"""Draws what was found in a video: frames, saliency and moments along one axis of seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

from tpokit.interfaces import Drawing
from tpokit.types import MediaNeed, View
from tpokit_temporal.results import Moments
from tpokit_temporal.timeline import (
    GROUND,
    INK,
    SMOOTH,
    Axis,
    paint_timeline,
    text_width_px,
)

_LEAST_WIDTH_PX = 720
_TALLEST = 1.25  # of a frame in the strip, times its width; what is taller is cut
_SHADE = 170  # of the plate behind a frame's time, of 255


class TemporalDrawing(Drawing):
    """A timeline below the picture: eight frames with their seconds, the saliency of each call as a
    curve, its five best moments as bars with start, end and score.

    All stand above the same axis; the frames too, each over its part of the video. The timeline is
    as wide as the picture, but at least 720 pixels. An image has no timeline and stays as it is.
    """

    task = "temporal"
    need: ClassVar[MediaNeed] = MediaNeed(frames=8)

    def draw(self, picture: Image.Image, results: Sequence[Moments], view: View) -> Image.Image:
        """See `Drawing.draw`."""
        if not results or view.duration_s <= 0:
            return picture.copy()
        width_px = max(picture.width, _LEAST_WIDTH_PX)
        unit_px = max(width_px / 1000, 0.9)
        edge_px = round(14 * unit_px)
        axis = Axis(edge_px, width_px - edge_px, view.duration_s, unit_px)
        strip = _strip(view, width_px - 2 * edge_px, unit_px)
        panel = paint_timeline(results, axis, width_px)
        top_px = picture.height + edge_px
        drawn = Image.new("RGB", (width_px, top_px + strip.height + panel.height), GROUND)
        drawn.paste(picture, (0, 0))
        drawn.paste(strip, (edge_px, top_px))
        drawn.paste(panel, (0, top_px + strip.height))
        return drawn


def _strip(view: View, width_px: int, unit_px: float) -> Image.Image:
    """The frames side by side, each with its time."""
    count, height, width = view.frames.shape[:3]
    gap_px = max(round(2 * unit_px), 1)
    edges_px = [round(index * width_px / count) for index in range(count + 1)]
    height_px = max(round(width_px / count * min(height / width, _TALLEST)), 1)
    strip = Image.new("RGB", (width_px, height_px), GROUND)
    for index, (frame, time_s) in enumerate(zip(view.frames, view.times_s, strict=True)):
        size = (max(edges_px[index + 1] - edges_px[index] - gap_px, 1), height_px)
        tile = ImageOps.fit(Image.fromarray(frame), size, Image.Resampling.BICUBIC)
        plate, cover = _plate(f"{time_s:.1f} s", 11 * unit_px)
        tile.paste(plate, (0, tile.height - plate.height), cover)
        strip.paste(tile, (edges_px[index] + gap_px // 2, 0))
    return strip


def _plate(text: str, size_px: float) -> tuple[Image.Image, Image.Image]:
    """White words on a dark plate, and how much of what is below each pixel of it covers."""
    pad_px = size_px / 3
    width = math.ceil(text_width_px(text, size_px) + 2 * pad_px)
    height = math.ceil(size_px + 2 * pad_px)
    large = Image.new("L", (width * SMOOTH, height * SMOOTH))
    font = ImageFont.load_default(size_px * SMOOTH)
    at = (pad_px * SMOOTH, large.height / 2)
    ImageDraw.Draw(large).text(at, text, font=font, fill=255, anchor="lm")
    words = large.reduce(SMOOTH)
    plate = Image.new("RGB", (width, height), INK)
    plate.paste((255, 255, 255), mask=words)
    return plate, ImageChops.lighter(words, Image.new("L", (width, height), _SHADE))
