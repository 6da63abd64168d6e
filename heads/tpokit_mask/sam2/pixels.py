"""From frames of a medium to images for SAM 2.

Source: facebookresearch/sam2, sam2/utils/transforms.py: SAM2Transforms (bilinear with antialiasing,
aspect ratio not kept, ImageNet's mean and deviation). How we differ: resized images stay 8 bits
until they are encoded, as in sam2's video predictor (which resizes by PIL's bicubic filter); its
image predictor resizes in float, which differs by the rounding, half a step of 255 at most.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from tpokit.errors import TpokitError

_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


def resize_frames(frames: Tensor, side: int) -> Tensor:
    """Frames as square images: uint8 ``[f, h, w, 3]`` RGB to uint8 ``[f, 3, side, side]``.

    Raises:
        TpokitError: Frames of another shape or type.
    """
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[-1] != 3:
        raise TpokitError(
            f"frames for SAM 2 must be uint8 [f, h, w, 3], not {frames.dtype} {list(frames.shape)}"
        )
    images = frames.permute(0, 3, 1, 2)
    if images.shape[-2:] == (side, side):
        return images.contiguous()
    if images.is_cpu:  # has a kernel for 8 bits, several times as fast as the one for float
        return _smaller(images, side).contiguous()
    return _smaller(images.float(), side).round().clamp(0, 255).to(torch.uint8)


def normalise(images: Tensor) -> Tensor:
    """uint8 ``[f, 3, S, S]`` to float32 of about zero mean and unit deviation."""
    mean, deviation = _statistics(images.device)
    return (images.float() / 255 - mean) / deviation


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation ``[3, 1, 1]`` on a device; made once, as copying them there waits."""
    with torch.inference_mode(False):  # kept ones must do for training as well
        both = torch.tensor((_MEAN, _DEVIATION), device=device).view(2, 3, 1, 1)
        return both[0], both[1]


def _smaller(images: Tensor, side: int) -> Tensor:
    return functional.interpolate(
        images, (side, side), mode="bilinear", align_corners=False, antialias=True
    )
