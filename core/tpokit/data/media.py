"""Reading images and videos: each file is decoded once, every consumer gets its own view.

A consumer says how many frames of a video it wants (`tpokit.MediaNeed`); times are in seconds from
the start of the video, never frame numbers, so that a variable frame rate changes nothing. Frames
come upright, as a player shows them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps

from tpokit.data.video import Video
from tpokit.errors import DataError, UsageError
from tpokit.types import Media, MediaNeed, View

DECODE_LIMIT_S = 30.0
"""Longest that decoding one video may take by default, in seconds."""


def read_media(
    media: Media, needs: Mapping[str, MediaNeed], limit_s: float = DECODE_LIMIT_S
) -> dict[str, View]:
    """Decode an image or a video.

    Args:
        media: What to read.
        needs: Consumer to the frames it wants; an image is one frame for everyone.
        limit_s: Longest that decoding may take, in seconds.

    Returns:
        Consumer to view. ``times_s`` are those of the frames that are really there: the last frame
        at or before each wanted time.

    Raises:
        DataError: The file is missing, not of the kind, broken, too large or too slow, or the part
            that is meant is not in it; names the file and the reason.
    """
    if not media.path.is_file():
        raise DataError(f"{media.path}: there is no such file")
    return (
        _read_image(media, needs) if media.kind == "image" else _read_video(media, needs, limit_s)
    )


def frame_times(need: MediaNeed, start_s: float, end_s: float) -> list[float]:
    """Wanted times in a part of a video: the middles of equal parts, in seconds.

    Args:
        need: ``frames``, or ``rate`` (then as many parts as the rate gives, at least one and at
            most ``frames_max``).
        start_s, end_s: The part.
    """
    if need.frames is not None:
        count = need.frames
    elif need.rate is not None:
        count = min(need.frames_max, max(1, round((end_s - start_s) * need.rate)))
    else:
        raise UsageError("a consumer of video frames must say how many: frames or rate")
    step = (end_s - start_s) / count
    return [start_s + (index + 0.5) * step for index in range(count)]


# ---- images ----


def _read_image(media: Media, needs: Mapping[str, MediaNeed]) -> dict[str, View]:
    try:
        with Image.open(media.path) as picture:
            _check_size(media, picture)
            frames = np.array(_upright_rgb(picture))[None]
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        MemoryError,
        Image.DecompressionBombError,
    ) as cause:
        raise DataError(f"{media.path}: cannot be read as an image: {cause}") from cause
    view = View("image", frames, (0.0,), 0.0, media.path)
    return dict.fromkeys(needs, view)


def _check_size(media: Media, picture: Image.Image) -> None:
    """Before decoding: Pillow only warns up to twice its limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise DataError(
            f"{media.path}: an image of {picture.width} x {picture.height} pixels is larger than "
            f"the limit of {limit} pixels"
        )


def _upright_rgb(picture: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):  # Pillow would clip 16 bits, not scale them
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return upright.convert("RGB")


# ---- videos ----


def _read_video(media: Media, needs: Mapping[str, MediaNeed], limit_s: float) -> dict[str, View]:
    with Video(media.path, limit_s) as video:
        start_s, end_s = _part(media, video.duration_s)
        wanted = {name: frame_times(need, start_s, end_s) for name, need in needs.items()}
        times_s = sorted({at for found in wanted.values() for at in found})
        shown = video.frames(times_s)
    place = {at: index for index, at in enumerate(times_s)}
    views: dict[str, View] = {}
    for name, found in wanted.items():
        rows = [place[at] for at in found]
        # who wants all of them gets the very array: a copy would double the memory
        frames = shown.frames if len(rows) == len(times_s) else shown.frames[rows]
        begins = tuple(shown.times_s[row] for row in rows)
        views[name] = View("video", frames, begins, end_s - start_s, media.path)
    return views


def _part(media: Media, duration_s: float) -> tuple[float, float]:
    """The part of the video that is meant, in seconds."""
    start_s = max(float(media.start_s or 0.0), 0.0)
    end_s = duration_s if media.end_s is None else min(float(media.end_s), duration_s)
    if start_s >= duration_s:
        raise DataError(
            f"{media.path}: the part from {start_s:g} s is beyond the end, the video has "
            f"{duration_s:.2f} s"
        )
    if end_s <= start_s:
        raise DataError(
            f"{media.path}: the part from {start_s:g} s to {end_s:g} s is empty; the end must be "
            "later than the start"
        )
    return start_s, end_s
