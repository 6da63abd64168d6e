"""Pixels of LLaVA-OneVision: from pictures to the normalised tiles that the vision tower sees.

The numbers are those of transformers' ``LlavaOnevisionImageProcessor`` and video processor (a test
compares them), whose settings are read, not repeated. They are worked out here for all pictures of
equal size at once: the library goes through a batch picture by picture, which costs more than the
vision tower when pictures are small.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution

import tpokit


@dataclass(frozen=True)
class Look:
    """How one kind of medium is resized and normalised.

    Attributes:
        side: Height and width of a tile, in pixels.
        mean, std: By channel, of values in [0, 1].
        scale: Factor from stored values to [0, 1].
        interpolation: torchvision's name of the filter.
    """

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    interpolation: functional.InterpolationMode

    @classmethod
    def of(cls, library: Any, kind: str) -> Look:
        """Read the settings of one of transformers' processors.

        Raises:
            CheckpointError: It is set to something that LLaVA-OneVision does not do.
        """
        size = dict(library.size)
        height, width = size.get("height"), size.get("width")
        if not height or height != width:
            raise tpokit.CheckpointError(
                f"{kind} processor: size is {size}; tiles must be square, as height and width"
            )
        wanted = {"do_resize": True, "do_rescale": True, "do_normalize": True}
        wanted["do_center_crop"] = False
        odd = [
            f"{name} is {getattr(library, name)}"
            for name, value in wanted.items()
            if bool(getattr(library, name, value)) is not value
        ]
        if odd:
            raise tpokit.CheckpointError(
                f"{kind} processor: {', '.join(odd)}; LLaVA-OneVision needs the opposite"
            )
        return cls(
            side=height,
            mean=tuple(library.image_mean),
            std=tuple(library.image_std),
            scale=library.rescale_factor,
            interpolation=_interpolation(library.resample),
        )

    def resize(self, pictures: Tensor, height: int, width: int) -> Tensor:
        """uint8 ``[n, 3, h, w]`` to another size, with antialiasing."""
        resized: Tensor = functional.resize(
            pictures, [height, width], interpolation=self.interpolation, antialias=True
        )
        return resized

    def tiles(self, pictures: Tensor) -> Tensor:
        """Whole pictures as tiles, aspect not kept: ``[n, 3, h, w]`` to ``[n, 3, side, side]``."""
        return self.normalise(self.resize(pictures, self.side, self.side))

    def normalise(self, tiles: Tensor) -> Tensor:
        """Stored values to float32 numbers around 0."""
        mean = [value / self.scale for value in self.mean]
        std = [value / self.scale for value in self.std]
        normalised: Tensor = functional.normalize(tiles.float(), mean, std, inplace=True)
        return normalised

    def padded_tiles(self, pictures: Tensor) -> Tensor:
        """Pictures padded to a square in the mean colour: ``[n, 1, 3, side, side]``."""
        height, width = pictures.shape[-2:]
        longest = max(height, width)
        left, top = (longest - width) // 2, (longest - height) // 2
        square = functional.pad(
            pictures,
            [left, top, longest - width - left, longest - height - top],
            fill=[int(value * 255) for value in self.mean],
        )
        return self.tiles(square)[:, None]

    def anyres_tiles(self, pictures: Tensor, grids: Sequence[Sequence[int]]) -> Tensor:
        """Pictures as an overview and the crops of the grid that fits best.

        Args:
            pictures: uint8 ``[n, 3, h, w]``.
            grids: Allowed sizes (height, width) in pixels.

        Returns:
            ``[n, 1 + crops, 3, side, side]``, crops row by row.
        """
        height, width = select_best_resolution(tuple(pictures.shape[-2:]), grids)
        inner_height, inner_width = get_patch_output_size(
            pictures[0], (height, width), "channels_first"
        )
        left, more_left = divmod(width - inner_width, 2)
        top, more_top = divmod(height - inner_height, 2)
        canvas = functional.pad(
            self.resize(pictures, inner_height, inner_width),
            [left, top, left + more_left, top + more_top],
        )
        crops = canvas.unfold(2, self.side, self.side).unfold(3, self.side, self.side)
        crops = crops.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # [n, crops, 3, side, side]
        overview = self.resize(pictures, self.side, self.side)[:, None]
        tiles = torch.cat([overview, crops], dim=1)
        return self.normalise(tiles.flatten(0, 1)).reshape(tiles.shape)


def in_groups(
    pictures: Sequence[np.ndarray],
    kinds: Sequence[Hashable],
    work: Callable[[Tensor, Any], Tensor],
) -> list[Tensor]:
    """Apply a function to all pictures of equal kind and size at once.

    Args:
        pictures: uint8 ``[h, w, 3]`` each.
        kinds: One for each picture; handed to ``work``.
        work: From ``[n, 3, h, w]`` uint8 and the kind to n results.

    Returns:
        One result for each picture, in their order.
    """
    groups: dict[tuple[Hashable, tuple[int, ...]], list[int]] = {}
    for index, (picture, kind) in enumerate(zip(pictures, kinds, strict=True)):
        groups.setdefault((kind, picture.shape), []).append(index)
    results: list[Tensor] = [torch.empty(0)] * len(pictures)
    for (kind, _), members in groups.items():
        stacked = torch.from_numpy(np.stack([pictures[index] for index in members]))
        done = work(stacked.permute(0, 3, 1, 2).contiguous(), kind)
        for index, result in zip(members, done, strict=True):
            results[index] = result
    return results


def _interpolation(resample: Any) -> functional.InterpolationMode:
    """PIL's number of a filter to torchvision's name of it."""
    names = {0: "NEAREST", 1: "LANCZOS", 2: "BILINEAR", 3: "BICUBIC", 4: "BOX", 5: "HAMMING"}
    return functional.InterpolationMode[names[int(resample)]]
