"""Fixed positions of patches, as the vision tower of VideoChat2 adds them.

Source: OpenGVLab/Ask-Anything, video_chat2/models/blip2/vit.py: get_sinusoid_encoding_table and
get_sinusoid_encoding_table2. We differ in that tables are worked out once, in float64, and are no
part of a module: there is nothing to train, to save or to move.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

_BASE = 10000.0
_KEPT_TABLES = 32  # lengths of clips that a run meets again and again; 13 MB each at 16 frames


class PositionSizes(NamedTuple):
    """What tables are made for.

    Attributes:
        width: c, width of the tower.
        grid: Patches along a side of a frame.
        pretrained_frames: Frames for which the table of a video is made, before it is stretched.
        pretrained_grid: Patches along a side for which both tables are made.
    """

    width: int
    grid: int
    pretrained_frames: int
    pretrained_grid: int


@lru_cache(maxsize=_KEPT_TABLES)
@torch.inference_mode(
    False
)  # kept across calls, and a tensor made in that mode cannot be trained on
def position_table(
    sizes: PositionSizes, frames: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """What is added to the patches of a clip, ``[frames * grid * grid, c]``; not to be changed.

    A clip of one frame is an image: its table counts the patches of one frame, and is not a video's
    table squeezed. The table of a video counts the patches of ``pretrained_frames`` frames and is
    stretched in time, linearly. For another grid than the pretrained one each frame is resized
    first, bicubically. Both with half-pixel centres.

    Args:
        sizes: Of the tower.
        frames: Of the clip, at least 1.
        device, dtype: Of the table.
    """
    drawn = 1 if frames == 1 else sizes.pretrained_frames
    side = sizes.pretrained_grid
    table = sinusoids(drawn * side * side, sizes.width).view(drawn, side, side, -1)
    if sizes.grid != side:
        pictures = table.permute(0, 3, 1, 2)
        pictures = nn.functional.interpolate(pictures, (sizes.grid, sizes.grid), mode="bicubic")
        table = pictures.permute(0, 2, 3, 1)
    table = table.flatten(1)  # [drawn, grid * grid * c]
    if frames != drawn:
        table = nn.functional.interpolate(table.T[None], frames, mode="linear")[0].T
    return table.reshape(-1, sizes.width).to(device, dtype)


def sinusoids(positions: int, width: int) -> Tensor:
    """Sines and cosines of p / 10000^(2 * floor(j / 2) / width), ``[positions, width]``, float64.

    p: number of the position; j: column, sine where it is even. In float32 the exponents alone
    would be off by 1e-5 at the last positions.
    """
    columns = torch.arange(width, device="cpu")
    rates = _BASE ** (2.0 * (columns // 2).double() / width)
    angles = torch.arange(positions, device="cpu", dtype=torch.float64)[:, None] / rates
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos())
