"""Reads tracks back from the file that ``tpokit evaluate --answers FILE.jsonl`` writes.

Where a question was about a part of a video, nothing was found on its other frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tpokit.data.frame_folder import frame_names
from tpokit.data.lines import JsonLines
from tpokit.errors import DataError
from tpokit_mask.metrics.boxes import repeat_empty
from tpokit_mask.metrics.region import Bools, Floats
from tpokit_mask.results import BoxPx, FrameResult, MaskTrack, Rle
from tpokit_mask.run_lengths import decode_run_lengths

_TASK = "mask"
_SLACK_S = 1e-3  # times are written with four decimals
_NOWHERE: BoxPx = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class SavedAnswer:
    """What a model found in a video.

    Attributes:
        where: File and line, for messages.
        sample: Id of the sample.
        tracks: Of its calls, in reading order; none if the head was not called.
        height_px, width_px: Size of the video.
        names: Of all its frames, without suffix: those of the files in a folder of frames; in a
            video file the places from 00000 on, of the frames that the head went through.
        times_s: When each is shown, in seconds from the start of the video.
        reach_s: How far a frame that was answered may be from the one that is asked for.
    """

    where: str
    sample: str
    tracks: tuple[MaskTrack, ...]
    height_px: int
    width_px: int
    names: tuple[str, ...]
    times_s: tuple[float, ...]
    reach_s: float = math.inf

    def _found(self, track: MaskTrack, frame: int) -> FrameResult | None:
        found = track.at(self.times_s[frame])
        near = found is not None and abs(found.time_s - self.times_s[frame]) <= self.reach_s
        return found if near else None

    def mask(self, frame: int) -> Bools:
        """Union ``[h, w]`` of the masks of all calls on a frame.

        Raises:
            DataError: Run lengths are broken.
        """
        united: Bools = np.zeros((self.height_px, self.width_px), dtype=bool)
        for track in self.tracks:
            found = self._found(track, frame)
            if found is not None and found.rle is not None:
                counts = found.rle["counts"]
                united |= decode_run_lengths(self.height_px, self.width_px, counts, self.where)
        return united

    def boxes_xywh_px(self) -> Floats:
        """Boxes ``[t, 4]`` of the first call on all frames; where the object is lost, the last box
        is repeated (see `repeat_empty`), zeros without a call.
        """
        track = self.tracks[0] if self.tracks else MaskTrack("video", 0, 0, ())
        found = [self._found(track, frame) for frame in range(len(self.times_s))]
        corners = [frame.box or _NOWHERE if frame else _NOWHERE for frame in found]
        boxes = np.array(corners, dtype=np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        return repeat_empty(boxes)


class SavedAnswers:
    """The lines of a file of answers, read one at a time."""

    def __init__(self, path: Path) -> None:
        """Find the lines.

        Raises:
            DataError: There is no such file, or nothing in it.
        """
        self._lines = JsonLines(path)

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, index: int) -> SavedAnswer:
        """One answer.

        Raises:
            DataError: The line holds no answer about a video, or its folder of frames is not there.
        """
        where, line = self._lines.place(index), self._lines.read(index)
        try:
            medium, path, sample = line["media"][0], Path(line["medium"]), str(line["sample"])
            height_px, width_px = int(medium["height"]), int(medium["width"])
            rate = None if line.get("rate") is None else float(line["rate"])
            if medium["kind"] != "video":
                raise DataError(f"{where}: {sample} is about an image; the formats are for videos")
            found = [call for call in line["calls"] if call["task"] == _TASK and "masks" in call]
            tracks = tuple(_track(call, height_px, width_px, where) for call in found)
        except (KeyError, IndexError, TypeError, ValueError) as cause:
            raise DataError(
                f"{where}: cannot be read as an answer ({type(cause).__name__}: {cause}); such a "
                "file is written by tpokit evaluate --answers"
            ) from cause
        names, times_s = _frames(path, rate, tracks, where)
        steps = [b.time_s - a.time_s for track in tracks for a, b in pairwise(track.frames)]
        reach_s = max([1 / rate if rate else 0.0, *steps]) / 2 + _SLACK_S
        return SavedAnswer(where, sample, tracks, height_px, width_px, names, times_s, reach_s)


def _track(call: Mapping[str, Any], height_px: int, width_px: int, where: str) -> MaskTrack:
    """What `MaskTrack.to_json` wrote."""
    frames = tuple(
        FrameResult(
            float(frame["time_s"]), _rle(frame["rle"]), _box(frame["box"]), frame.get("score")
        )
        for frame in call["masks"]
    )
    sizes = {tuple(frame.rle["size"]) for frame in frames if frame.rle is not None}
    if sizes - {(height_px, width_px)}:
        raise DataError(
            f"{where}: masks of height, width {sorted(sizes)} in a video of {(height_px, width_px)}"
        )
    return MaskTrack("video", height_px, width_px, frames)


def _rle(plain: Mapping[str, Any] | None) -> Rle | None:
    if plain is None:
        return None
    height, width = plain["size"]
    return {"size": [int(height), int(width)], "counts": str(plain["counts"])}


def _box(plain: Any) -> BoxPx | None:
    if plain is None:
        return None
    x0, y0, x1, y1 = (float(value) for value in plain)
    return x0, y0, x1, y1


def _frames(
    path: Path, rate: float | None, tracks: tuple[MaskTrack, ...], where: str
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Names and times of all frames of a video."""
    if not path.exists():
        raise DataError(
            f"{where}: {path} is not there; run this in the folder that tpokit evaluate ran in"
        )
    times_s = sorted({frame.time_s for track in tracks for frame in track.frames})
    if path.is_dir():
        names = tuple(Path(name).stem for name in frame_names(path))
        if rate is None:
            raise DataError(
                f"{where}: {path} is a folder of frames, so the line must say how many there are a "
                "second ('rate'), as tpokit evaluate --answers writes it"
            )
        return names, tuple(place / rate for place in range(len(names)))
    if not times_s:
        raise DataError(
            f"{where}: nothing was found in {path}, so it is not known how many frames this video "
            "file has; give benchmarks their folders of frames"
        )
    return tuple(f"{place:05d}" for place in range(len(times_s))), tuple(times_s)
