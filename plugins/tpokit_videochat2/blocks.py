"""What the vision tower is built from: patches, and blocks whose attention stays inside clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import InstructBlipVisionConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.instructblip.modeling_instructblip import (
    InstructBlipAttention,
    InstructBlipEncoderLayer,
    eager_attention_forward,
)
from transformers.utils import is_flash_attn_2_available

from tpokit.errors import UsageError
from tpokit_videochat2.clips import Run
from tpokit_videochat2.config import VisionOptions

_FLASH = "flash_attention_2"
_IMPLEMENTATIONS = ("sdpa", "eager", _FLASH)
_INITIAL_DEVIATION = 0.02


class PatchEmbedding(nn.Conv3d):
    """Pixels to patches, each frame for itself.

    Its weight ``[c, 3, 1, patch, patch]`` is stored as released, for a convolution over time as
    well; over one frame that is the same as one over the picture, for which libraries are faster.
    """

    def __init__(self, width: int, patch: int) -> None:
        """Make it; ``patch`` is the side of a patch in pixels."""
        super().__init__(3, width, (1, patch, patch), stride=(1, patch, patch))

    def forward(self, pixels: Tensor) -> Tensor:
        """Frames ``[f, 3, side, side]`` to patches ``[f, p, c]``, row by row."""
        weight = self.weight.squeeze(2)
        pictures = nn.functional.conv2d(
            pixels.to(weight.dtype), weight, self.bias, stride=self.stride[1:]
        )
        return pictures.flatten(2).transpose(1, 2)


class QueryKeyValue(nn.Module):
    """Queries, keys and values in one product; keys have no bias, and as released none is stored.

    Attributes:
        weight: ``[3 c, c]``, rows of queries, keys, values.
        q_bias, v_bias: ``[c]``.
    """

    def __init__(self, width: int) -> None:
        """Make it; the weight is left to `make_block`."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * width, width))
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(self, states: Tensor) -> Tensor:
        """``[..., c]`` to ``[..., 3 c]``."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return nn.functional.linear(states, self.weight, bias)


class ClipAttention(InstructBlipAttention):
    """Attention among the patches of a clip, by any implementation that transformers has.

    It stands in for transformers' own module, which knows one sequence only, and which takes
    queries, keys and values apart in a way whose backward pass fills three tensors with zeros.
    """

    def __init__(self, config: InstructBlipVisionConfig) -> None:
        """Make it, with a `QueryKeyValue` in place of a linear layer."""
        super().__init__(config)
        self.qkv = QueryKeyValue(config.hidden_size)

    def forward(
        self, hidden_states: Tensor, clip_runs: Sequence[Run] = (), **settings: Any
    ) -> tuple[Tensor, None]:
        """``[n, l, c]`` to the same shape. With runs n is 1, and clips do not see each other."""
        products = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        if not clip_runs:
            return self.projection(self._attend(products, settings)), None
        rows = products.squeeze(0).split([clips * length for clips, length in clip_runs])
        attended = [
            self._attend(row.unflatten(0, (clips, -1)), settings).flatten(0, 1)
            for row, (clips, _) in zip(rows, clip_runs, strict=True)
        ]
        return self.projection(torch.cat(attended)[None]), None

    def _attend(self, products: Tensor, settings: dict[str, Any]) -> Tensor:
        """``[n, l, 3, heads, width of a head]`` to ``[n, l, c]``."""
        inner = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        query, key, value = (states.transpose(1, 2) for states in products.unbind(2))
        attended, _ = inner(
            self, query, key, value, attention_mask=None, scaling=self.scale, **settings
        )
        return attended.flatten(2)


def block_config(sizes: VisionOptions, attention: str) -> InstructBlipVisionConfig:
    """The sizes in the form of transformers.

    Raises:
        UsageError: That implementation of attention is not there.
    """
    if attention not in _IMPLEMENTATIONS:
        raise UsageError(
            f"attention {attention!r} is not known; it must be one of {', '.join(_IMPLEMENTATIONS)}"
        )
    if attention == _FLASH and not is_flash_attn_2_available():
        raise UsageError(
            f"attention {attention!r} needs a GPU and the package flash-attn; 'sdpa' needs neither"
        )
    return InstructBlipVisionConfig(
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_attention_heads=sizes.heads,
        layer_norm_eps=sizes.layer_norm_eps,
        hidden_act="gelu",
        attn_implementation=attention,
    )


def make_block(config: InstructBlipVisionConfig) -> InstructBlipEncoderLayer:
    """A layer with fresh weights, as timm draws them."""
    block = InstructBlipEncoderLayer(config)
    block.self_attn = ClipAttention(config)
    for module in block.modules():
        if isinstance(module, nn.Linear | QueryKeyValue):
            nn.init.trunc_normal_(module.weight, std=_INITIAL_DEVIATION)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return block


def clip_settings(runs: Sequence[Run], attention: str, device: torch.device) -> dict[str, Any]:
    """What a block is told, so that its attention stays inside clips.

    Args:
        runs: Lengths in patches; of one run, which is a batch, nothing need be told.
        attention: As the recipe has it; flash attention is told the ends of all clips instead.
        device: Of the tower.
    """
    if len(runs) == 1:
        return {}
    if attention != _FLASH:
        return {"clip_runs": tuple(runs)}
    clips, lengths = torch.tensor(runs, device="cpu").unbind(1)
    ends = nn.functional.pad(lengths.repeat_interleave(clips).cumsum(0), (1, 0))
    ends = ends.to(device, torch.int32)
    longest = max(run.length for run in runs)
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }
