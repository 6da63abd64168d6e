"""Draws boxes over a picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image

from tpokit.answers import Box
from tpokit.interfaces import Drawing
from tpokit.reporting.canvas import colour, outline_box
from tpokit.types import View


class RegionDrawing(Drawing):
    """A numbered outline around each box, numbers from 1 in reading order."""

    task = "region"

    def draw(self, picture: Image, results: Sequence[Box], view: View) -> Image:
        """See `Drawing.draw`."""
        drawn = picture.convert("RGB") if picture.mode != "RGB" else picture.copy()
        for index, box in enumerate(results):
            corners_px = (box.x0, box.y0, box.x1, box.y1)
            outline_box(drawn, corners_px, colour(index), label=str(index + 1))
        return drawn
