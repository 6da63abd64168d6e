"""Layers that heads share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, whatever its weights, its input or autocast say.

    For places and times: bfloat16 has steps of 2 pixels of 640.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` of any float type to float32 ``[..., out]``."""
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.float(), self.weight.float(), self.bias.float())
