"""The task-token bridge: learnt embeddings go in at task tokens, hidden states come out at slots.

The vocabulary of the backbone is never resized. The bridge holds two small tensors instead:
``input``, one embedding for each trigger and slot, written over the backbone's own embedding; and
``output``, one row for each trigger, whose logits stand behind those of the vocabulary. So they are
exact on reload with tied and untied output layers, and under ZeRO-3 there is nothing to gather by
hand.

Source: arXiv 2412.19326 section 3; OpenGVLab/TPO modeling_videochate.py writes one learnt vector
    for each slot and reads
``hidden_states[-1]`` there. We differ: triggers have learnt rows of their own on both sides (there
they are words of a resized table whose input rows never train), and a batch may hold any number of
calls in each sample.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tpokit.batch import GivenIndex, SlotIndex, TokenIndex
from tpokit.tokens import TokenTable


class InputRows(nn.Module):
    """Learnt embeddings ``[t, d]`` of the t triggers and slots, written over the backbone's."""

    def __init__(self, count: int, width: int, scale: float) -> None:
        """Draw rows from a normal distribution of the given standard deviation."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width) * scale)

    def forward(self, embeds: Tensor, where: TokenIndex) -> Tensor:
        """``[b, l, d]`` to the same, with rows put in at ``where``; an empty index still gives the
        rows a gradient of 0.
        """
        return embeds.index_put(
            (where.rows, where.positions), self.weight[where.which].to(embeds.dtype)
        )


class OutputRows(nn.Module):
    """Output rows ``[triggers, d]``: the logits of the triggers."""

    def __init__(self, count: int, width: int) -> None:
        """Start at zero: a trigger then is as likely as a word of logit 0, and its row learns from
        the first step.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[..., d]`` to logits ``[..., triggers]``."""
        return nn.functional.linear(hidden, self.weight.to(hidden.dtype))


class TaskTokenBridge(nn.Module):
    """Writes slots and given values in, reads hidden states out; knows no task by name."""

    def __init__(self, tokens: TokenTable, width: int, scale: float = 0.02) -> None:
        """Make the rows.

        Args:
            tokens: Ids of all task tokens.
            width: d of the backbone.
            scale: Standard deviation of the fresh input rows; that of the backbone's own embeddings
                fits best.
        """
        super().__init__()
        triggers = len(tokens.tasks)
        slots = sum(len(task.slots) for task in tokens.tasks.values())
        self.rows = tokens.rows
        self.learnt = triggers + slots  # under ZeRO-3 the weights are not always there to count
        self.input = InputRows(triggers + slots, width, scale)
        self.output = OutputRows(triggers, width)

    def find(self, ids: Tensor) -> TokenIndex:
        """Triggers and slots in ids ``[b, q]``; for decoding, training has them from the collated
        batch.
        """
        rows, positions = torch.nonzero(
            (ids >= self.rows) & (ids < self.rows + self.learnt), as_tuple=True
        )
        return TokenIndex(rows, positions, ids[rows, positions] - self.rows)

    def write(
        self,
        embeds: Tensor,
        where: TokenIndex,
        given: Mapping[str, tuple[GivenIndex, Tensor]] | None = None,
    ) -> Tensor:
        """Put task tokens and given values into the embeddings.

        Args:
            embeds: ``[b, l, d]`` from the backbone.
            where: Triggers and slots.
            given: Task to the places ``[m]`` of its given tokens and their embeddings ``[m, d]``.

        Returns:
            New embeddings ``[b, l, d]``.
        """
        embeds = self.input(embeds, where)
        for places, values in (given or {}).values():
            embeds = embeds.index_put((places.rows, places.positions), values.to(embeds.dtype))
        return embeds

    def read(self, hidden: Tensor, where: SlotIndex) -> Tensor:
        """Hidden states ``[b, l, d]`` to those of the slots, ``[n, k, d]``."""
        return hidden[where.rows[:, None], where.positions]

    def logits(self, words: Tensor, hidden: Tensor) -> Tensor:
        """Logits of words ``[..., rows]`` and triggers in one, ``[..., rows + triggers]``; for
        decoding.
        """
        return torch.cat([words, self.output(hidden).to(words.dtype)], dim=-1)
