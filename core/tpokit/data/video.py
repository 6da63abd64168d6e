"""Frames of a video file at wanted seconds, with as little decoding as the file allows.

Seconds count as in a player: from the first packet of the file, so that pictures which begin after
the sound keep their place. Frames are walked through once, forward
(`tpokit.data.video_frames.FrameWalk`), and only wanted ones are turned into RGB.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from tpokit.data.video_frames import FrameWalk, MissedFrameError, ticks_of
from tpokit.errors import DataError

FRAME_PIXELS_MAX = 8192 * 8192
"""Largest frame that is decoded: no single call of the decoder takes long."""
_LARGE_PIXELS = 1920 * 1080  # from here on all cores decode one video; below, threads cost more
_SLACK_S = 1e-6  # rounding of times
_MISSING_S = 1.0  # a video that ends so much earlier than it says is taken as cut off


@dataclass(frozen=True)
class Shown:
    """Frames that are shown at wanted times.

    Attributes:
        times_s: When each frame begins, in seconds, ``[t]``; t: wanted times.
        frames: uint8 ``[t, h, w, 3]`` RGB, upright.
    """

    times_s: tuple[float, ...]
    frames: np.ndarray


class Video:
    """An open video file; a context manager.

    Attributes:
        path: The file.
        duration_s: End of its last frame, in seconds.
    """

    def __init__(self, path: Path, limit_s: float) -> None:
        """Open a file and find out how long it is.

        Args:
            path: The file.
            limit_s: Longest that opening and reading may take together, in seconds. Looked at
                between two packets and by FFmpeg whenever it reads from the disk.

        Raises:
            DataError: It is broken, no video, too large or too slow; names it.
        """
        self.path = path
        self._limit_s = limit_s
        self.renew_limit()
        self._container: Any = None
        with self._explained():
            self._open()
            try:
                self.duration_s = self._duration()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def renew_limit(self) -> None:
        """Count the time that reading may take from now on."""
        self._deadline = time.monotonic() + self._limit_s

    def frames(self, times_s: Sequence[float]) -> Shown:
        """The last frame at or before each time; the first frame where there is none.

        Args:
            times_s: At least one, in rising order.

        Raises:
            DataError: A frame cannot be decoded, the file is cut off, or the time is up.
        """
        with self._explained():
            return gathered(self.at(times_s), len(times_s))

    def at(self, times_s: Sequence[float]) -> Iterator[tuple[float, np.ndarray]]:
        """The same frames one by one, as they are decoded; one that stands for several times is the
        same array each time.

        Yields:
            When a frame begins, in seconds, and its pixels ``[h, w, 3]``.
        """
        with self._explained():
            wanted = [self._ticks(at_s) for at_s in times_s]
            self._start_walk(wanted)
            painter = _Painter()
            last, pixels = None, np.empty(0)
            for at_s, at in zip(times_s, wanted, strict=True):
                frame = self._found(at)
                self._check_whole(frame, at_s, self._walk.ended)
                if frame is not last:
                    last, pixels = frame, painter.upright_rgb(frame)
                yield self._begin_s(frame), pixels

    def every(self, start_s: float, end_s: float) -> Iterator[tuple[float, np.ndarray]]:
        """The frame that is shown at ``start_s`` and all that begin after it and before ``end_s``,
        in the form of `at`.
        """
        with self._explained():
            self._start_walk(None)
            painter = _Painter()
            frame = self._found(self._ticks(start_s))
            yield self._begin_s(frame), painter.upright_rgb(frame)
            for frame in self._walk.following():
                if self._begin_s(frame) >= end_s - _SLACK_S:
                    return
                yield self._begin_s(frame), painter.upright_rgb(frame)
            self._check_whole(frame, min(end_s, self.duration_s), ended=True)

    def _open(self) -> None:
        # Tags in another encoding than they should be are nothing to fail for.
        self._container = av.open(str(self.path), timeout=self._limit_s, metadata_errors="replace")
        try:
            self._stream = self._moving_stream()
            self._start_s, self._end_s = self._span()
        except BaseException:
            self.close()
            raise

    def _moving_stream(self) -> Any:
        """The first stream that moves, ready to decode; the cover picture of a song is none."""
        streams = [
            stream
            for stream in self._container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams:
            kinds = sorted({stream.type for stream in self._container.streams})
            raise DataError(
                f"{self.path}: has no video stream (it holds {', '.join(kinds) or 'nothing'})"
            )
        codec = streams[0].codec_context
        if codec is None:
            raise DataError(f"{self.path}: FFmpeg has no decoder for its video stream")
        if codec.width * codec.height > FRAME_PIXELS_MAX:
            raise DataError(
                f"{self.path}: a video of {codec.width} x {codec.height} pixels is larger than the "
                f"limit of {FRAME_PIXELS_MAX} pixels"
            )
        if codec.width * codec.height >= _LARGE_PIXELS:
            codec.thread_type = "AUTO"
        else:
            codec.thread_count = 1
        return streams[0]

    def _span(self) -> tuple[float, float | None]:
        """Where time 0 is as the file counts (some begin at 1.4 s), and where the stream ends, if
        the file says so.
        """
        first = self._container.start_time
        start = _seconds(self._stream, self._stream.start_time or 0)
        # Sound that begins a little below 0 is there to start its decoder and is not played.
        zero = start if first is None else min(max(first / av.time_base, 0.0), start)
        if self._stream.duration:
            return zero, start + _seconds(self._stream, self._stream.duration)
        return zero, _tagged_end(self._stream)

    def _duration(self) -> float:
        """As the file says, else by going through its packets."""
        if self._end_s is not None:
            return self._end_s - self._start_s
        if self._container.duration:  # of Matroska and FLV, which count it from 0
            return float(self._container.duration / av.time_base) - self._start_s
        last_s = self._last_s()
        if last_s <= 0:
            raise DataError(
                f"{self.path}: its frames have no times, so none can be chosen by seconds"
            )
        return last_s

    def _last_s(self) -> float:
        last = 0.0
        with av.open(str(self.path), timeout=self._limit_s, metadata_errors="replace") as again:
            stream = again.streams[self._stream.index]
            for packet in again.demux(stream):  # this needs a second look: not all can be rewound
                at = packet.dts if packet.pts is None else packet.pts
                if at is not None:
                    last = max(last, _seconds(stream, at + (packet.duration or 0)))
                self._check_time()
        return last - self._start_s

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise DataError(f"{self.path}: decoding took longer than {self._limit_s:g} s, given up")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What FFmpeg says, with the name of the file."""
        try:
            yield
        except av.error.ExitError as cause:  # its own clock: it waited for the disk
            raise DataError(
                f"{self.path}: decoding took longer than {self._limit_s:g} s, given up"
            ) from cause
        except (av.error.FFmpegError, ValueError, EOFError, MemoryError) as cause:
            reason = getattr(cause, "strerror", None) or cause
            raise DataError(f"{self.path}: cannot be decoded as a video: {reason}") from cause

    # ---- walking through the frames ----

    def _start_walk(self, wanted: Sequence[int] | None, short_cuts: bool = True) -> None:
        self._walk = FrameWalk(self._container, self._stream, wanted, short_cuts, self._check_time)

    def _found(self, wanted: int) -> Any:
        """The frame that is shown at a time."""
        try:
            frame = self._walk.at(wanted)
        except MissedFrameError:  # what the file says of its own frames is wrong: decode them all
            self.close()
            self._open()
            self._start_walk(None, short_cuts=False)
            frame = self._walk.at(wanted)
        if frame is None:
            raise DataError(f"{self.path}: the video stream holds no frame")
        return frame

    def _begin_s(self, frame: Any) -> float:
        return max(_seconds(self._stream, ticks_of(frame)) - self._start_s, 0.0)

    def _ticks(self, at_s: float) -> int:
        """A time in the unit of the stream."""
        return math.floor((at_s + _SLACK_S + self._start_s) / float(self._stream.time_base))

    def _check_whole(self, frame: Any, at_s: float, ended: bool) -> None:
        """A file that was cut off ends early and would show its last frame for all later times."""
        if not ended or self._end_s is None:
            return
        end_s = _seconds(self._stream, ticks_of(frame) + (frame.duration or 0)) - self._start_s
        if at_s - end_s > _MISSING_S:
            raise DataError(
                f"{self.path}: ends after {end_s:.2f} s although it says {self.duration_s:.2f} s; "
                "the file is cut off"
            )


