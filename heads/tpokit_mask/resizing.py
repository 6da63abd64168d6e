"""Masks at another size."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def resized(logits: Tensor, height: int, width: int) -> Tensor:
    """Logits ``[.., h, w]`` at another size, bilinear: ``[.., height, width]``, float32.

    As SAM 2 brings its masks, of a quarter of the size, to that of the image.
    """
    logits = logits.float()
    *leading, h, w = logits.shape
    if (h, w) == (height, width):
        return logits
    flat = logits.reshape(-1, 1, h, w)
    larger = functional.interpolate(flat, (height, width), mode="bilinear", align_corners=False)
    return larger.reshape(*leading, height, width)
