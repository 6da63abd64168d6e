"""Where clips and moments lie, as numbers: sine embeddings, end-point channels, inverse sigmoid.

Source: wjun0830/CGDETR, cg_detr/position_encoding.py and cg_detr/transformer.py. Everything here is
computed in float32, because 16-bit formats cannot count the clips of a longer video.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PERIOD = 10_000.0
_LEAST_SHARE = 1e-3
"""Nearest to 0 and to 1 that the inverse sigmoid looks."""


def endpoint_channels(mask: Tensor) -> Tensor:
    """The two channels that stand behind the features of each clip: where it starts and ends.

    Args:
        mask: ``[b, l]`` bool, clips; false: padding, which must follow the clips.

    Returns:
        ``[b, l, 2]`` float32: i/n and (i+1)/n for the i-th of n clips, 0 at padding.
    """
    ends = mask.cumsum(1, dtype=torch.float32)
    points = torch.stack((ends - 1, ends), -1) / ends[:, -1:, None].clamp(min=1)
    return points * mask.unsqueeze(-1)


def _sines(angles: Tensor) -> Tensor:
    """Sine at even and cosine at odd places of the last dimension."""
    odd = torch.arange(angles.shape[-1], device=angles.device) % 2
    return torch.sin(angles + odd * (math.pi / 2))


def _frequencies(width: int, device: torch.device) -> Tensor:
    """``[width]`` falling from 1; each stands for a sine and the cosine beside it."""
    pair = torch.arange(width, device=device).div(2, rounding_mode="floor")
    return _PERIOD ** (-2.0 * pair / width)


def clip_positions(mask: Tensor, width: int) -> Tensor:
    """Sine embedding of the place of each clip in its own video.

    Args:
        mask: ``[b, l]`` bool, clips.
        width: d.

    Returns:
        ``[b, l, d]`` float32; the first clip of n is at 2 pi / n, the last at 2 pi, and so is the
        padding behind it.
    """
    place = mask.cumsum(1, dtype=torch.float32)
    angles = 2 * math.pi * place / (place[:, -1:] + 1e-6)
    return _sines(angles.unsqueeze(-1) * _frequencies(width, mask.device))


def moment_positions(moments: Tensor, width: int) -> Tensor:
    """Sine embedding of moments: ``[..., 2]`` float32 to ``[..., d]``.

    The first half of the channels is of the centre, the second of the width.
    """
    angles = (2 * math.pi * moments).unsqueeze(-1) * _frequencies(width // 2, moments.device)
    return _sines(angles).flatten(-2)


def inverse_sigmoid(share: Tensor) -> Tensor:
    """Logit of numbers in [0, 1], which are taken to be at least 0.001 away from both ends."""
    share = share.clamp(0, 1)
    return torch.log(share.clamp(min=_LEAST_SHARE) / (1 - share).clamp(min=_LEAST_SHARE))
