"""The box of a mask as the release of VideoChat-TPO draws it: around the outer boundary.

Source: OpenGVLab/TPO, the box of a mask in the training of its mask branch, and of tracks in its
inference. We differ: float64, where the release has bfloat16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tpokit_mask.results import Bools

Floats = NDArray[np.float64]


def outer_boxes(masks: Bools) -> Floats:
    """Boxes of masks ``[n, h, w]`` as fractions of the image, ``[n, 4]``.

    The box holds the pixels beside the object, up or down, left or right of it: one more than the
    object on each side that is not the border of the image. Corners are the first and the last
    pixel (not the one behind it) over width and height. A mask that is empty, or has nothing
    beside it, gives four times -1.
    """
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    near = padded[:, :-2, 1:-1] | padded[:, 2:, 1:-1] | padded[:, 1:-1, :-2] | padded[:, 1:-1, 2:]
    boundary = near & ~masks
    height, width = masks.shape[1:]
    columns, rows = boundary.any(1), boundary.any(2)  # [n, w], [n, h]
    corners = np.stack(
        [
            columns.argmax(1) / width,
            rows.argmax(1) / height,
            (width - 1 - columns[:, ::-1].argmax(1)) / width,
            (height - 1 - rows[:, ::-1].argmax(1)) / height,
        ],
        axis=1,
    )
    return np.where(columns.any(1)[:, None], corners, -1.0)
