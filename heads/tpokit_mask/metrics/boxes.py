"""Boxes of tracks: x, y of the upper left corner, width and height, in pixels (``_xywh_px``).

Lengths are continuous: a box covers width times height. Legend: t frames.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tpokit.errors import DataError
from tpokit_mask.metrics.region import Bools, Floats


def boxes_from_masks(masks: Bools) -> Floats:
    """Tight boxes ``[..., t, 4]`` of the masks of tracks ``[..., t, H, W]``.

    An empty mask repeats the last box, as a tracker does that has lost its object; before the first
    box it is (0, 0, 0, 0).
    """
    height, width = masks.shape[-2:]
    rows: Bools = np.asarray(masks.any(-1))  # [..., t, H]
    columns: Bools = np.asarray(masks.any(-2))  # [..., t, W]
    top, left = rows.argmax(-1), columns.argmax(-1)
    bottom, right = height - rows[..., ::-1].argmax(-1), width - columns[..., ::-1].argmax(-1)
    boxes = np.stack([left, top, right - left, bottom - top], axis=-1).astype(np.float64)
    seen: Bools = np.asarray(rows.any(-1))
    return repeat_empty(boxes * seen[..., None])


def repeat_empty(boxes_xywh_px: Floats) -> Floats:
    """Tracks ``[..., t, 4]`` in which a box without width or height is replaced by the last one
    that has both; empty boxes before the first such one become the box of the first frame.
    """
    frames = np.arange(boxes_xywh_px.shape[-2])
    empty = (boxes_xywh_px[..., 2:] == 0).any(-1)
    last = np.maximum.accumulate(np.where(empty, 0, frames), axis=-1)
    return np.take_along_axis(boxes_xywh_px, last[..., None], axis=-2)


def clip_to_image(boxes_xywh_px: Floats, width_px: float, height_px: float) -> Floats:
    """Boxes ``[..., 4]`` as the GOT-10k toolkit clips them: the corner is moved into the image,
    then the size is cut. So a box that begins left of the image is moved, not cut, on that side.
    Unlike there, the boxes that were given stay as they are.
    """
    image = np.array([width_px, height_px], dtype=np.float64)
    corner = boxes_xywh_px[..., :2].clip(0, image)
    return np.concatenate([corner, boxes_xywh_px[..., 2:].clip(0, image - corner)], axis=-1)


def box_iou(first_xywh_px: Floats, second_xywh_px: Floats, clip: bool = True) -> Floats:
    """Intersection over union ``[...]`` of boxes ``[..., 4]``; 0 if one has no area.

    Args:
        first_xywh_px: Boxes.
        second_xywh_px: Boxes; both broadcast.
        clip: Keep values in [0, 1]. Else rounding may take those of equal boxes 1e-15 beyond, to
            the very bit as in pytracking, whose success at the threshold 1 hangs on it.
    """
    first_size, second_size = first_xywh_px[..., 2:].clip(0), second_xywh_px[..., 2:].clip(0)
    corner = np.maximum(first_xywh_px[..., :2], second_xywh_px[..., :2])
    # The 1 taken away here and added below changes nothing but the last bit.
    opposite = np.minimum(
        first_xywh_px[..., :2] + first_size - 1, second_xywh_px[..., :2] + second_size - 1
    )
    both = (opposite - corner + 1).clip(0).prod(-1)
    either = first_size.prod(-1) + second_size.prod(-1) - both
    iou: Floats = np.zeros(both.shape)
    np.divide(both, either, out=iou, where=either > 0)
    return iou.clip(0, 1) if clip else iou


def centre_distance_px(predicted_xywh_px: Floats, true_xywh_px: Floats) -> Floats:
    """Distance ``[...]`` of the centres of boxes ``[..., 4]``, in pixels."""
    return _length(_between_centres(predicted_xywh_px, true_xywh_px))


def centre_distance_by_size(predicted_xywh_px: Floats, true_xywh_px: Floats) -> Floats:
    """Distance ``[...]`` of the centres of boxes ``[..., 4]`` in widths (along x) and heights
    (along y) of the true box; infinite where that has none.
    """
    between = _between_centres(predicted_xywh_px, true_xywh_px)
    size = true_xywh_px[..., 2:]
    shares: Floats = np.full(between.shape, np.inf)
    np.divide(between, size, out=shares, where=size > 0)
    return _length(shares)


def checked_track(boxes_xywh_px: NDArray[np.floating], name: str) -> Floats:
    """Predicted boxes ``[t, 4]`` of a sequence as a copy in float64.

    Raises:
        DataError: Another shape, values that are not finite, or negative sizes.
    """
    boxes = _as_track(boxes_xywh_px, "predicted", name)
    _refuse(boxes, ~np.isfinite(boxes), "must be finite", "predicted", name)
    _refuse(boxes, boxes[:, 2:] < 0, "must have no negative width or height", "predicted", name)
    return boxes


def checked_truth(boxes_xywh_px: NDArray[np.floating], name: str, may_lack: bool) -> Floats:
    """True boxes ``[t, 4]`` of a sequence as a copy in float64.

    Args:
        boxes_xywh_px: Of the annotation.
        name: Of the sequence, for messages.
        may_lack: Whether NaN may stand for a frame without a true box.

    Raises:
        DataError: Another shape, or values that are not finite.
    """
    boxes = _as_track(boxes_xywh_px, "true", name)
    wrong = np.isinf(boxes) if may_lack else ~np.isfinite(boxes)
    _refuse(boxes, wrong, "must be finite", "true", name)
    return boxes


def _as_track(boxes_xywh_px: NDArray[np.floating], what: str, name: str) -> Floats:
    boxes = np.array(boxes_xywh_px, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise DataError(
            f"{name}: {what} boxes have shape {boxes.shape}; a track is one box of x, y, width, "
            "height for each frame, [frames, 4]"
        )
    return boxes


def _refuse(boxes: Floats, wrong: Bools, must: str, what: str, name: str) -> None:
    places = np.flatnonzero(wrong.any(-1))
    if len(places):
        box = ", ".join(f"{value:g}" for value in boxes[places[0]])
        raise DataError(
            f"{name}: the {what} box of frame {places[0]} (counted from 0) is x, y, width, height "
            f"= {box}; it {must}"
        )


def _between_centres(predicted_xywh_px: Floats, true_xywh_px: Floats) -> Floats:
    predicted = predicted_xywh_px[..., :2] + predicted_xywh_px[..., 2:] / 2
    true = true_xywh_px[..., :2] + true_xywh_px[..., 2:] / 2
    return predicted - true


def _length(vectors: Floats) -> Floats:
    return np.asarray(np.hypot(vectors[..., 0], vectors[..., 1]))
