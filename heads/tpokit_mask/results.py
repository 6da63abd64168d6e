"""What the mask head finds in an image or a video; does not import torch."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco  # type: ignore[import-untyped]

Bools = NDArray[np.bool_]
BoxPx = tuple[float, float, float, float]


class Rle(TypedDict):
    """A mask as compressed COCO run lengths, column by column."""

    size: list[int]  # height, width
    counts: str


@dataclass(frozen=True)
class FrameResult:
    """An object on one frame.

    Attributes:
        time_s: When the frame is shown, in seconds from the start of the medium; 0 for an image.
        rle: The mask in the size of the medium; ``None`` in right results of which only the box is
            known.
        box: Corners x0, y0, x1, y1 in pixels, right and lower edge exclusive; ``None``: the object
            is not visible.
        score: Predicted probability that it is visible, in [0, 1].
    """

    time_s: float
    rle: Rle | None
    box: BoxPx | None
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data: time and score with four decimals, box in pixels with two."""
        plain: dict[str, Any] = {"time_s": round(self.time_s, 4), "rle": self.rle, "box": None}
        if self.box is not None:
            plain["box"] = [round(value, 2) for value in self.box]
        return plain if self.score is None else {**plain, "score": round(self.score, 4)}


@dataclass(frozen=True)
class MaskTrack:
    """What one call of the mask head finds: one object in an image or through a video.

    Attributes:
        kind: ``image`` or ``video``.
        height_px, width_px: Size of the medium and of all masks.
        frames: In the order of their times; one for an image, none where nothing is known.
    """

    kind: Literal["image", "video"]
    height_px: int
    width_px: int
    frames: tuple[FrameResult, ...]

    def masks(self) -> Bools:
        """All masks ``[t, h, w]``; t: frames, h, w: size of the medium. See `mask`."""
        return np.array([self.mask(index) for index in range(len(self.frames))], bool).reshape(
            -1, self.height_px, self.width_px
        )

    def mask(self, index: int) -> Bools:
        """The mask ``[h, w]`` of a frame, empty where none is known."""
        return decode_mask(self.frames[index].rle, self.height_px, self.width_px)

    def at(self, time_s: float) -> FrameResult | None:
        """The frame nearest to a time, the earlier one of two; ``None`` if there is no frame."""
        if not self.frames:
            return None
        after = bisect.bisect_left(self.frames, time_s, key=lambda frame: frame.time_s)
        near = self.frames[max(after - 1, 0) : after + 1]
        return min(near, key=lambda frame: abs(frame.time_s - time_s))

    def to_json(self) -> dict[str, Any]:
        """Plain data: of an image ``mask`` (run lengths), ``box`` and ``score``; of a video
        ``masks``, a list with ``time_s``, ``rle``, ``box`` and ``score`` of each frame. There is no
        score where none was predicted.
        """
        if self.kind == "video":
            return {"masks": [frame.to_json() for frame in self.frames]}
        frame = self._picture.to_json()
        del frame["time_s"]
        return {"mask": frame.pop("rle"), **frame}

    def __str__(self) -> str:
        """Where the object is; of a video, on how many frames."""
        if self.kind == "video":
            visible = sum(frame.box is not None for frame in self.frames)
            return f"visible in {visible} of {len(self.frames)} frames"
        frame = self._picture
        if frame.box is None:
            return "empty mask"
        box = "box [" + ", ".join(f"{value:g}" for value in frame.box) + "]"
        return box if frame.rle is None else f"mask of {int(coco.area(frame.rle))} pixels, {box}"

    @property
    def _picture(self) -> FrameResult:
        """What is known of an image."""
        return self.frames[0] if self.frames else FrameResult(0.0, None, None)


def encode_mask(mask: Bools) -> Rle:
    """A mask ``[h, w]`` as run lengths."""
    coded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    height, width = coded["size"]
    return {"size": [int(height), int(width)], "counts": coded["counts"].decode("ascii")}


def decode_mask(rle: Rle | None, height_px: int, width_px: int) -> Bools:
    """The mask ``[h, w]`` of run lengths that `encode_mask` made; all False without them."""
    if rle is None:
        return np.zeros((height_px, width_px), dtype=bool)
    return np.ascontiguousarray(coco.decode(rle), dtype=bool)


def frame_result(time_s: float, mask: Bools, score: float | None = None) -> FrameResult:
    """A frame from its mask ``[h, w]``, with the tight box around it; see `FrameResult`."""
    return FrameResult(time_s, encode_mask(mask), tight_box_px(mask), score)


def tight_box_px(mask: Bools) -> BoxPx | None:
    """The smallest box around a mask ``[h, w]``, right and lower edge exclusive; ``None`` if it is
    empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return float(x0), float(y0), float(x1), float(y1)
