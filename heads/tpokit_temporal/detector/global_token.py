"""One token that sums up a video: what kind it is, seen from the clips that the text is about.

Source: wjun0830/CGDETR, cg_detr/model.py and cg_detr/transformer.py (global representation token).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_LEAST_LENGTH = 1e-6


class GlobalToken(nn.Module):
    """Mixes the best of a learnt pool.

    Attributes:
        pool: ``[g, d]``.
        position: ``[1, d]`` position of the token among the clips.
    """

    def __init__(self, width: int, size: int, used: int) -> None:
        """Draw the pool; ``used`` of its ``size`` tokens go into a mixture."""
        super().__init__()
        self.pool = nn.Parameter(torch.randn(size, width))
        self.position = nn.Parameter(torch.randn(1, width))
        self.used = used

    def forward(self, clips: Tensor, mask: Tensor, attention: Tensor) -> Tensor:
        """Sum up.

        Args:
            clips: ``[b, l, d]``, before they have seen the text.
            mask: ``[b, l]`` bool; false: padding.
            attention: ``[k, b, l]`` share of attention that clips pay to words, for k queries.

        Returns:
            ``[k, b, d]``.
        """
        valid = mask.to(clips.dtype)
        mean = (clips.detach() * valid[..., None]).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)
        kinds = self._kinds(clips, mean)
        importance = attention.detach() * valid
        importance = importance / importance.sum(-1, keepdim=True).clamp(min=_LEAST_LENGTH)
        # the released code has the mean over clips of shares times their number: the same
        scores = importance.unsqueeze(-2).to(kinds.dtype) @ kinds
        best, indices = scores.squeeze(-2).topk(self.used, dim=-1)
        weights = torch.zeros_like(scores.squeeze(-2)).scatter(-1, indices, best)
        return weights @ self.pool + mean

    def _kinds(self, clips: Tensor, mean: Tensor) -> Tensor:
        """``[b, l, g]`` how much a clip resembles each token of the pool; sums up to 1."""
        deviation = clips - mean.unsqueeze(1)
        length = deviation.norm(dim=-1, keepdim=True)
        # the only clip of a video is its mean; dividing by 0 would send back endless gradients
        deviation = torch.where(length > _LEAST_LENGTH, deviation, 0.0)
        return (functional.normalize(deviation, dim=-1) @ self._directions()).softmax(-1)

    def _directions(self) -> Tensor:
        return functional.normalize(self.pool, dim=-1).transpose(0, 1)
