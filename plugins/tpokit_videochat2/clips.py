"""Clips of different lengths side by side, so that all go through the vision tower in one call.

Equally long clips are a batch; others lie behind one another in one row, sorted by length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tpokit.errors import DataError


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
        found, counts = torch.unique_consecutive(sorted_lengths, return_counts=True)
        runs = tuple(map(Run, counts.tolist(), found.tolist()))
        if torch.equal(sorted_lengths, lengths):
            return cls(runs)
        moves = (lengths.cumsum(0) - lengths)[clips] - (sorted_lengths.cumsum(0) - sorted_lengths)
        order = torch.arange(int(lengths.sum()), device="cpu")
        order = order + moves.repeat_interleave(sorted_lengths)
        return cls(runs, order.to(device), order.argsort().to(device))
