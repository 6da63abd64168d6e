"""Sizes of SAM 2: the released ones by name, and those of a model of one's own. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Literal

from tpokit.errors import UsageError


@dataclass(frozen=True)
class ReleasedSize:
    """A size for which weights were published.

    Attributes:
        config: File inside the package sam2 that describes it.
        trunk_width: Channels after the patch embedding, by which weights are recognised.
        trunk_blocks: Blocks of the trunk, likewise.
        version: ``2.1`` has signed times of pointers and marks absent objects in memory.
    """

    config: str
    trunk_width: int
    trunk_blocks: int
    version: str


_LETTERS = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
_TRUNKS = {"tiny": (96, 12), "small": (96, 16), "base_plus": (112, 24), "large": (144, 48)}

RELEASED: Mapping[str, ReleasedSize] = MappingProxyType(
    {
        f"{family}_hiera_{size}": ReleasedSize(
            f"configs/{family}/{family}_hiera_{letter}.yaml", *_TRUNKS[size], version
        )
        for family, version in (("sam2.1", "2.1"), ("sam2", "2.0"))
        for size, letter in _LETTERS.items()
    }
)
"""By the name that the file of the published weights has, without ``.pt``."""


@dataclass(frozen=True)
class Sam2Sizes:
    """Sizes of a SAM 2 of one's own; the defaults make one of 0.86 million parameters.

    All else is as in the released models of its version. The two-way transformer of the mask
    decoder keeps their inner width of 2048, so that it is most of a small model.

    Attributes:
        image_size: S, side of the square images in pixels; a multiple of 32.
        width: d, of prompt tokens, mask decoder and memory attention; a multiple of 16.
        memory_width: Channels of a spatial memory; a multiple of 4 that divides ``width``.
        trunk_width: Channels of the image encoder's first stage; each stage doubles them.
        trunk_heads: Attention heads of the first stage; each stage doubles them.
        stages: Blocks of each of the four stages.
        global_blocks: Numbers of the blocks that attend to the whole image, counted from 0 over all
            stages; none may open stage 2, 3 or 4, which sam2 cannot compute.
        windows: Side of the attention windows of each stage in cells; the first must divide
            ``image_size / 4``.
        background: Side of the coarse grid of the trunk's position embedding, in cells.
        memory_layers: Layers of the memory attention.
        feed_forward: Inner width of these.
        fuser_layers: Convolution blocks of the memory encoder.
        dropout: Of the memory attention while it is trained; released: 0.1.
        memories: Frames whose spatial memory is attended to, prompted ones counting as one;
            released: 7.
        version: Which released models it is like, see `ReleasedSize`.
    """

    image_size: int = 128
    width: int = 48
    memory_width: int = 16
    trunk_width: int = 8
    trunk_heads: int = 1
    stages: tuple[int, int, int, int] = (1, 1, 2, 1)
    global_blocks: tuple[int, ...] = (3,)
    windows: tuple[int, int, int, int] = (8, 4, 4, 2)
    background: int = 4
    memory_layers: int = 1
    feed_forward: int = 64
    fuser_layers: int = 1
    dropout: float = 0.0
    memories: int = 3
    version: Literal["2.1", "2.0"] = "2.1"

    def __post_init__(self) -> None:
        """Refuse what sam2 cannot build or compute.

        Raises:
            UsageError: With all that is wrong.
        """
        starts = set(accumulate(self.stages[:3]))
        blocks = sum(self.stages)
        checks = {
            f"width must be a multiple of 16, not {self.width}": self.width % 16 == 0,
            f"memory_width must be a multiple of 4 that divides width {self.width}, not "
            f"{self.memory_width}": self.memory_width % 4 == 0
            and self.width % self.memory_width == 0,
            f"trunk_heads {self.trunk_heads} must divide trunk_width {self.trunk_width}": (
                self.trunk_width % self.trunk_heads == 0
            ),
            f"memories must be at least 1, not {self.memories}": self.memories >= 1,
            f"version must be 2.1 or 2.0, not {self.version}": self.version in ("2.1", "2.0"),
            f"stages must be four numbers of blocks, not {self.stages}": (
                len(self.stages) == 4 and min(self.stages) > 0
            ),
            f"windows must be four sides, not {self.windows}": (
                len(self.windows) == 4 and min(self.windows) > 0
            ),
            f"global_blocks {self.global_blocks} must lie in 0..{blocks - 1} and not open a stage "
            f"({', '.join(map(str, sorted(starts)))})": not starts & set(self.global_blocks)
            and all(0 <= block < blocks for block in self.global_blocks),
        }
        wrong = [message for message, holds in checks.items() if not holds]
        wrong += image_size_problems(self.image_size, self.windows[0])
        if wrong:
            raise UsageError(f"sizes of SAM 2: {'; '.join(wrong)}")


def image_size_problems(image_size: int, window: int) -> list[str]:
    """What is wrong with a side of images in pixels for a first attention window; mostly nothing.

    The published weights fit any size, as nothing in them depends on it; they were made for 1024.
    """
    if image_size > 0 and image_size % 32 == 0 and image_size // 4 % window == 0:
        return []
    return [
        f"image_size must be a multiple of 32, a quarter of it one of the first window {window}, "
        f"not {image_size}"
    ]
