"""What reading videos costs: `tpokit.data.media.read_media` against a bare PyAV loop.

    python bench/video_reading.py [--folder VIDEOS] [--clips 1000] [--frames 16] [--quick]

Each clip is about 10 s of a file, the files in turn until there are enough; without a folder a few
are made on the spot. Both sides give the same frames as RGB, which is checked for every clip that
differs from those before. They take turns within one process, the order turned around from clip to
clip, and are timed by the clock and by processor time; the latter says more on a machine that
others use too. The goal is a ratio of at most 1.3.

The bare loop is what a careful person writes with PyAV alone: it knows the part that is wanted,
seeks only where the index has a key frame between here and the wanted time, and decodes forward
with PyAV's own settings. How fast it is on all cores (``thread_type = "AUTO"``) is shown, too: for
one reader that has the machine to itself, at the price of more processor time.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np

from tpokit import Media, MediaNeed
from tpokit.data.media import frame_times, read_media

GOAL = 1.3
_SUFFIXES = frozenset({".mp4", ".webm", ".avi", ".mkv", ".mov"})
_MADE = {"a.mp4": "libx264", "b.webm": "libvpx", "c.avi": "mpeg4", "d.mkv": "libx264"}


@dataclass(frozen=True)
class Clip:
    """A part of a video, in seconds."""

    path: Path
    start_s: float
    end_s: float


@dataclass
class Timing:
    """Seconds of all clips of one side, by the clock and by processor time."""

    clock_s: float = 0.0
    processor_s: float = 0.0


def read_ours(clip: Clip, count: int) -> np.ndarray:
    """Frames ``[t, h, w, 3]`` as a data worker reads them."""
    media = Media("video", clip.path, clip.start_s, clip.end_s)
    return read_media(media, {"bench": MediaNeed(frames=count)})["bench"].frames


def read_bare(clip: Clip, count: int, thread_type: str | None = None) -> np.ndarray:
    """The same frames with PyAV alone."""
    found = []
    with av.open(str(clip.path)) as container:
        stream = container.streams.video[0]
        if thread_type is not None:
            stream.thread_type = thread_type
        tick_s, first = float(stream.time_base), stream.start_time or 0
        frames = container.decode(stream)
        here = after = None
        position, started = first, False
        for at_s in frame_times(MediaNeed(frames=count), clip.start_s, clip.end_s):
            wanted = first + int((at_s + 1e-6) / tick_s)
            place = stream.index_entries.search_timestamp(wanted)
            if place >= 0 and stream.index_entries[place].timestamp > position:
                container.seek(wanted, stream=stream)
                frames = container.decode(stream)
                started = False
            if not started:
                here, after, started = None, next(frames), True
            while after is not None and after.pts <= wanted:
                here, after = after, next(frames, None)
                position = here.pts if after is None else after.pts
            found.append((after if here is None else here).to_ndarray(format="rgb24"))
    return np.stack(found)


def time_alternating(
    sides: dict[str, Callable[[Clip], np.ndarray]], clips: Iterator[Clip]
) -> dict[str, Timing]:
    """Time all sides on every clip in turn.

    Raises:
        SystemExit: The frames of a clip differ.
    """
    timings = {name: Timing() for name in sides}
    seen: set[Clip] = set()
    for turn, clip in enumerate(clips):
        frames = {}
        for name in sorted(sides, reverse=bool(turn % 2)):
            clock, processor = time.perf_counter(), time.process_time()
            frames[name] = sides[name](clip)
            timings[name].clock_s += time.perf_counter() - clock
            timings[name].processor_s += time.process_time() - processor
        if clip not in seen and len({array.tobytes() for array in frames.values()}) > 1:
            raise SystemExit(f"{clip}: the sides give different frames")
        seen.add(clip)
    return timings


def clips_of(path: Path, part_s: float) -> list[Clip]:
    """A video in parts of about that length."""
    with av.open(str(path)) as container:
        length_s = container.duration / av.time_base
    parts = max(1, round(length_s / part_s))
    edges = [length_s * index / parts for index in range(parts + 1)]
    return [Clip(path, start_s, end_s) for start_s, end_s in itertools.pairwise(edges)]


def make_videos(folder: Path, width: int, height: int, length_s: float) -> None:
    """A few videos of a moving pattern, in several formats."""
    row, column = np.mgrid[:height, :width]
    for name, codec in _MADE.items():
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for index in range(round(25 * length_s)):
                wave = np.sin((column + 3 * index) / 17) * np.cos((row + 2 * index) / 23)
                grey = (127 + 100 * wave).astype(np.uint8)
                picture = np.stack([grey, np.roll(grey, index, 1), 255 - grey], -1)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def report(folder: Path, count: int, frames: int, part_s: float) -> None:
    """Time all sides and print what they took."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    distinct = [clip for path in paths for clip in clips_of(path, part_s)]
    if not distinct:
        raise SystemExit(f"{folder} holds no video")
    print(
        f"PyAV {av.__version__}, {count} clips ({len(distinct)} different ones of {len(paths)} "
        f"files, {np.mean([clip.end_s - clip.start_s for clip in distinct]):.1f} s on average), "
        f"{frames} frames each"
    )
    sides = {
        "ours": partial(read_ours, count=frames),
        "bare": partial(read_bare, count=frames),
        "bare, all cores": partial(read_bare, count=frames, thread_type="AUTO"),
    }
    timings = time_alternating(sides, itertools.islice(itertools.cycle(distinct), count))
    print("all sides give the same frames")
    for name, timing in timings.items():
        print(
            f"  {name:<16} clock {timing.clock_s:8.2f} s, processor {timing.processor_s:8.2f} s, "
            f"{1000 * timing.processor_s / count:6.1f} ms a clip"
        )
    ours, bare = timings["ours"], timings["bare"]
    clock, processor = ours.clock_s / bare.clock_s, ours.processor_s / bare.processor_s
    reached = "reached" if max(clock, processor) <= GOAL else "MISSED"
    print(
        f"  ratio {clock:.2f} by the clock, {processor:.2f} by processor time; goal at most {GOAL}:"
        f" {reached}"
    )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description="What reading videos costs.")
    parser.add_argument("--folder", type=Path, help="videos; made on the spot if not given")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--part", type=float, default=10.0, help="length of a clip in seconds")
    parser.add_argument("--quick", action="store_true", help="small videos, seconds")
    options = parser.parse_args()
    count = min(options.clips, 8) if options.quick else options.clips
    if options.folder is not None:
        report(options.folder, count, options.frames, options.part)
        return
    with tempfile.TemporaryDirectory() as place:
        size = (160, 120, 2.0) if options.quick else (480, 270, 20.0)
        make_videos(Path(place), *size)
        report(Path(place), count, options.frames, options.part)


if __name__ == "__main__":
    main()
