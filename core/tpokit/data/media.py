"""Reading images and videos: each is decoded once, every consumer gets its own view.

A consumer says how many frames of a video it wants (`tpokit.MediaNeed`); times are in seconds from
the start of the video, never frame numbers, so that a variable frame rate changes nothing. Frames
come upright, as a player shows them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise

import numpy as np

from tpokit.data.frame_folder import FrameFolder
from tpokit.data.image import read_image
from tpokit.data.video import Video
from tpokit.errors import DataError, UsageError
from tpokit.types import Media, MediaNeed, View

DECODE_LIMIT_S = 30.0
"""Longest that decoding one video may take by default, in seconds."""


def read_media(
    media: Media,
    needs: Mapping[str, MediaNeed],
    limit_s: float = DECODE_LIMIT_S,
    random: np.random.Generator | None = None,
) -> dict[str, View]:
    """Decode an image or a video.

    Args:
        media: What to read.
        needs: Consumer to the frames it wants; an image is one frame for everyone.
        limit_s: Longest that decoding may take, in seconds.
        random: In training, for consumers that want random times.

    Returns:
        Consumer to view. ``times_s`` are those of the frames that are really there: the last frame
        at or before each wanted time.

    Raises:
        DataError: The file is missing, not of the kind, broken, too large or too slow, or the part
            that is meant is not in it or has too few frames; names the file and the reason.
    """
    check_place(media)
    if media.kind == "image":
        view = View("image", read_image(media.path)[None], (0.0,), 0.0, media.path)
        return dict.fromkeys(needs, view)
    return _read_video(media, needs, limit_s, random)


def frame_times(
    need: MediaNeed, start_s: float, end_s: float, random: np.random.Generator | None = None
) -> list[float]:
    """Wanted times in a part of a video, one in each of its equal parts, in seconds and in order.

    Source: OpenGVLab/Ask-Anything, video_chat2: ``get_index`` of the MVBench notebook and
    ``get_frame_indices`` of the training reader. These count frames, which only at a constant rate
    says anything of time. There a middle of theirs is ours or one frame earlier, seldom two earlier
    or one later: they round down, or twice, or leave the last frame out.

    Args:
        need: ``frames``, or ``rate`` (then as many parts as the rate gives, at least one and at
            most ``frames_max``); and where in each part.
        start_s, end_s: The part.
        random: For random times; ``None``: the middles, whatever ``need`` says.
    """
    if need.frames is not None:
        count = need.frames
    elif need.rate is not None:
        count = min(need.frames_max, max(1, round((end_s - start_s) * need.rate)))
    else:
        raise UsageError("a consumer of video frames must say how many: frames or rate")
    step = (end_s - start_s) / count
    if random is None or need.pick == "middle":
        return [start_s + (index + 0.5) * step for index in range(count)]
    return [start_s + (index + at) * step for index, at in enumerate(random.random(count).tolist())]


def check_place(media: Media) -> None:
    """Whether there is a file, or for a video a folder, and a rate where one is needed.

    Raises:
        DataError: Says what is missing or too much.
    """
    if media.path.is_dir():
        if media.kind == "image":
            raise DataError(f"{media.path}: a folder, but an image is a file")
        if media.rate is None:
            raise DataError(f"{media.path}: a folder of frames; give its frames per second as rate")
    elif not media.path.is_file():
        raise DataError(f"{media.path}: there is no such file")
    elif media.rate is not None:
        raise DataError(
            f"{media.path}: a rate of {media.rate:g} frames a second is given, but it is a file; a "
            "rate belongs to a folder of frames"
        )


def open_video(media: Media, limit_s: float) -> Video | FrameFolder:
    """Open a video file or a folder of frames; a context manager.

    Raises:
        DataError: It cannot be read as a video.
    """
    if media.rate is not None:
        return FrameFolder(media.path, media.rate, limit_s)
    return Video(media.path, limit_s)


def part_of(media: Media, duration_s: float) -> tuple[float, float]:
    """Start and end of the part of a video that is meant, in seconds.

    Raises:
        DataError: It is empty or begins behind the end of the video.
    """
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


def _read_video(
    media: Media,
    needs: Mapping[str, MediaNeed],
    limit_s: float,
    random: np.random.Generator | None,
) -> dict[str, View]:
    with open_video(media, limit_s) as video:
        start_s, end_s = part_of(media, video.duration_s)
        wanted = {name: frame_times(need, start_s, end_s, random) for name, need in needs.items()}
        times_s = sorted({at for found in wanted.values() for at in found})
        shown = video.frames(times_s)
    place = {at: index for index, at in enumerate(times_s)}
    views: dict[str, View] = {}
    for name, found in wanted.items():
        rows = [place[at] for at in found]
        if needs[name].frames is not None and needs[name].short != "repeat":
            once = _each_once(rows, shown.times_s)
            if needs[name].short == "fewer":
                rows = once
            elif len(once) < len(rows):
                _check_count(media, len(rows), (start_s, end_s), limit_s)
        # who wants all of them gets the very array: a copy would double the memory
        frames = shown.frames if len(rows) == len(times_s) else shown.frames[rows]
        begins = tuple(shown.times_s[row] for row in rows)
        views[name] = View("video", frames, begins, end_s - start_s, media.path)
    return views


def _each_once(rows: Sequence[int], begins: Sequence[float]) -> list[int]:
    """Rows without those of the same frame as the row before."""
    again = [begins[here] == begins[before] for before, here in pairwise(rows)]
    return [row for row, repeated in zip(rows, [False, *again], strict=True) if not repeated]


def _check_count(media: Media, wanted: int, part_s: tuple[float, float], limit_s: float) -> None:
    """Whether a part of a video has so many frames, by decoding no more of them.

    One that gave a frame twice may still have enough, where some frames stay longer than others or
    times are random; one that has too few always gives a frame twice.
    """
    with open_video(media, limit_s) as video:
        start_s, end_s = part_s
        # a file may hold a little more than it says
        found = video.every(start_s, math.inf if end_s == video.duration_s else end_s)
        count = sum(1 for _ in islice(found, wanted))
    if count < wanted:
        whole = media.start_s is None and media.end_s is None
        what = "the video" if whole else f"the part from {start_s:g} s to {end_s:g} s"
        raise DataError(
            f"{media.path}: {what} has too few frames: {count}, but {wanted} are asked for; set "
            f"frames: {count} or less, or short_videos: repeat"
        )
