"""Referring image segmentation: one mask for each expression and image.

Sources: Liu et al., GRES, CVPR 2023 (gIoU, cIoU and the rule for expressions that name nothing);
Lai et al., LISA, CVPR 2024. ``giou`` here has nothing to do with the generalised IoU of boxes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tpokit.errors import DataError
from tpokit_mask.metrics.region import Overlap


class ReferringScores(NamedTuple):
    """Scores over samples, as fractions in [0, 1].

    Attributes:
        giou: Mean over samples of IoU; 1 where both masks are empty, 0 where one is. Also printed
            as mIoU.
        ciou: Intersection over union of all pixels of all samples, so that large objects count
            more. Also printed as oIoU.
    """

    giou: float
    ciou: float


def referring_scores(overlaps: Overlap) -> ReferringScores:
    """Scores of samples.

    Args:
        overlaps: ``[n]`` of `region.overlap`, taken sample by sample since images differ in size.

    Returns:
        Both scores; ``ciou`` is 1 if all masks of all samples are empty, where the usual code
        divides by zero.

    Raises:
        DataError: There is no sample, or counts of pixels cannot be.
    """
    intersection_px = np.asarray(overlaps.intersection_px)
    union_px = np.asarray(overlaps.union_px)
    if intersection_px.shape != union_px.shape or intersection_px.ndim != 1 or not union_px.size:
        raise DataError(
            f"{intersection_px.shape} intersections and {union_px.shape} unions; gIoU and cIoU "
            "need one of each for every sample, and at least one sample"
        )
    wrong = np.flatnonzero((intersection_px < 0) | (intersection_px > union_px))
    if len(wrong):
        place = wrong[0]
        raise DataError(
            f"sample {place}: an intersection of {intersection_px[place]} and a union of "
            f"{union_px[place]} pixels cannot be; the first lies between 0 and the second"
        )
    total = Overlap(intersection_px.sum(keepdims=True), union_px.sum(keepdims=True))
    each = Overlap(intersection_px, union_px)
    return ReferringScores(giou=float(each.iou.mean()), ciou=float(total.iou[0]))