def _seconds(stream: Any, ticks: int) -> float:
    return ticks * float(stream.time_base)


def _tagged_end(stream: Any) -> float | None:
    """Matroska says in a tag where a stream ends, in seconds as the file counts."""
    found = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    if found is None:
        return None
    hours, minutes, seconds = found.groups()
    return (int(hours) * 60 + int(minutes)) * 60 + float(seconds)


class _Painter:
    """Turns frames into pixels as a player shows them; one for all frames of a video, as setting it
    up takes longer than its use.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._rotation: float | None = None
        self._axes = (1, 0, 0, 1)

    def upright_rgb(self, frame: Any) -> np.ndarray:
        """Pixels ``[h, w, 3]``, of the size of the first frame, should it change."""
        if frame.rotation != self._rotation:
            # Seldom, as PyAV's side data and their frame hold each other: frames that were asked
            # for them would fill the memory until the garbage is next collected.
            self._rotation, self._axes = frame.rotation, _axes(frame)
        across, down, along, below = self._axes
        turned = abs(down) > abs(across)
        size = self._size or (None, None)
        width, height = size[::-1] if turned else size
        flat = self._reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        if turned:
            flat, across, below = flat.transpose(1, 0, 2), along, down
        pixels: np.ndarray = flat[:: -1 if below < 0 else 1, :: -1 if across < 0 else 1]
        self._size = (pixels.shape[1], pixels.shape[0])
        return pixels


def _axes(frame: Any) -> tuple[int, int, int, int]:
    """Where one pixel to the right (across, down), and one down (along, below), is shown."""
    matrix = frame.side_data.get("DISPLAYMATRIX") if len(frame.side_data) else None
    if matrix is None:
        return 1, 0, 0, 1
    across, down, _, along, below = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    return across, down, along, below


def gathered(found: Iterable[tuple[float, np.ndarray]], count: int) -> Shown:
    """Frames that come one by one, in one array.

    Args:
        found: When each begins, and its pixels ``[h, w, 3]``; all of one size.
        count: How many will come, so that they are put in their place at once.
    """
    begins: list[float] = []
    frames = np.empty((0, 0, 0, 3), np.uint8)
    for place, (begin_s, pixels) in enumerate(found):
        if not place:
            frames = np.empty((count, *pixels.shape), np.uint8)
        begins.append(begin_s)
        frames[place] = pixels
    return Shown(tuple(begins), frames)
