"""Videos that are published as folders of frames."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpokit.data.frame_folder import frame_names
from tpokit.errors import DataError
from tpokit.types import Media


@dataclass(frozen=True)
class ListedFrames:
    """Some frames of a folder.

    Attributes:
        media: The whole video.
        frame_s: Seconds from one of its frames to the next.
        names: Of the listed frames, without ending.
        times_s: When each of them is shown.
    """

    media: Media
    frame_s: float
    names: tuple[str, ...]
    times_s: tuple[float, ...]


def listed_frames(folder: Path, names: Sequence[str], rate: float, where: str) -> ListedFrames:
    """Find frames by their names.

    Args:
        folder: Of the video. It may hold more frames than are listed, as where a set is published
            with all frames but annotated every few.
        names: Of the listed frames in their order, without ending.
        rate: Listed frames a second. If they are k frames of the folder apart (the fewest between
            any two neighbours), the folder has k times as many a second.
        where: For messages.

    Raises:
        DataError: The folder cannot be read, lacks a frame, or has them in another order.
    """
    there = {name: place for place, name in enumerate(_stems(folder))}
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(names)} frames are not in {folder}, the first is "
            f"{missing[0]!r}"
        )
    places = [there[name] for name in names]
    apart = min((later - earlier for earlier, later in itertools.pairwise(places)), default=1)
    if apart < 1:
        raise DataError(f"{where}: the frames are not listed in the order of their names")
    return _shown(folder, names, places, rate * apart)


def all_frames(folder: Path, rate: float) -> ListedFrames:
    """All frames of a folder, ``rate`` a second.

    Raises:
        DataError: It cannot be read, or holds no frame.
    """
    names = _stems(folder)
    return _shown(folder, names, range(len(names)), rate)


def _stems(folder: Path) -> list[str]:
    return [Path(name).stem for name in frame_names(folder)]


def _shown(folder: Path, names: Sequence[str], places: Sequence[int], rate: float) -> ListedFrames:
    times_s = tuple(place / rate for place in places)
    return ListedFrames(Media("video", folder, rate=rate), 1 / rate, tuple(names), times_s)
