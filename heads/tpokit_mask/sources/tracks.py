"""One object of a video as a source finds it, and the sample that is made of it."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tpokit.data.boxes import Corners
from tpokit.errors import DataError
from tpokit.interfaces import DataSource
from tpokit.types import Media, MediaInfo, Sample, Turn
from tpokit_mask.annotations import UNKNOWN, read_annotation
from tpokit_mask.sources.options import TrackOptions

_SPARSE = 1.5  # annotated frames so many frames apart are not neighbours


@dataclass(frozen=True)
class Track:
    """An object through a video.

    Attributes:
        id: Unique within its source; names the video and the object as submissions do.
        media: The whole video.
        frame_s: Seconds from one of its frames to the next.
        frames: Annotated frames in the form of `tpokit_mask.annotations`, paths absolute; in a
            split without labels only those that give the box.
        where: File and place, for messages.
        expression: Refers to the object; ``None``: its box is given.
        labelled: Whether what is right is known.
    """

    id: str
    media: Media
    frame_s: float
    frames: tuple[Mapping[str, Any], ...]
    where: str
    expression: str | None = None
    labelled: bool = True


class TrackSource(DataSource):
    """Samples of one object each; what a video looks like is left to the sources.

    Opening one reads an index only; masks are read with their sample.
    """

    def __init__(self, options: TrackOptions, folder: Path) -> None:
        """Remember the options; sources open their files. See `DataSource`."""
        self._options = options

    @abstractmethod
    def _track(self, index: int) -> Track:
        """The ``index``-th object."""

    def read(self, index: int, random: np.random.Generator) -> Sample:
        """See `DataSource.read`."""
        return sample_of(self._track(index), self._options, random)


def sample_of(track: Track, options: TrackOptions, random: np.random.Generator) -> Sample:
    """The question, the part of the video and what is right there.

    Raises:
        DataError: The box is to be given, but no frame shows the object; or a mask is broken that
            had to be looked at.
    """
    frames, media = track.frames, track.media
    first = 0
    if options.window is not None and track.labelled:
        first = _drawn_start(track, options.window, random)
        frames = frames[first : first + options.window]
        media = _window(track, frames)
    elif track.expression is None:
        first = _first_visible(track, range(len(frames)))
        start_s = frames[first]["time_s"]
        frames = frames[first:]
        media = replace(media, start_s=start_s) if start_s else media
    given = {} if track.expression is not None else {"mask": (_given(track, first),)}
    annotation = {"frames": [dict(frame) for frame in frames]} if track.labelled else UNKNOWN
    return Sample(
        id=track.id,
        turns=_turns(track, options, random),
        media=(media,),
        targets={"mask": (annotation,)},
        given=given,
    )


def _drawn_start(track: Track, window: int, random: np.random.Generator) -> int:
    """Where a window begins: all frames that show the object are equally likely among those that
    have a whole window behind them; only if there is none of these, others are.
    """
    count = len(track.frames)
    places = np.arange(count)
    # between annotated frames, a window can be laid around them only if there is room before it
    fits = (places + window <= count) & ((places > 0) | (not _is_sparse(track)))
    order = [*random.permutation(places[fits]), *random.permutation(places[~fits])]
    if track.expression is not None and not any(map(_may_show, track.frames)):
        return int(order[0])
    return _first_visible(track, order)


def _first_visible(track: Track, order: Sequence[int]) -> int:
    """The first place in an order whose frame shows the object."""
    for place in order:
        if _box(track, int(place)) is not None:
            return int(place)
    if track.expression is not None:
        return int(order[0])
    raise DataError(f"{track.where}: no annotated frame shows the object, so there is no box of it")


def _given(track: Track, place: int) -> Corners:
    box = _box(track, place)
    assert box is not None, "a frame was chosen that shows the object"
    return box


def _may_show(frame: Mapping[str, Any]) -> bool:
    """Without decoding: false where the object is known not to be visible."""
    return bool(frame.get("mask")) or frame.get("box") is not None


def _box(track: Track, place: int) -> Corners | None:
    """The box on a frame as fractions; ``None``: not visible."""
    frame = track.frames[place]
    if not _may_show(frame):
        return None
    height, width = _size(frame.get("mask"), track.where)
    where = f"{track.where}, frame at {frame['time_s']:g} s"
    still = {key: value for key, value in frame.items() if key != "time_s"}
    return read_annotation(still, MediaInfo("image", width, height), where).box(0)


def _size(mask: Any, where: str) -> tuple[int, int]:
    """Height and width that a mask of a source has; whether the video has them, the head checks."""
    if mask is None:
        return 1, 1  # a box is fractions of whatever size
    part = mask[0] if isinstance(mask, list) else mask
    if "png" in part:
        try:
            with Image.open(part["png"]) as picture:
                return picture.height, picture.width
        except (OSError, SyntaxError, ValueError) as cause:
            raise DataError(f"{where}: the mask {part['png']} cannot be read: {cause}") from cause
    size = part["rle"].get("size") if isinstance(part["rle"], Mapping) else None
    if (
        not isinstance(size, list)
        or len(size) != 2
        or any(type(n) is not int or n < 1 for n in size)
    ):
        raise DataError(f"{where}: broken RLE: size is {size!r}; it is [height, width] in pixels")
    return size[0], size[1]


def _step_s(track: Track) -> float:
    """From one annotated frame to the next."""
    times_s = [frame["time_s"] for frame in track.frames]
    return min(
        (later - earlier for earlier, later in itertools.pairwise(times_s)), default=track.frame_s
    )


def _is_sparse(track: Track) -> bool:
    return _step_s(track) > _SPARSE * track.frame_s


def _window(track: Track, frames: Sequence[Mapping[str, Any]]) -> Media:
    """The part of the video around some of its annotated frames.

    Its length is a multiple of their step, and they stand in the middle of the parts: a consumer
    that wants as many frames sees just these.
    """
    step_s = _step_s(track)
    first_s, last_s = frames[0]["time_s"], frames[-1]["time_s"]
    before_s = (step_s - track.frame_s) / 2 if _is_sparse(track) else 0.0
    start_s = max(first_s - before_s, 0.0)
    return replace(track.media, start_s=start_s, end_s=start_s + (last_s - first_s) + step_s)


def _turns(track: Track, options: TrackOptions, random: np.random.Generator) -> tuple[Turn, ...]:
    question = options.wordings[int(random.integers(len(options.wordings)))]
    answer = options.answers[int(random.integers(len(options.answers)))]
    said = track.expression
    if said is not None:
        question, answer = (text.replace("{expression}", said) for text in (question, answer))
    return Turn("user", question), Turn("assistant", answer)
