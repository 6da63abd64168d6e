"""Checks masks and tracks as they stand in annotations; does not import torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tpokit.data.boxes import Corners, read_box
from tpokit.errors import DataError
from tpokit.types import MediaInfo
from tpokit_mask.mask_specs import MASK_FORMS, MaskSpec, is_number, read_mask_spec, short
from tpokit_mask.options import BoxOfMask
from tpokit_mask.outer_box import outer_boxes
from tpokit_mask.results import FrameResult, MaskTrack, frame_result, tight_box_px
from tpokit_mask.run_lengths import Bools

UNKNOWN = {"unknown": True}
"""The annotation of a call of which nobody knows what is right: splits whose masks stay on a
server. It costs the head nothing in training and is scored nowhere."""

_FRAME_KEYS = frozenset({"time_s", "mask", "box"})
_ONE_FRAME_S = 1e-3  # how near a time must be to the only annotated frame of a video
_SLACK_S = 1e-6  # times are computed: k / rate is rarely exact


@dataclass(frozen=True)
class FrameTarget:
    """What is known of an object on one frame.

    Attributes:
        time_s: When the frame is shown, in seconds from the start of the medium; 0 for an image.
        visible: Whether the object is; ``None``: its mask decides.
        box: Corners as fractions of the image, if they are given.
        spec: The mask as annotated; ``None``: there is none, only a box or that it is not visible.
    """

    time_s: float
    visible: bool | None
    box: Corners | None
    spec: MaskSpec | None


@dataclass(frozen=True)
class MaskTarget:
    """What is right for one call: an object in an image or through a video.

    Masks are decoded when they are asked for, each time anew.

    Attributes:
        height_px, width_px: Size of the medium.
        kind: ``image`` or ``video``.
        frames: The annotated ones, in the order of their times; none if nobody knows (`UNKNOWN`).
        where: The sample, for messages.
    """

    height_px: int
    width_px: int
    kind: Literal["image", "video"]
    frames: tuple[FrameTarget, ...]
    where: str

    def mask(self, index: int) -> Bools | None:
        """The mask ``[h, w]`` of an annotated frame; all False: not visible; ``None``: not known,
        there is a box only.

        Raises:
            DataError: It is broken, missing, not of the size of the medium, or empty where a box
                says that the object is visible.
        """
        frame = self.frames[index]
        found = np.zeros((self.height_px, self.width_px), dtype=bool)
        if frame.visible is False:
            return found
        if frame.spec is None:
            return None
        where = self._place(index)
        for part in frame.spec:
            found |= part.decode(self.height_px, self.width_px, where)
        if frame.box is not None and not found.any():
            raise DataError(f"{where}: the mask is empty, but there is a box; which is right?")
        return found

    def box(self, index: int, drawn: BoxOfMask = "tight") -> Corners | None:
        """The box of an annotated frame as fractions: the given one, else that of the mask;
        ``None``: not visible.

        Args:
            index: Of the frame.
            drawn: How a box is drawn around a mask; ``outer``: see `tpokit_mask.outer_box`.

        Raises:
            DataError: As in `mask`.
        """
        if self.frames[index].box is not None:
            return self.frames[index].box
        mask = self.mask(index)
        if mask is not None and drawn == "outer":
            x0, y0, x1, y1 = outer_boxes(mask[None])[0].tolist()
            return None if x0 < 0 else (x0, y0, x1, y1)
        corners_px = None if mask is None else tight_box_px(mask)
        if corners_px is None:
            return None
        x0, y0, x1, y1 = corners_px
        width, height = self.width_px, self.height_px
        return x0 / width, y0 / height, x1 / width, y1 / height

    def nearest(self, times_s: Sequence[float]) -> list[int | None]:
        """For each wanted time the annotated frame nearest to it, the earlier one of two.

        ``None`` where the nearest is farther away than half the smallest step between annotated
        frames: there it would be the mask of another moment. Of a video with one annotated frame, a
        time must be that of the frame to a millisecond. An image has its one frame at all times.
        """
        if not self.frames:
            return [None] * len(times_s)
        if self.kind == "image":
            return [0] * len(times_s)
        known = np.array([frame.time_s for frame in self.frames])
        limit = _ONE_FRAME_S if len(known) == 1 else float(np.diff(known).min()) / 2
        wanted = np.asarray(times_s, dtype=float)
        after = np.searchsorted(known, wanted)
        before = np.maximum(after - 1, 0)
        after = np.minimum(after, len(known) - 1)
        earlier = np.abs(wanted - known[before]) <= np.abs(known[after] - wanted) + _SLACK_S
        index = np.where(earlier, before, after)
        near = np.abs(wanted - known[index]) <= limit + _SLACK_S
        return [int(at) if ok else None for at, ok in zip(index, near, strict=True)]

    def result(self) -> MaskTrack:
        """The right result on all annotated frames, all masks decoded.

        Raises:
            DataError: As in `mask`.
        """
        return MaskTrack(
            self.kind,
            self.height_px,
            self.width_px,
            tuple(self._frame_result(index) for index in range(len(self.frames))),
        )

    def _frame_result(self, index: int) -> FrameResult:
        frame, mask = self.frames[index], self.mask(index)
        found = FrameResult(frame.time_s, None, None)
        if mask is not None:
            found = frame_result(frame.time_s, mask)
        if frame.box is None:
            return found
        x0, y0, x1, y1 = frame.box
        width, height = self.width_px, self.height_px
        return FrameResult(
            frame.time_s, found.rle, (x0 * width, y0 * height, x1 * width, y1 * height)
        )

    def _place(self, index: int) -> str:
        return _frame_place(self.where, self.kind, index, self.frames[index].time_s)


def read_annotation(
    annotation: Any, media: MediaInfo, where: str, folder: Path | None = None
) -> MaskTarget:
    """A target from an annotation.

    A mapping ``{"frames": [{"time_s": 0.0, "mask": MASK, "box": [x0, y0, x1, y1]}, ...]}``:

    - ``time_s``: seconds from the start of the medium, rising. A frame of the medium without an
      entry is not annotated.
    - ``mask``: one of `mask_specs.MASK_FORMS`; ``null`` and an empty mask: the object is not
      visible on that frame.
    - ``box``: fractions of the image. Without ``mask``, only the box is known there; ``null``
      then means that the object is not visible. With a mask, ``null`` says nothing.

    Of an image there is one entry, whose ``time_s`` may be left out; instead of the list it may
    also be given as ``{"mask": MASK, "box": ...}`` or as MASK.

    ``{"unknown": true}``: nobody knows; see `UNKNOWN`.

    Args:
        annotation: As above.
        media: The medium, whose size all masks must have.
        where: The sample, for messages.
        folder: Relative paths of PNGs are relative to it.

    Raises:
        DataError: Not in this form, no frame, times that do not rise, a mask of another size, or
            one that contradicts its box.
    """
    size = (int(media.height), int(media.width))
    if isinstance(annotation, Mapping) and "unknown" in annotation:
        if dict(annotation) != UNKNOWN:
            raise DataError(
                f"{where}: {short(dict(annotation))}: a target that is not known is "
                "{'unknown': true} and nothing else"
            )
        return MaskTarget(*size, media.kind, (), where)
    entries = _entries(annotation, media.kind, where)
    frames: list[FrameTarget] = []
    for index, entry in enumerate(entries):
        time_s = _time_s(entry, media.kind, f"{where}, frame {index + 1}")
        place = _frame_place(where, media.kind, index, time_s)
        frames.append(_frame(entry, time_s, size, place, folder))
    for earlier, later in itertools.pairwise(frames):
        if later.time_s <= earlier.time_s:
            raise DataError(
                f"{where}: the times of the frames do not rise: {later.time_s:g} s comes after "
                f"{earlier.time_s:g} s"
            )
    return MaskTarget(*size, media.kind, tuple(frames), where)


def _entries(annotation: Any, kind: str, where: str) -> Sequence[Any]:
    """The frames of an annotation, whatever its form."""
    if not isinstance(annotation, Mapping) or "frames" not in annotation:
        if kind == "video":
            raise DataError(
                f"{where}: {short(annotation)} has no 'frames'; a target in a video is such as "
                "{'frames': [{'time_s': 0.0, 'mask': ...}, ...]}"
            )
        one_frame = isinstance(annotation, Mapping) and {"mask", "box"} & set(annotation)
        return [annotation] if one_frame else [{"mask": annotation}]
    others = [repr(key) for key in annotation if key != "frames"]
    if others:
        raise DataError(
            f"{where}: a target of the mask head has no {', '.join(others)} beside 'frames'"
        )
    frames = annotation["frames"]
    if not isinstance(frames, list | tuple) or not frames:
        raise DataError(
            f"{where}: 'frames' is {short(frames)}; it is a list of one or more annotated frames; "
            "where nobody knows what is right, the target is {'unknown': true}"
        )
    if kind == "image" and len(frames) > 1:
        raise DataError(f"{where}: an image has one frame, there are {len(frames)} in 'frames'")
    return frames


def _frame(
    entry: Mapping[str, Any], time_s: float, size: tuple[int, int], where: str, folder: Path | None
) -> FrameTarget:
    box = None if entry.get("box") is None else read_box(entry["box"], where)
    if "mask" not in entry:
        return FrameTarget(time_s, box is not None, box, None)
    spec = read_mask_spec(entry["mask"], size, where, folder)
    if spec:
        return FrameTarget(time_s, None, box, spec)
    if box is not None:
        raise DataError(f"{where}: the mask is empty, but there is a box; which is right?")
    return FrameTarget(time_s, False, None, None)


def _time_s(entry: Any, kind: str, where: str) -> float:
    """The time of an entry, which is first of all checked to be one."""
    if not isinstance(entry, Mapping):
        raise DataError(
            f"{where}: {short(entry)} is no annotated frame; one is such as "
            "{'time_s': 0.0, 'mask': ..., 'box': [x0, y0, x1, y1]}"
        )
    unknown = [repr(key) for key in entry if key not in _FRAME_KEYS]
    if unknown:
        raise DataError(
            f"{where}: an annotated frame has no {', '.join(unknown)}; it has time_s, mask, box"
        )
    if "mask" not in entry and "box" not in entry:
        raise DataError(f"{where}: has neither 'mask' nor 'box'; a mask is {MASK_FORMS}")
    if kind == "image":
        if entry.get("time_s", 0.0) not in (0, None):
            raise DataError(f"{where}: an image has no time, found time_s = {entry['time_s']!r}")
        return 0.0
    time_s: Any = entry.get("time_s")
    if not is_number(time_s) or time_s < 0:
        raise DataError(
            f"{where}: time_s is {time_s!r}; it is a number of seconds from the start of the video"
        )
    return float(time_s)


def _frame_place(where: str, kind: str, index: int, time_s: float) -> str:
    return where if kind == "image" else f"{where}, frame {index + 1} at {time_s:g} s"
