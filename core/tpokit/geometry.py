"""Boxes: conversions, areas and overlaps; pure functions on tensors.

A box is two corners (x0, y0, x1, y1), upper left and lower right, as fractions of the image; where
a name ends in ``_px`` the unit is pixels, ``_cxcywh`` means centre and size. Areas and overlaps
work in any unit as long as all boxes share it. Corners may be swapped (a network may predict that):
such a box has the area 0 and overlaps with nothing. Values and gradients are finite for points,
lines and swapped corners too. Half-precision boxes are computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_AREA = 1e-12
"""Divisors are at least this, so that points and lines give 0 instead of NaN; far below one pixel
(6e-8 in an image of 4000 x 4000)."""


def corners_to_centre(boxes: Tensor) -> Tensor:
    """Corners ``[..., 4]`` to centre and size (cx, cy, w, h) ``[..., 4]``, in the same unit."""
    first, last = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(first + last) / 2, last - first], dim=-1)


def centre_to_corners(boxes_cxcywh: Tensor) -> Tensor:
    """Centre and size ``[..., 4]`` to corners ``[..., 4]``, in the same unit."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def order_corners(boxes: Tensor) -> Tensor:
    """The same boxes ``[..., 4]`` with swapped corners put right, each axis by itself."""
    first, last = boxes[..., :2], boxes[..., 2:]
    return torch.cat([torch.minimum(first, last), torch.maximum(first, last)], dim=-1)


def is_proper(boxes: Tensor) -> Tensor:
    """Whether no corners are swapped, bool ``[...]`` for boxes ``[..., 4]``; points and lines are
    proper.
    """
    return (boxes[..., 2:] >= boxes[..., :2]).all(-1)


def to_pixels(boxes: Tensor, sizes_px: Tensor) -> Tensor:
    """Fractions ``[..., 4]`` to pixels, for images of ``sizes_px`` ``[..., 2]`` (width, height)."""
    return boxes * torch.cat([sizes_px, sizes_px], dim=-1)


def to_fractions(boxes_px: Tensor, sizes_px: Tensor) -> Tensor:
    """Pixels ``[..., 4]`` to fractions, for images of ``sizes_px`` ``[..., 2]`` (width, height)."""
    return boxes_px / torch.cat([sizes_px, sizes_px], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Areas ``[...]`` of boxes ``[..., 4]``, in the square of their unit; 0 for swapped corners."""
    boxes = _full(boxes)
    return _product(boxes[..., 2:] - boxes[..., :2])


def aligned_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of each box with the one in the same row.

    Args:
        first, second: ``[n, 4]`` corners in one unit.

    Returns:
        ``[n]`` in [0, 1]; 0 where both boxes are points or lines.
    """
    intersection, union = _overlap(first, second)
    return intersection / union.clamp(min=_LEAST_AREA)


def aligned_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised intersection over union of each box with the one in the same row.

    It is the IoU less the share of the hull (the smallest box around both) that neither covers, so
    that boxes far from each other still have a gradient. Source: Rezatofighi et al., CVPR 2019,
    algorithm 1.

    Args:
        first, second: ``[n, 4]`` corners in one unit.

    Returns:
        ``[n]`` in [-1, 1].
    """
    first, second = _full(first), _full(second)
    intersection, union = _overlap(first, second)
    hull = area(
        torch.cat(
            [
                torch.minimum(first[..., :2], second[..., :2]),
                torch.maximum(first[..., 2:], second[..., 2:]),
            ],
            dim=-1,
        )
    )
    iou = intersection / union.clamp(min=_LEAST_AREA)
    return iou - (hull - union) / hull.clamp(min=_LEAST_AREA)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every box with every other.

    Args:
        first: ``[n, 4]`` corners.
        second: ``[m, 4]`` corners in the same unit.

    Returns:
        ``[n, m]`` in [0, 1].
    """
    return aligned_iou(first[:, None], second[None])


def _full(boxes: Tensor) -> Tensor:
    """At least float32: squares of half-precision corners are too coarse to be subtracted."""
    return boxes if boxes.dtype == torch.float64 else boxes.float()


def _product(sizes: Tensor) -> Tensor:
    """Width times height ``[...]`` of sizes ``[..., 2]``; negative ones count as 0.

    Not ``prod``, whose gradient looks for zeros and so makes a GPU wait.
    """
    width, height = sizes.clamp(min=0).unbind(-1)
    return width * height


def _overlap(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union ``[...]`` of boxes that broadcast."""
    first, second = _full(first), _full(second)
    upper_left = torch.maximum(first[..., :2], second[..., :2])
    lower_right = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = _product(lower_right - upper_left)
    return intersection, area(first) + area(second) - intersection
