"""Media of which only the facts are read: what `tpokit.data.media` gives, with blank frames.

Enough to check annotations and to count tokens, at a small part of the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from tpokit.data.image import image_size
from tpokit.data.media import DECODE_LIMIT_S, check_place, frame_times, open_video, part_of
from tpokit.types import Media, MediaKind, MediaNeed, View

_REMEMBERED = 4096
"""Media whose facts are kept: samples about one of them mostly follow one another."""


def blank_media(
    media: Media, needs: Mapping[str, MediaNeed], random: np.random.Generator | None = None
) -> dict[str, View]:
    """Views as `tpokit.data.media.read_media` gives them, with these differences.

    - All pixels are black, and share three bytes of memory.
    - Of a video the first frame alone is decoded, for its size. Times of frames are the wanted
      ones, not those of the frames that are really there.

    Raises:
        DataError: The file is missing or not of the kind, or the part that is meant is not in it.
    """
    check_place(media)
    if media.kind == "image":
        width, height, _ = _facts(media.kind, media.path, None)
        view = View("image", _blank(1, height, width), (0.0,), 0.0, media.path)
        return dict.fromkeys(needs, view)
    width, height, duration_s = _facts(media.kind, media.path, media.rate)
    start_s, end_s = part_of(media, duration_s)
    views = {}
    for name, need in needs.items():
        times_s = tuple(frame_times(need, start_s, end_s, random))
        blank = _blank(len(times_s), height, width)
        views[name] = View("video", blank, times_s, end_s - start_s, media.path)
    return views


@lru_cache(maxsize=_REMEMBERED)
def _facts(kind: MediaKind, path: Path, rate: float | None) -> tuple[int, int, float]:
    """Width and height in pixels, and duration in seconds."""
    if kind == "image":
        return *image_size(path), 0.0
    with open_video(Media(kind, path, rate=rate), DECODE_LIMIT_S) as video:
        height, width = video.frames((0.0,)).frames.shape[1:3]
        return width, height, video.duration_s


def _blank(frames: int, height: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.zeros(3, np.uint8), (frames, height, width, 3))
