"""Targets of the temporal calls of a batch, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tpokit_temporal.annotations import TemporalTarget


@dataclass(frozen=True)
class TemporalTargets:
    """What is right for the n calls of a batch.

    Legend: m moments of the call that has most, l clips of the longest video.

    The numbers at the end are also there on the host, so that counting what a loss sums over makes
    no device wait.

    Attributes:
        moments: ``[n, m, 2]`` centre and width as fractions of the video, float32; 0 where padded.
        moment_mask: ``[n, m]`` bool, false where padded.
        saliency: ``[n, l]`` grades from 0 to 12, float32; 0 where padded.
        clip_mask: ``[n, l]`` bool, false where padded.
        pairs: ``[n, 2, 2]`` int64: two pairs of clips, each (more salient, less salient).
        is_real: ``[n]`` bool: whether the next call (of the last: the first) is about another
            video, so that its query is a real negative for this one's video.
        moment_counts: Moments of each call.
        clip_count: Clips of all calls.
        relevant_count: Relevant clips of all calls.
        real_count: Calls with a real negative.
    """

    moments: Tensor
    moment_mask: Tensor
    saliency: Tensor
    clip_mask: Tensor
    pairs: Tensor
    is_real: Tensor
    moment_counts: tuple[int, ...]
    clip_count: int
    relevant_count: int
    real_count: int

    def __len__(self) -> int:
        return len(self.moment_counts)

    @property
    def relevant(self) -> Tensor:
        """``[n, l]`` bool: which clips have to do with the query."""
        return self.saliency > 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TemporalTargets:
        """The same targets with all tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TemporalTargets:
        """The same targets in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Any) -> TemporalTargets:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: function(v) for name, v in values.items() if isinstance(v, Tensor)}
        )


def collate_targets(targets: Sequence[TemporalTarget]) -> TemporalTargets:
    """Targets of the n calls of a batch, padded; n may be 0."""
    moments = [torch.tensor([t.moments[i] for i in t.learnt], dtype=torch.float32) for t in targets]
    saliency = [torch.tensor(target.saliency, dtype=torch.float32) for target in targets]
    videos = [target.video for target in targets]
    is_real = [here != there for here, there in zip(videos, videos[1:] + videos[:1], strict=True)]
    moment_counts = tuple(len(target.learnt) for target in targets)
    clip_counts = [len(target.saliency) for target in targets]
    return TemporalTargets(
        moments=pad_sequence(moments, batch_first=True) if moments else torch.zeros(0, 0, 2),
        moment_mask=_mask(moment_counts),
        saliency=pad_sequence(saliency, batch_first=True) if saliency else torch.zeros(0, 0),
        clip_mask=_mask(clip_counts),
        pairs=torch.tensor([t.pairs for t in targets], dtype=torch.int64).reshape(-1, 2, 2),
        is_real=torch.tensor(is_real, dtype=torch.bool),
        moment_counts=moment_counts,
        clip_count=sum(clip_counts),
        relevant_count=sum(grade > 0 for target in targets for grade in target.saliency),
        real_count=sum(is_real),
    )


def _mask(lengths: Sequence[int]) -> Tensor:
    """``[n, longest]`` bool, true at the first ``lengths`` places of each row."""
    return torch.arange(max(lengths, default=0)) < torch.tensor(lengths).reshape(-1, 1)
