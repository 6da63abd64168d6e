"""What SAM 2 makes of frames and objects.

Legend of all shapes: f frames, b objects, m masks of each, d width of SAM 2, S side of the images
in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tpokit_mask.sam2.package import ABSENT


class FeatureMaps(NamedTuple):
    """What the image encoder gives of f frames, fit to be kept.

    ``fine [f, d / 8, S / 4, S / 4]``, ``middle [f, d / 4, S / 8, S / 8]``, ``coarse [f, d, S / 16,
    S / 16]``. The first two come with d channels if the mask decoder is trained: it narrows them by
    convolutions of its own, which then have to learn.
    """

    fine: Tensor
    middle: Tensor
    coarse: Tensor

    def rows(self, index: Tensor) -> FeatureMaps:
        """The maps of some frames, ``index [b]`` long: one for each object, say."""
        return FeatureMaps(*(level.index_select(0, index) for level in self))


class Masks(NamedTuple):
    """Masks of b objects on one frame each; all float32.

    Attributes:
        logits: ``[b, m, S / 4, S / 4]``; m is 1 or 3.
        ious: ``[b, m]`` predicted IoU of each, in [0, 1].
        scores: ``[b]`` logit of the object being visible on the frame.
        tokens: ``[b, m, d]`` what the decoder made of its mask tokens; ``[b, 1, d]`` with m = 1,
            and of the single mask's in models that say so.
    """

    logits: Tensor
    ious: Tensor
    scores: Tensor
    tokens: Tensor

    @property
    def chosen(self) -> Tensor:
        """Logits of the mask with the highest predicted IoU, ``[b, S / 4, S / 4]``."""
        return self.at_best(self.logits)

    def at_best(self, values: Tensor) -> Tensor:
        """Of ``values [b, m, ..]`` those of the mask with the highest predicted IoU."""
        if values.shape[1] == 1:
            return values[:, 0]
        return values[torch.arange(len(values), device=values.device), self.ious.argmax(1)]

    def gated(self) -> Masks:
        """The same, all logits -1024 where the score says that the object is not visible.

        This is how SAM 2 answers and what it remembers. It leaves a mask without any gradient.
        """
        visible = (self.scores > 0)[:, None, None, None]
        return self._replace(logits=torch.where(visible, self.logits, ABSENT))
