"""The statistics of DAVIS: mean, recall and decay of a measure over the frames of an object.

Source: Perazzi et al., CVPR 2016, section 4, and davisvideochallenge/davis2017-evaluation,
davis2017/utils.py. We differ in one point: the original keeps the borders of quarters in unsigned
8-bit integers, which gives a wrong decay for more than 256 frames; ours are right.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tpokit.errors import DataError
from tpokit_mask.metrics.region import Floats

_GOOD = 0.5
_TINY = 1e-10  # added before halves are rounded, as in the original


class ValueStatistics(NamedTuple):
    """Statistics of objects.

    Attributes:
        mean: ``[objects]`` over frames, in [0, 1].
        recall: ``[objects]`` share of frames with a value over 0.5.
        decay: ``[objects]`` mean of the first quarter of the frames less that of the last one, in
            [-1, 1]; neighbouring quarters share a frame.
    """

    mean: Floats
    recall: Floats
    decay: Floats


def value_statistics(values: Floats) -> ValueStatistics:
    """Statistics of a measure in [0, 1], ``[objects, frames]``.

    Raises:
        DataError: There is no frame.
    """
    frames = values.shape[-1]
    if frames == 0:
        raise DataError("no frame is left to take the mean of")
    borders = np.round(np.linspace(1, frames, 5) + _TINY).astype(np.int64) - 1
    first = values[:, : borders[1] + 1].mean(-1)
    last = values[:, borders[3] : borders[4] + 1].mean(-1)
    return ValueStatistics(values.mean(-1), (values > _GOOD).mean(-1), first - last)
