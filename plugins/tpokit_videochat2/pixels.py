"""Pixels of VideoChat2: from frames to the normalised squares that the vision tower sees.

Source: the demo of OpenGVLab/TPO: every frame resized to a square without keeping its aspect ratio
(bicubic), values in [0, 1], mean and standard deviation of ImageNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

import tpokit

_BICUBIC = functional.InterpolationMode.BICUBIC


@dataclass(frozen=True)
class Look:
    """How frames are resized and normalised.

    Attributes:
        side: Height and width in pixels.
        mean, std: By channel, of values in [0, 1].
    """

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, views: Sequence[tpokit.View]) -> Tensor:
        """All frames of some views in their order: float32 ``[frames, 3, side, side]``.

        Views of one size are resized together, because many small pictures cost more in calls than
        in arithmetic.
        """
        starts = np.cumsum([0, *(len(view.frames) for view in views)])
        sizes: dict[tuple[int, ...], list[int]] = {}
        for index, view in enumerate(views):
            sizes.setdefault(view.frames.shape[1:3], []).append(index)
        pixels = torch.empty(int(starts[-1]), 3, self.side, self.side)
        for members in sizes.values():
            places = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in members])
            frames = np.concatenate([views[i].frames for i in members])
            pixels[torch.from_numpy(places)] = self._normalised(torch.from_numpy(frames))
        return pixels

    def _normalised(self, frames: Tensor) -> Tensor:
        """uint8 ``[n, h, w, 3]`` to float32 ``[n, 3, side, side]``."""
        # not made contiguous before: resizing is several times faster with channels last
        squares = functional.resize(
            frames.permute(0, 3, 1, 2), [self.side, self.side], _BICUBIC, antialias=True
        )
        floats = squares.to(torch.float32, memory_format=torch.contiguous_format)
        normalised: Tensor = functional.normalize(
            floats,
            [255 * value for value in self.mean],
            [255 * value for value in self.std],
            inplace=True,
        )
        return normalised
