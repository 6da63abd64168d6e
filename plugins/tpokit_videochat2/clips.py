"""Clips of different lengths in one sequence, and attention that stays inside each of them.

Images and videos of a batch go through the vision tower in one call, so that ranks with different
media call the same modules. Equally long clips are a batch; others lie behind one another in one
row, and transformers' own attention is called for each length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.instructblip.modeling_instructblip import eager_attention_forward
from transformers.utils import is_flash_attn_2_available

from tpokit.errors import DataError, UsageError

_FLASH = "flash_attention_2"


class Run(NamedTuple):
    """Equally long clips that lie behind one another; ``length`` in frames or in patches."""

    clips: int
    length: int


@dataclass(frozen=True)
class ClipOrder:
    """The clips of a batch, sorted by length.

    Attributes:
        runs: Lengths in frames, all different, short ones first.
        order: ``[f]`` where each frame of the sorted clips comes from; none if that is its place.
        back: ``[f]`` where each frame of the batch went to; none likewise.
    """

    runs: tuple[Run, ...]
    order: Tensor | None = None
    back: Tensor | None = None

    @classmethod
    def of(cls, frames: Sequence[int], device: torch.device) -> ClipOrder:
        """Sort clips of so many frames each.

        Raises:
            DataError: There is no clip, or one without frames.
        """
        lengths = torch.tensor(list(frames), dtype=torch.int64, device="cpu")
        if not len(lengths) or int(lengths.min()) < 1:
            raise DataError(f"clips have {list(frames)} frames; each must have at least one")
        sorted_lengths, clips = lengths.sort(stable=True)
        found, counts = sorted_lengths.unique_consecutive(return_counts=True)
        runs = tuple(map(Run, counts.tolist(), found.tolist()))
        if torch.equal(sorted_lengths, lengths):
            return cls(runs)
        moves = (lengths.cumsum(0) - lengths)[clips] - (sorted_lengths.cumsum(0) - sorted_lengths)
        order = torch.arange(int(lengths.sum()), device="cpu")
        order = order + moves.repeat_interleave(sorted_lengths)
        return cls(runs, order.to(device), order.argsort().to(device))

    def attention_arguments(
        self, patches: int, attention: str, device: torch.device
    ) -> dict[str, Any]:
        """What the layers hand on to attention, so that it stays inside clips.

        Args:
            patches: Of a frame.
            attention: As the recipe has it.
            device: Of the tower.
        """
        if len(self.runs) == 1:
            return {}
        runs = tuple(Run(run.clips, run.length * patches) for run in self.runs)
        if attention != _FLASH:
            return {"clip_runs": runs}
        lengths = [0, *(run.length for run in runs for _ in range(run.clips))]
        ends = torch.tensor(lengths, device="cpu").cumsum(0).to(device, torch.int32)
        longest = runs[-1].length
        return {
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
        }


def attention_by_clip(attention: str) -> str:
    """The name under which transformers finds an implementation of attention that knows clips.

    Flash attention knows them itself.

    Raises:
        UsageError: The implementation is not there.
    """
    if attention == _FLASH:
        if not is_flash_attn_2_available():
            raise UsageError(
                f"attention {attention!r} needs a GPU and the package flash-attn; 'sdpa' needs "
                "neither and is about as fast"
            )
        return attention
    inner = {"eager": eager_attention_forward, "sdpa": ALL_ATTENTION_FUNCTIONS["sdpa"]}
    if attention not in inner:
        raise UsageError(
            f"attention {attention!r} is not known; it must be one of {', '.join([*inner, _FLASH])}"
        )
    name = f"tpokit_clips_{attention}"
    AttentionInterface.register(name, partial(_attend_by_clip, inner[attention]))
    return name


def _attend_by_clip(
    inner: Callable[..., tuple[Tensor, Any]],
    module: nn.Module,
    *states: Tensor,
    attention_mask: None = None,
    clip_runs: Sequence[Run] = (),
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention in the library's form: queries, keys and values ``[n, heads, l, d]`` to
    ``[n, l, heads, d]``. With runs n is 1, and clips do not see each other.
    """
    if not clip_runs:
        return inner(module, *states, attention_mask, **settings)[0], None
    pieces = zip(
        *(tensor[0].split([clips * length for clips, length in clip_runs], 1) for tensor in states),
        strict=True,
    )
    seen = []
    for (clips, _), piece in zip(clip_runs, pieces, strict=True):
        batch = [tensor.unflatten(1, (clips, -1)).transpose(0, 1) for tensor in piece]
        attended, _ = inner(module, *batch, attention_mask, **settings)
        seen.append(attended.flatten(0, 1))
    return torch.cat(seen)[None], None
