"""Layers that connectors share."""

from __future__ import annotations

from torch import Tensor, nn


class Float32LayerNorm(nn.LayerNorm):
    """A LayerNorm that computes in float32 and gives the type that it was given.

    Features of a vision tower have outliers, whose squares lose the rest in bfloat16.
    Source: infly-ai/INF-MLLM, infmllm/models (``ln_vision``).
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[..., c]`` of any float type to the same shape and type."""
        normed = nn.functional.layer_norm(
            input.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return normed.to(input.dtype)


def projector(vision: int, hidden: int | None, width: int) -> nn.Sequential:
    """Two linear layers with an exact GELU between them, numbered 0 and 2 as in LLaVA and InfMLLM.

    Args:
        vision: Width of what comes in.
        hidden: Width between the layers; ``None``: ``width``.
        width: Width of what goes out.
    """
    between = width if hidden is None else hidden
    return nn.Sequential(nn.Linear(vision, between), nn.GELU(), nn.Linear(between, width))
