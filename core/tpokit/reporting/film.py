"""Pictures to a video file that plays everywhere: H.264 in MP4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL.Image import Image

from tpokit.atomic import whole_file
from tpokit.errors import UsageError

_TICKS = 90_000  # a second: whole for all common rates, and the unit of MPEG
_OPTIONS = {
    "crf": "20",  # hardly seen to be compressed
    "preset": "veryfast",  # also holds the fewest frames
    "bf": "0",  # with reordered frames, MP4 loses the length of a video of variable rate
}


def write_film(frames: Iterable[tuple[float, Image]], path: Path) -> None:
    """Write a video that shows pictures at their times.

    Args:
        frames: When each is shown, in seconds in rising order, and the picture, all of one size;
            taken one by one, and not kept. The film begins with the first one, whatever its time;
            the last one is shown as long as the one before.
        path: The MP4; written whole or not at all. A picture of odd width or height gets its last
            column or row twice, as H.264 halves the resolution of colours.

    Raises:
        UsageError: There is no frame.
        CheckpointError: The file cannot be written.
    """
    coming = iter(frames)
    first = next(coming, None)
    if first is None:
        raise UsageError(f"{path}: no frames to make a video of")
    with (
        whole_file(path) as partial,
        av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = _stream(container, first[1])
        held: Any = (
            None  # a packet waits for the next one, as the last one has to say how long it is
        )
        stays = _TICKS // 25
        for packet in _packets(stream, chain([first], coming)):
            if held is not None:
                stays = packet.pts - held.pts
                container.mux(held)
            held = packet
        held.duration = stays
        container.mux(held)


def _stream(container: Any, picture: Image) -> Any:
    stream = container.add_stream("libx264", options=_OPTIONS)
    stream.width, stream.height = (side + side % 2 for side in picture.size)
    stream.pix_fmt = "yuv420p"
    stream.codec_context.colorspace = Colorspace.ITU601  # what FFmpeg makes of RGB
    stream.codec_context.time_base = Fraction(1, _TICKS)
    return stream


def _packets(stream: Any, frames: Iterable[tuple[float, Image]]) -> Iterator[Any]:
    start_s, before = None, -1
    for time_s, picture in frames:
        start_s = time_s if start_s is None else start_s
        frame = av.VideoFrame.from_ndarray(_even(picture), format="rgb24")
        before = max(round((time_s - start_s) * _TICKS), before + 1)
        frame.pts, frame.time_base = before, Fraction(1, _TICKS)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _even(picture: Image) -> np.ndarray:
    pixels = np.asarray(picture.convert("RGB"))
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return pixels
