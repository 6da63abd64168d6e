"""Frames of a medium one at a time: a video of any length in the memory of a few frames.

What comes is what `tpokit.data.media.read_media` reads for the same times: upright RGB, with the
seconds at which each frame begins in a player.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tpokit.data.image import read_image
from tpokit.data.media import DECODE_LIMIT_S, check_place, frame_times, open_video, part_of
from tpokit.errors import UsageError
from tpokit.types import Media, MediaNeed


class TimedFrame(NamedTuple):
    """A frame and when it is shown.

    ``time_s``: seconds from the start of the medium, also where a part of it is meant. ``pixels``:
    uint8 ``[h, w, 3]`` RGB.
    """

    time_s: float
    pixels: np.ndarray


def stream_frames(
    media: Media, rate: float | None = None, limit_s: float = DECODE_LIMIT_S
) -> Iterator[TimedFrame]:
    """Go forward through a medium once.

    Nothing is opened before the first frame is asked for, no frame is decoded before it is (but
    for those that the codec needs), and none is kept.

    Args:
        media: Of a video the part that is meant; an image is one frame at 0 s.
        rate: At most that many frames a second, those that ``MediaNeed(rate=rate)`` without a
            limit would give; ``None``: every frame, from the one that is shown at the start of the
            part.
        limit_s: Longest that reading one frame may take, in seconds.

    Yields:
        Frames in rising order of time, each once, all of one size.

    Raises:
        DataError: As `tpokit.data.media.read_media` does, when the frame in question is due.
        UsageError: The rate is no positive number.
    """
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise UsageError(f"{rate:g} frames a second; the rate must be above 0")
    return _streamed(media, rate, limit_s)


def _streamed(media: Media, rate: float | None, limit_s: float) -> Iterator[TimedFrame]:
    check_place(media)
    if media.kind == "image":
        yield TimedFrame(0.0, read_image(media.path))
        return
    with open_video(media, limit_s) as video:
        start_s, end_s = part_of(media, video.duration_s)
        if rate is None:  # a file may hold a little more than it says
            found = video.every(start_s, math.inf if end_s == video.duration_s else end_s)
        else:
            need = MediaNeed(rate=rate, frames_max=sys.maxsize)
            found = video.at(frame_times(need, start_s, end_s))
        before_s = -1.0
        for begin_s, pixels in found:
            if begin_s > before_s:  # a frame that stays longer than the rate wants is no new one
                yield TimedFrame(begin_s, np.ascontiguousarray(pixels))
            before_s = begin_s
            video.renew_limit()
