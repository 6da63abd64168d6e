"""Walking forward through the frames of a video stream, decoding as little as the file allows.

A key frame between here and the next wanted time is jumped to. A frame that nobody wants and no
other frame is predicted from is not decoded (H.264, where the stream says so). All times are whole
numbers in the unit of the stream, its ``time_base``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av

_AHEAD = 8  # packets that are read before one is decoded, to know which frames nobody wants
_SKIPPED_CODECS = frozenset({"h264"})  # where "not predicted from" holds for every other frame
_JUMP_S = 1.5  # without an index: gaps that are longer are crossed by seeking
_VAIN_JUMPS = 2  # after so many that led backward no more are tried: key frames are far apart


class MissedFrameError(Exception):
    """A short cut led past a wanted frame."""


class FrameWalk:
    """Goes through the frames of a stream in the order in which they are shown.

    Attributes:
        ended: Whether the last frame has been reached.
    """

    def __init__(
        self,
        container: Any,
        stream: Any,
        wanted: Sequence[int] | None,
        short_cuts: bool,
        check_time: Callable[[], None],
    ) -> None:
        """Stand before the first frame; nothing is decoded yet.

        Args:
            container, stream: An open file of PyAV and one of its streams.
            wanted: Times that will be asked for, in rising order; ``None``: every frame from the
                first such time on.
            short_cuts: Jump to key frames, and leave out frames that nobody wants; else all frames
                are decoded.
            check_time: Called before each packet; raises when the time is up.
        """
        self._container = container
        self._stream = stream
        self._wanted = wanted or ()
        self._check_time = check_time
        # AVI knows only when packets are decoded, and what FFmpeg makes of that is wrong where
        # frames are reordered: a frame takes the time of the packet so many before the one that
        # brought it out as the decoder holds back.
        self._counts = container.format.name == "avi"
        self._held: int | None = None
        self._clock: deque[int] = deque()
        self._short_cuts = short_cuts
        codec = stream.codec_context.name
        skips = short_cuts and wanted is not None and not self._counts
        self._skips = skips and codec in _SKIPPED_CODECS
        self._first = stream.start_time or 0
        self._here: Any = None  # the frame at or before the last time asked for
        self._next: Any = None
        self._packets: Any = None
        self._ahead: deque[Any] = deque()
        self._decoded: deque[Any] = deque()
        self._passed: list[int] = []  # times of frames that were not decoded
        self._vain_jumps = 0
        self.ended = False

    def at(self, wanted: int) -> Any:
        """The last frame at or before a time.

        Args:
            wanted: Not before the time asked for last.

        Returns:
            The frame; the first one if there is none before; ``None`` if the stream holds none.

        Raises:
            MissedFrameError: It was left out; walk again without ``short_cuts``.
        """
        if self._worth_a_jump(wanted):
            self._jump(wanted)
        elif self._packets is None:
            self._restart()
        while self._next is not None and ticks_of(self._next) <= wanted:
            self._here, self._next = self._next, self._advance()
        self.ended = self._next is None
        found = self._next if self._here is None else self._here
        if found is not None:
            # what stands before it is never asked for again
            self._passed = [at for at in self._passed if at > ticks_of(found)]
            if any(at <= wanted for at in self._passed):
                raise MissedFrameError
        return found

    def following(self) -> Iterator[Any]:
        """All frames behind the one that was found last, one by one."""
        if self._here is None:  # the first frame stood for a time before it
            self._here, self._next = self._next, self._advance()
        while self._next is not None:
            self._here, self._next = self._next, self._advance()
            yield self._here
        self.ended = True

    def _position(self) -> int:
        return self._first if self._next is None else ticks_of(self._next)

    def _worth_a_jump(self, wanted: int) -> bool:
        """Whether a key frame stands between here and there, as far as the file knows."""
        if self.ended or not self._short_cuts or self._vain_jumps >= _VAIN_JUMPS:
            return False
        index = self._stream.index_entries
        # MP4 lists when key frames are decoded; they are shown that much later
        lag = max(self._first - index[0].timestamp, 0) if len(index) else 0
        place = index.search_timestamp(wanted - lag)
        if place >= 0 and index[place].timestamp + lag > self._position():
            return True
        known = len(index) > 0 and index[len(index) - 1].timestamp > wanted
        gap_s = (wanted - self._position()) * float(self._stream.time_base)
        return not known and gap_s > _JUMP_S

    def _jump(self, wanted: int) -> None:
        """Go to the key frame before a time; an index may point too late, so try earlier ones."""
        if self._packets is None and self._counts:
            self._restart()  # to see how many frames the decoder holds back
        elif self._packets is None:
            self._packets = self._container.demux(self._stream)
            next(self._packets, None)  # FFmpeg's clock runs only once something has been read
        before = self._position()
        for goal in self._goals(wanted):
            try:
                self._container.seek(goal, stream=self._stream)
            except av.error.PermissionError:  # FFmpeg's "nothing found there"
                continue
            self._restart()
            if self._next is not None and ticks_of(self._next) <= wanted:
                break
        else:
            raise MissedFrameError
        if self._position() <= before:
            self._vain_jumps += 1

    def _goals(self, wanted: int) -> Iterator[int]:
        """Where to look for the key frame before a time."""
        second = max(1, round(1 / float(self._stream.time_base)))
        back = 0
        while wanted - back > self._first:
            yield wanted - back
            back = max(second, 4 * back)
        yield self._first
        yield self._first - second  # MPEG-TS finds its first key frame only from before it

    def _restart(self) -> None:
        """Begin to decode where the file stands."""
        self._packets = self._container.demux(self._stream)
        for queue in (self._ahead, self._decoded, self._clock, self._passed):
            queue.clear()
        self._here, self._next = None, self._advance()

    def _advance(self) -> Any:
        """The next frame, or ``None`` at the end."""
        while not self._decoded:
            while len(self._ahead) < _AHEAD:
                packet = next(self._packets, None)
                if packet is None:
                    break
                self._ahead.append(packet)
            if not self._ahead:
                return None
            self._check_time()
            self._decode(self._ahead.popleft())
        return self._decoded.popleft()

    def _decode(self, packet: Any) -> None:
        if self._skips:
            skipped = "NONREF" if self._unwanted(packet) else "DEFAULT"
            self._stream.codec_context.skip_frame = skipped
        if not self._counts:
            self._decoded.extend(packet.decode())
            return
        if packet.size and packet.dts is not None:
            self._clock.append(packet.dts)
            if self._held is not None and len(self._clock) > self._held + 1:
                self._clock.popleft()  # of a frame that could not be decoded behind a jump
        frames = packet.decode()
        if frames and self._held is None:
            self._held = len(self._clock) - 1
        for frame in frames:
            frame.pts = self._clock.popleft() if self._clock else frame.dts
        self._decoded.extend(frames)

    def _unwanted(self, packet: Any) -> bool:
        """Whether another frame is shown before the next wanted time, or none is wanted after."""
        at = packet.pts
        if at is None:
            return False
        place = bisect_left(self._wanted, at)
        if place < len(self._wanted):
            goal = self._wanted[place]
            later = (other.pts for other in self._ahead)
            if not any(other is not None and at < other <= goal for other in later):
                return False
        self._passed.append(at)
        return True


def ticks_of(frame: Any) -> int:
    """When a frame is shown.

    Raises:
        ValueError: The file does not say.
    """
    at = frame.dts if frame.pts is None else frame.pts
    if at is None:
        raise ValueError("a frame has no time")
    return int(at)
