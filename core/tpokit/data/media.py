"""Reading images and videos: each file is decoded once, every consumer gets its own view.

A consumer says how many frames of a video it wants (`tpokit.MediaNeed`); times are in seconds from
the start of the video, never frame numbers, so that a variable frame rate changes nothing. Frames
come upright, as a player shows them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from tpokit.errors import DataError, UsageError
from tpokit.types import Media, MediaNeed, View

DECODE_LIMIT_S = 30.0
"""Longest that decoding one video may take by default, in seconds."""
_JUMP_S = 1.5  # gaps that are longer are crossed by seeking to a key frame
_SLACK_S = 1e-6  # rounding of times
_MISSING_S = 1.0  # a video that ends so much earlier than it says is taken as cut off


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
    deadline = time.monotonic() + limit_s
    try:
        with av.open(str(media.path), timeout=limit_s) as container:
            stream = _video_stream(container, media)
            start_s, end_s = _part(container, stream, media, deadline)
            wanted = {name: frame_times(need, start_s, end_s) for name, need in needs.items()}
            times = sorted({at for found in wanted.values() for at in found})
            shown = _decode(_Cursor(container, stream, media, deadline), times)
    except (av.error.FFmpegError, ValueError, EOFError, MemoryError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        raise DataError(f"{media.path}: cannot be decoded as a video: {reason}") from cause
    return {
        name: View(
            "video",
            np.stack([shown[at][1] for at in found]),
            tuple(shown[at][0] for at in found),
            end_s - start_s,
            media.path,
        )
        for name, found in wanted.items()
    }


def _video_stream(container: Any, media: Media) -> Any:
    """The first stream that moves; the cover picture of an audio file is none."""
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise DataError(
            f"{media.path}: has no video stream (it holds {', '.join(kinds) or 'nothing'})"
        )
    return streams[0]


def _part(container: Any, stream: Any, media: Media, deadline: float) -> tuple[float, float]:
    """The part of the video that is meant, in seconds."""
    duration_s = _duration(container, stream, media, deadline)
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


def _duration(container: Any, stream: Any, media: Media, deadline: float) -> float:
    """Length in seconds: as the file says, else by going through its packets."""
    stated = _stated_duration(stream)
    if stated is not None:
        return stated
    if container.duration:
        return float(container.duration / av.time_base)
    with av.open(str(media.path)) as again:  # not every kind of file can be rewound
        last = _last_time(again, again.streams[stream.index], media, deadline)
    if last <= 0:
        raise DataError(f"{media.path}: its frames have no times, so none can be chosen by seconds")
    return last


def _stated_duration(stream: Any) -> float | None:
    """What the file says about the stream itself, in seconds; Matroska says it in a tag."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    found = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    if found is None:
        return None
    hours, minutes, seconds = found.groups()
    return (int(hours) * 60 + int(minutes)) * 60 + float(seconds)


def _last_time(container: Any, stream: Any, media: Media, deadline: float) -> float:
    last = 0.0
    for packet in container.demux(stream):
        if packet.pts is not None:
            after = packet.pts + (packet.duration or 0)
            last = max(last, float(after * stream.time_base) - _origin(stream))
        _check_time(media, deadline)
    return last


def _origin(stream: Any) -> float:
    """Time of the first frame as the file counts; some begin at 1.4 s."""
    return float(stream.start_time * stream.time_base) if stream.start_time else 0.0


def _check_time(media: Media, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise DataError(f"{media.path}: decoding took longer than allowed and was given up")


class _Cursor:
    """Walks forward through the frames of a video and jumps over long gaps."""

    def __init__(self, container: Any, stream: Any, media: Media, deadline: float) -> None:
        self._container = container
        self._stream = stream
        self._media = media
        self._deadline = deadline
        self._origin = _origin(stream)
        self._frames: Iterator[Any] = container.decode(stream)
        self._here: Any = None  # the frame at or before the last time asked for
        self._next = self._advance()
        self._jumps = True
        if self._next is None:
            raise DataError(f"{media.path}: the video stream holds no frame")

    def time_of(self, frame: Any) -> float:
        """When a frame is shown, in seconds from the start."""
        if frame.time is None:
            raise DataError(f"{self._media.path}: a frame has no time")
        return max(float(frame.time) - self._origin, 0.0)

    def at(self, wanted_s: float) -> Any:
        """The last frame at or before a time (the first frame if there is none); times must not go
        back.
        """
        if self._next is not None and wanted_s - self.time_of(self._next) > _JUMP_S and self._jumps:
            self._jump(wanted_s)
        while self._next is not None and self.time_of(self._next) <= wanted_s + _SLACK_S:
            self._here, self._next = self._next, self._advance()
        if self._next is None:
            self._check_whole(wanted_s)
        found = self._next if self._here is None else self._here
        if found is None:
            raise DataError(f"{self._media.path}: no frame can be decoded at {wanted_s:.2f} s")
        return found

    def _advance(self) -> Any:
        _check_time(self._media, self._deadline)
        return next(self._frames, None)

    def _jump(self, wanted_s: float) -> None:
        """Go to the key frame before a time; an index may point too late, so try earlier ones."""
        before = self.time_of(self._next)
        back_s = 0.0
        while True:
            goal = max(wanted_s - back_s, 0.0) + self._origin
            self._container.seek(int(goal / self._stream.time_base), stream=self._stream)
            self._frames = self._container.decode(self._stream)
            self._here, self._next = None, self._advance()
            landed = None if self._next is None else self.time_of(self._next)
            if wanted_s <= back_s or (landed is not None and landed <= wanted_s):
                break
            back_s = max(1.0, 4 * back_s)
        # key frames further apart than the gap: jumping again would only decode things twice
        self._jumps = landed is not None and landed > before

    def _check_whole(self, wanted_s: float) -> None:
        """A file that was cut off ends early and would show its last frame for all later times."""
        stated_s = _stated_duration(self._stream)
        if self._here is None or stated_s is None:
            return
        end_s = self.time_of(self._here)
        if self._here.duration:
            end_s += float(self._here.duration * self._here.time_base)
        if wanted_s - end_s > _MISSING_S:
            raise DataError(
                f"{self._media.path}: ends after {end_s:.2f} s although it says {stated_s:.2f} s; "
                "the file is cut off"
            )


def _decode(cursor: _Cursor, times: Sequence[float]) -> dict[float, tuple[float, np.ndarray]]:
    """Wanted time to the time and pixels of the frame shown then; ``times`` in rising order."""
    shown: dict[float, tuple[float, np.ndarray]] = {}
    last, pixels = None, np.empty(0)
    for wanted_s in times:
        frame = cursor.at(wanted_s)
        if last is None or frame is not last:
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90)
            last = frame
        shown[wanted_s] = cursor.time_of(frame), pixels
    return shown
