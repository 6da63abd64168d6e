"""The only decoding loop: greedy, batched, on a cache.

A trigger is written like any word; its slots are then fed in its stead, one position each, just as
in training, and their hidden states are kept for the head. Decoding goes on behind the slots, so an
answer may call several heads, each several times, and rows of a batch may do so at different steps.

Source: the released loop (OpenGVLab/TPO app.py) feeds the slot before its trigger and drops it
    again. Ours does not, so a
hidden state in generation equals the one in training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tpokit.batch import Batch, WordIndex
from tpokit.model import TpoModel, positions_of
from tpokit.tokens import TokenTable


@dataclass
class Generated:
    """One row's answer.

    Attributes:
        ids: Written tokens, triggers included; without slots and without the end of the turn.
        calls: Task of each call, in reading order, with the hidden states ``[k, d]`` of its slots.
        question: Hidden states ``[w, d]`` at the words of the question, if a head asks for them.
    """

    ids: list[int] = field(default_factory=list)
    calls: list[tuple[str, Tensor]] = field(default_factory=list)
    question: Tensor | None = None


class _Row:
    """What one row of a batch is about to do."""

    def __init__(self, tokens: TokenTable, stop: tuple[int, ...], budget: int) -> None:
        self.out = Generated()
        self.done = False
        self._tokens = tokens
        self._stop = stop
        self._budget = budget
        self._task = ""
        self._due: list[int] = []  # slots that must be fed next
        self._at_slot = False  # whether the token that was fed last is a slot
        self._heard: list[Tensor] = []

    def step(self, hidden: Tensor, best: int) -> int | None:
        """Take in what the last token gave and say which to feed next.

        Args:
            hidden: ``[d]`` at the token that was fed last.
            best: The likeliest next token there.

        Returns:
            A slot that is due, or the best token; ``None`` when the answer is complete.
        """
        if self._at_slot:
            self._heard.append(hidden)
        if self._due:
            self._at_slot = True
            return self._due.pop(0)
        if self._at_slot:
            self.out.calls.append((self._task, torch.stack(self._heard)))
            self._at_slot, self._heard = False, []
        if self.done or len(self.out.ids) >= self._budget:
            self.done = True
            return None
        self.out.ids.append(best)
        if tuple(self.out.ids[-len(self._stop) :]) == self._stop:
            del self.out.ids[-len(self._stop) :]
            self.done = True
            return None
        task = self._tokens.trigger_task(best)
        if task is not None:
            self._task, self._due = task, list(self._tokens.slot_ids(task))
        return best


@torch.no_grad()
def generate(model: TpoModel, batch: Batch, max_new_tokens: int) -> list[Generated]:
    """Answer every row of a batch.

    Args:
        model: In evaluation mode.
        batch: Prompts, padded on the left, on the model's device.
        max_new_tokens: Most tokens that are written in each row; slots do not count, and a call
            that has begun is finished.

    Returns:
        One answer for each row.
    """
    backbone, bridge = model.backbone, model.bridge
    tokenizer = backbone.processor.tokenizer
    stop = tuple(tokenizer(backbone.processor.end_of_turn, add_special_tokens=False)["input_ids"])
    rows = [_Row(model.tokens, stop, max_new_tokens) for _ in batch.samples]
    mask = batch.mask
    positions = positions_of(mask)
    embeds = bridge.write(
        backbone.embed(batch, idle_vision=False), batch.tokens, model.given(batch)
    )
    cache: Any = None
    while True:
        hidden, cache = backbone.decode(embeds, mask, positions, cache, use_cache=True)
        if batch.questions is not None and rows[0].out.question is None:
            _keep_questions(rows, hidden, batch.questions)
        last = hidden[:, -1]
        best = bridge.logits(backbone.logits(last), last).argmax(-1).tolist()
        found = [row.step(last[index], best[index]) for index, row in enumerate(rows)]
        if all(token is None for token in found):
            return [row.out for row in rows]
        feeding = torch.tensor([[token is not None] for token in found], device=mask.device)
        ids = torch.tensor([[token or 0] for token in found], device=mask.device)
        mask = torch.cat([mask, feeding], dim=1)
        positions = positions[:, -1:] + 1
        embeds = bridge.write(backbone.embed_ids(ids), bridge.find(ids))


def _keep_questions(rows: list[_Row], hidden: Tensor, where: WordIndex) -> None:
    """Keep the states at the words of each question, which only the first step sees."""
    for row, states, mask in zip(
        rows, hidden[where.rows[:, None], where.positions], where.mask, strict=True
    ):
        row.out.question = states[mask]
