"""What the conversation probe looks at in a batch, and what is kept of its reference.

Legend of all shapes: p answer tokens of a batch, P of all batches, k kept tokens of the vocabulary,
N samples, t triggers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from tpokit.batch import Batch
from tpokit.errors import UsageError

OTHER_CONVERSATIONS = (
    "evaluate.probe: the conversations are not those that the reference was made with; their file "
    "or the template has changed: start again with --overwrite"
)
_KEPT = 256  # tokens of the vocabulary that are kept of the reference
_LEAST = -100.0  # log-probability that counts as none
_PIECE = 2**24  # numbers of a vocabulary that are in float32 at once


class Looked(NamedTuple):
    """A batch of the probe.

    ``number``: of the batch. ``tokens``: answer tokens of each sample. ``labels [p]``, ``right
    [p]``: what they are, and whether they were the likeliest. ``ids [p, k]``, ``log_probs [p, k]``:
    the likeliest tokens. ``kl``: sum of the divergences, where a reference was given.
    """

    number: int
    tokens: list[int]
    labels: Tensor
    right: Tensor
    ids: Tensor
    log_probs: Tensor
    kl: float


@dataclass(frozen=True)
class Reference:
    """What is kept of the reference, samples in their order.

    Attributes:
        tokens: ``[N]`` how many each sample has.
        labels: ``[P]``.
        right: ``[P]``.
        ids: ``[P, k]``.
        log_probs: ``[P, k]``.
    """

    tokens: Tensor
    labels: Tensor
    right: Tensor
    ids: Tensor
    log_probs: Tensor

    @property
    def accuracy(self) -> float:
        """Share of tokens that are the likeliest."""
        return float(self.right.double().mean())

    def of(self, samples: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, ids and log-probabilities at the tokens of some samples."""
        ends = [0, *accumulate(self.tokens.tolist())]
        span = slice(ends[samples.start], ends[min(samples.stop, len(ends) - 1)])
        return self.labels[span], self.ids[span], self.log_probs[span]


def look_at(
    number: int,
    batch: Batch,
    words: Tensor,
    triggers: Tensor,
    kept: tuple[Tensor, Tensor, Tensor] | None,
) -> Looked:
    """What is kept of a batch.

    Args:
        number: Of the batch.
        batch: With the labels.
        words: Logits ``[p, rows]``.
        triggers: Logits ``[p, t]``.
        kept: Labels, ids and log-probabilities of the reference at its tokens, if there is one.

    Raises:
        UsageError: The labels are not those of the reference.
    """
    labels = batch.learnt.ids
    if kept is not None and not torch.equal(kept[0], labels.cpu()):
        raise UsageError(OTHER_CONVERSATIONS)
    right, ids, log_probs, kl = [], [], [], 0.0
    for piece, now in _log_probs(words, triggers):
        right.append(now.argmax(-1) == labels[piece])
        if kept is None:
            likeliest = now.topk(min(_KEPT, now.shape[-1]), dim=-1)
            log_probs.append(likeliest.values)
            ids.append(likeliest.indices)
        else:
            reference_ids, reference = (part[piece].to(now.device) for part in kept[1:])
            kl += _divergence(reference, now.gather(-1, reference_ids), now.shape[-1])
    rows = torch.bincount(batch.learnt.rows, minlength=len(batch.ids))
    nothing = labels.new_zeros(0, 0)
    return Looked(
        number,
        rows.tolist(),
        labels.cpu(),
        torch.cat(right).cpu(),
        torch.cat(ids).cpu() if ids else nothing.cpu(),
        torch.cat(log_probs).cpu() if log_probs else nothing.cpu(),
        kl,
    )


def _log_probs(words: Tensor, triggers: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Log-probabilities ``[piece, rows + t]`` in float32, some positions at a time."""
    step = max(1, _PIECE // words.shape[-1])
    for start in range(0, len(words), step):
        piece = slice(start, start + step)
        logits = torch.cat([words[piece].float(), triggers[piece].float()], dim=-1)
        yield piece, logits.log_softmax(-1).clamp(min=_LEAST)


def _divergence(reference: Tensor, now: Tensor, vocabulary: int) -> float:
    """Sum over positions of the divergence of two distributions.

    Args:
        reference: ``[p, k]`` log-probabilities of the reference's likeliest tokens.
        now: ``[p, k]`` those of the model, of the same tokens.
        vocabulary: Number of all tokens; those that are not among the k count as one.
    """
    reference, now = reference.double(), now.double()
    before, after = reference.exp(), now.exp()
    divergence = (before * (reference - now)).sum(-1)
    if reference.shape[-1] < vocabulary:
        least = math.exp(_LEAST)
        rest, rest_now = ((1.0 - part.sum(-1)).clamp(min=least) for part in (before, after))
        divergence = divergence + rest * (rest.log() - rest_now.log())
    return float(divergence.sum())
