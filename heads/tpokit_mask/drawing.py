"""Draws masks over a picture or the frames of a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tpokit.interfaces import Drawing
from tpokit.reporting.canvas import Colour, colour, contrast, outline_box, write_label
from tpokit.types import View
from tpokit_mask.metrics.boundary import boundary_map, near
from tpokit_mask.results import BoxPx, MaskTrack, decode_mask

_LINES = 150  # that would fill the shorter side, as for outlines of boxes


class MaskDrawing(Drawing):
    """Half-transparent colour over each object, with an outline and its number, from 1 in reading
    order; an object that is not visible leaves no trace.

    On a picture of a video stand the masks of the moment that it shows; in a drawn video they move
    along.
    """

    task = "mask"
    moves: ClassVar[bool] = True

    def draw(self, picture: Image.Image, results: Sequence[MaskTrack], view: View) -> Image.Image:
        """See `Drawing.draw`."""
        return self.draw_frame(picture, results, view.times_s[0])

    def draw_frame(
        self, frame: Image.Image, results: Sequence[MaskTrack], time_s: float
    ) -> Image.Image:
        """A new picture: a frame with the masks of the moment nearest to it.

        Args:
            frame: RGB, in the size of the medium at its upper left corner.
            results: In reading order.
            time_s: When it is shown, in seconds from the start of the medium.
        """
        shown = [track.at(time_s) for track in results]
        pixels = np.array(frame.convert("RGB"))
        for index, (track, found) in enumerate(zip(results, shown, strict=True)):
            if found is not None and found.rle is not None and found.box is not None:
                mask = decode_mask(found.rle, track.height_px, track.width_px)
                _paint(pixels, mask, found.box, colour(index))
        drawn = Image.fromarray(pixels)
        for index, found in enumerate(shown):  # numbers last, so that no mask covers them
            if found is not None and found.box is not None:
                label = str(index + 1)
                if found.rle is None:
                    outline_box(drawn, found.box, colour(index), label)
                else:
                    write_label(drawn, found.box[:2], label, colour(index))
        return drawn


def _paint(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], box_px: BoxPx, tint: Colour) -> None:
    """Tint what a mask ``[h, w]`` covers of a picture ``[H, W, 3]``, in place, and outline it: a
    line of the colour between two of the contrasting one. Only the box around it is looked at.
    """
    height, width = mask.shape
    line_px = max(round(min(height, width) / _LINES), 1)
    reach_px, rim_px = line_px // 2, max(line_px // 2, 1)
    edge = reach_px + rim_px + 1
    x0, y0 = max(int(box_px[0]) - edge, 0), max(int(box_px[1]) - edge, 0)
    x1, y1 = min(int(box_px[2]) + edge, width), min(int(box_px[3]) + edge, height)
    inside, part = mask[y0:y1, x0:x1], pixels[y0:y1, x0:x1]
    halves = (part >> 1) + (np.array(tint, dtype=np.uint8) >> 1)  # a mean that needs no floats
    np.copyto(part, halves, where=inside[..., None])
    outline = boundary_map(inside)
    part[near(outline, reach_px + rim_px)] = contrast(tint)
    part[near(outline, reach_px)] = tint
