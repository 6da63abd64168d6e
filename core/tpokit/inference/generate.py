"""The only decoding loop: greedy, batched, on a cache.

A trigger is written like any word; its slots are then fed in its stead, one position each, just as
in training, and their hidden states are kept for the head. Decoding goes on behind the slots, so an
answer may call several heads, each several times, and rows of a batch may do so at different steps.

Source: the released loop (OpenGVLab/TPO app.py) feeds the slot before its trigger and drops it
    again. Ours can do that too (``before_trigger``), for weights that are scored that way; without
    it a hidden state in generation equals the one in training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tpokit.batch import Batch, WordIndex
from tpokit.inference.lockstep import Lockstep
from tpokit.model import TpoModel, positions_of
from tpokit.recipe import SlotOrder
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
    """What one row of a batch is about to do.

    Attributes:
        forgets: How many of the tokens that were fed last go out of sight before the next one,
            which takes the position of the first of them.
    """

    def __init__(
        self, tokens: TokenTable, stop: tuple[int, ...], budget: int, slots: SlotOrder
    ) -> None:
        self.out = Generated()
        self.done = False
        self.forgets = 0
        self._tokens = tokens
        self._stop = stop
        self._budget = budget
        self._slots_first = slots == "before_trigger"
        self._task = ""
        self._due: list[int] = []  # slots that must be fed next
        self._held: int | None = None  # trigger that is fed once its slots were
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
        self.forgets = 0
        if self._at_slot:
            self._heard.append(hidden)
        if self._due:
            return self._slot()
        if self._at_slot:
            self._end_call()
            if self._held is not None:
                return self._trigger()
        if self.done or len(self.out.ids) >= self._budget:
            self.done = True
            return None
        return self._write(best)

    def _write(self, best: int) -> int | None:
        """Add a word to the answer, or end it, and say which token to feed."""
        self.out.ids.append(best)
        if tuple(self.out.ids[-len(self._stop) :]) == self._stop:
            del self.out.ids[-len(self._stop) :]
            self.done = True
            return None
        task = self._tokens.trigger_task(best)
        if task is None:
            return best
        self._task, self._due = task, list(self._tokens.slot_ids(task))
        if not self._slots_first:
            return best
        self._held = best
        return self._slot()

    def _slot(self) -> int:
        """The next slot that is due."""
        self._at_slot = True
        return self._due.pop(0)

    def _end_call(self) -> None:
        """Keep what the slots gave."""
        self.out.calls.append((self._task, torch.stack(self._heard)))
        self._at_slot, self._heard = False, []

    def _trigger(self) -> int | None:
        """The trigger that was held back, in the place of its slots."""
        trigger, self._held = self._held, None
        self.forgets = len(self._tokens.slot_ids(self._task))
        return trigger


@torch.no_grad()
def generate(
    model: TpoModel,
    batch: Batch,
    max_new_tokens: int,
    slots: SlotOrder = "after_trigger",
    lockstep: Lockstep | None = None,
) -> list[Generated]:
    """Answer every row of a batch.

    Args:
        model: In evaluation mode.
        batch: Prompts, padded on the left, on the model's device.
        max_new_tokens: Most tokens that are written in each row; slots do not count, and a call
            that has begun is finished.
        slots: ``after_trigger``: a trigger, then its slots, as in training. ``before_trigger``: the
            slots where the trigger is about to stand; then they are forgotten and the trigger takes
            their place, so that nothing that is written later sees them.
        lockstep: With other ranks: goes on with idle steps until all of them have written their
            answers.

    Returns:
        One answer for each row.
    """
    lockstep = lockstep or Lockstep()
    backbone, bridge = model.backbone, model.bridge
    tokenizer = backbone.processor.tokenizer
    stop = tuple(tokenizer(backbone.processor.end_of_turn, add_special_tokens=False)["input_ids"])
    rows = [_Row(model.tokens, stop, max_new_tokens, slots) for _ in batch.samples]
    mask = batch.mask
    positions = positions_of(mask)
    idle = lockstep.together
    embeds = bridge.write(
        backbone.embed(batch, idle_vision=idle), batch.tokens, model.given(batch, idle)
    )
    cache: Any = None
    while True:
        hidden, cache = backbone.decode(embeds, mask, positions, cache, use_cache=True)
        if batch.questions is not None and rows[0].out.question is None:
            _keep_questions(rows, hidden, batch.questions)
        last = hidden[:, -1]
        best = bridge.logits(backbone.logits(last), last).argmax(-1).tolist()
        found = [row.step(last[index], best[index]) for index, row in enumerate(rows)]
        if not lockstep.anyone(any(token is not None for token in found)):
            return [row.out for row in rows]
        if any(row.forgets for row in rows):
            mask, positions = _forget(mask, positions, [row.forgets for row in rows])
        feeding = torch.tensor([[token is not None] for token in found], device=mask.device)
        ids = torch.tensor([[token or 0] for token in found], device=mask.device)
        mask = torch.cat([mask, feeding], dim=1)
        positions = positions[:, -1:] + feeding  # who is done waits where it is
        embeds = bridge.write(backbone.embed_ids(ids), bridge.find(ids))


def _forget(mask: Tensor, positions: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Take the last tokens of rows out of sight, ``counts [b]`` of them.

    The cache keeps its columns: the mask ``[b, l]`` hides them, and the positions ``[b, q]`` go
    back, so that rows may forget at different steps and nothing is copied.
    """
    gone = torch.tensor(counts, device=mask.device)[:, None]
    columns = torch.arange(mask.shape[1], device=mask.device)
    return mask & (columns < mask.shape[1] - gone), positions - gone


def _keep_questions(rows: list[_Row], hidden: Tensor, where: WordIndex) -> None:
    """Keep the states at the words of each question, which only the first step sees."""
    for row, states, mask in zip(
        rows, hidden[where.rows[:, None], where.positions], where.mask, strict=True
    ):
        row.out.question = states[mask]
