"""The combined loss ``L = w_mllm L_mllm + w_assign L_assign + sum_i w_i sum_k w_ik L_ik``.

Every term is a sum with its count (`tpokit.LossTerm`) and is divided by its count over the *whole
step*: all ranks, all micro-batches. So neither the number of GPUs nor gradient accumulation nor the
mixture of a micro-batch changes a weight.

Source: arXiv 2412.19326 equation 4. There the assignment loss is a cross-entropy over tasks; in the
    released code triggers
are words of the answer. Ours are words too, but counted as a term of their own, so that rare calls
can be weighted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tpokit.errors import TrainingError
from tpokit.types import LossTerm

LANGUAGE = "language"
"""Cross-entropy over the words of answers that are no triggers."""
ASSIGN = "assign"
"""Cross-entropy over triggers."""


class CombinedLoss:
    """Weighs the terms of a step and adds them up."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Keep the weights.

        Args:
            weights: Full name of a term (``language``, ``assign``, ``region.l1``) to its weight;
                for a head that is the weight of the task times that of the term. Terms that are not
                named have weight 0.
        """
        self.weights = dict(weights)

    def __call__(
        self, terms: Mapping[str, LossTerm], counts: Mapping[str, float], scale: float = 1.0
    ) -> Tensor:
        """Add up.

        Args:
            terms: By full name.
            counts: Count of each term over the whole step; one that is missing or 0 is taken as 1.
            scale: Number of ranks whose gradients the engine averages.

        Returns:
            Scalar to call ``backward`` on; terms of weight 0 are in it times 0, so that every rank
            has the same graph.
        """
        total: Tensor | None = None
        for name, term in terms.items():
            share = term.sum * (
                self.weights.get(name, 0.0) * scale / max(counts.get(name, 0.0), 1.0)
            )
            total = share if total is None else total + share
        if total is None:
            raise TrainingError(
                "a step without any loss term: the model has no answer to learn from"
            )
        return total


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy over words and triggers without joining their logits, which would copy ``[p,
    rows]`` once more.

    Goes through the positions in pieces: on a CPU they stay in its cache, and in 16-bit formats the
    float32 copies of the logits never exist all at once.
    """

    @staticmethod
    def forward(ctx: Any, words: Tensor, triggers: Tensor, ids: Tensor) -> Tensor:
        rows = words.shape[-1]
        normaliser = torch.cat(
            [torch.logsumexp(words[piece].float(), -1) for piece in _pieces(words)]
        )
        if triggers.shape[-1]:
            normaliser = torch.logaddexp(normaliser, torch.logsumexp(triggers.float(), -1))
        called = ids >= rows
        hit = words.gather(-1, ids.clamp(max=rows - 1)[:, None])[:, 0].float()
        if triggers.shape[-1]:
            hit = torch.where(
                called, triggers.gather(-1, (ids - rows).clamp(min=0)[:, None])[:, 0].float(), hit
            )
        ctx.save_for_backward(words, triggers, ids, normaliser)
        return normaliser - hit

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        words, triggers, ids, normaliser = ctx.saved_tensors
        (grad,) = grads
        rows = words.shape[-1]
        called = (ids >= rows)[:, None]
        grad, normaliser, ids = grad[:, None], normaliser[:, None], ids[:, None]
        to_word, to_trigger = torch.where(called, 0.0, -grad), torch.where(called, -grad, 0.0)
        word_grad = torch.empty_like(words)
        for piece in _pieces(words):
            share = (words[piece].float() - normaliser[piece]).exp_().mul_(grad[piece])
            share.scatter_add_(-1, ids[piece].clamp(max=rows - 1), to_word[piece])
            word_grad[piece] = share
        trigger_grad = (triggers.float() - normaliser).exp_().mul_(grad)
        if triggers.shape[-1]:
            trigger_grad.scatter_add_(-1, (ids - rows).clamp(min=0), to_trigger)
        return word_grad, trigger_grad.to(triggers.dtype), None


def _pieces(logits: Tensor) -> list[slice]:
    """Slices over the positions of logits ``[p, rows]``; one empty slice when there are none."""
    numbers = 2**22 if logits.device.type == "cpu" else 2**26  # fewer, larger kernels on a GPU
    step = max(1, numbers // logits.shape[-1])
    return [slice(start, start + step) for start in range(0, max(1, len(logits)), step)]


def language_terms(
    words: Tensor, triggers: Tensor, ids: Tensor, counts: Mapping[str, float]
) -> dict[str, LossTerm]:
    """Language and assignment loss.

    Args:
        words: Logits ``[p, rows]`` at the p positions that predict an answer token.
        triggers: Logits ``[p, triggers]`` there.
        ids: ``[p]`` the tokens to predict; ``rows + i`` is trigger i.
        counts: How many of them are words (``language``) and triggers (``assign``), known from
            collating.

    Returns:
        ``language`` and ``assign``.
    """
    loss = _CrossEntropy.apply(words, triggers, ids)
    called = ids >= words.shape[-1]
    return {
        LANGUAGE: LossTerm(loss.masked_fill(called, 0.0).sum(), counts.get(LANGUAGE, 0.0)),
        ASSIGN: LossTerm(loss.masked_fill(~called, 0.0).sum(), counts.get(ASSIGN, 0.0)),
    }


def chunked_language_terms(
    logits: Callable[[Tensor], tuple[Tensor, Tensor]],
    read: Tensor,
    ids: Tensor,
    counts: Mapping[str, float],
    chunks: int,
) -> dict[str, LossTerm]:
    """`language_terms` from hidden states, with the logits of a share of the positions at a time.

    With more than one chunk ``[p, rows]`` logits and their gradient never exist whole: those of a
    chunk are forgotten once its loss is known, and computed again in the backward pass.

    Args:
        logits: From hidden states ``[n, d]`` to the logits of words and of triggers; called once
            for each chunk, also for an empty one, because ranks must call modules alike.
        read: ``[p, d]`` hidden states at the p positions that predict an answer token.
        ids: ``[p]`` the tokens to predict.
        counts: See `language_terms`.
        chunks: How many.
    """

    def sums(states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        terms = language_terms(*logits(states), wanted, counts)
        return terms[LANGUAGE].sum, terms[ASSIGN].sum

    if chunks == 1:
        return language_terms(*logits(read), ids, counts)
    shares = zip(read.tensor_split(chunks), ids.tensor_split(chunks), strict=True)
    found = [checkpoint(sums, *share, use_reentrant=False) for share in shares]
    language, assign = (torch.stack(values).sum() for values in zip(*found, strict=True))
    return {
        LANGUAGE: LossTerm(language, counts.get(LANGUAGE, 0.0)),
        ASSIGN: LossTerm(assign, counts.get(ASSIGN, 0.0)),
    }
