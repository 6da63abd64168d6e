"""Examples side by side: padding, and every index that the model needs, worked out before the GPU
is involved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from tpokit.batch import (
    Batch,
    ContextIndex,
    FrameIndex,
    GivenIndex,
    LabelIndex,
    SequenceIndex,
    SlotIndex,
    TokenIndex,
    WordIndex,
)
from tpokit.interfaces import Processor, TaskHead
from tpokit.losses import ASSIGN, LANGUAGE
from tpokit.tokens import TokenTable
from tpokit.types import IGNORED, Example, Sample, View


@dataclass(frozen=True)
class Collator:
    """Makes batches for one model.

    Attributes:
        processor: Of the backbone; turns pixels into tensors and names the padding token.
        heads: By task.
        tokens: Ids of the task tokens.
        padding: Side that is padded: right for training, left for generation.
        packs: Whether the backbone takes rows of several samples (`tpokit.Backbone.packs`).
    """

    processor: Processor
    heads: Mapping[str, TaskHead]
    tokens: TokenTable
    padding: Literal["left", "right"] = "right"
    packs: bool = False

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Collate examples, each in a row of its own."""
        return self.rows([[example] for example in examples])

    def rows(self, rows: Sequence[Sequence[Example]]) -> Batch:
        """Collate rows of one or, if the backbone packs, several examples each."""
        placed = _placed(rows, self.padding)
        examples = [place.example for place in placed]
        length = max(place.start + len(place.example.ids) for place in placed)
        pad = self.processor.tokenizer.pad_token_id or 0
        ids = torch.full((len(rows), length), pad)
        labels = torch.full((len(rows), length), IGNORED)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for example, row, start in placed:
            span = slice(start, start + len(example.ids))
            ids[row, span] = torch.tensor(example.ids)
            labels[row, span] = torch.tensor(example.labels)
            labels[row, start] = IGNORED  # nothing of its sample stands before it
            mask[row, span] = True
        learnt = _label_index(labels)
        tasks = sorted(self.heads)
        targets = {
            task: self.heads[task].collate(_joined(examples, "targets", task)) for task in tasks
        }
        triggers = learnt.ids >= self.tokens.rows
        counts = {LANGUAGE: float((~triggers).sum()), ASSIGN: float(triggers.sum())}
        for task in tasks:
            counted = self.heads[task].counts(targets[task])
            counts.update({f"{task}.{term}": float(count) for term, count in counted.items()})
        return Batch(
            ids=ids,
            mask=mask,
            labels=labels,
            learnt=learnt,
            tokens=self._token_index(ids, mask),
            slots={task: _slot_index(placed, task, self._slots(task)) for task in tasks},
            given=self._given(placed),
            targets=targets,
            contexts={task: self.context(task, _calls(placed, task)) for task in tasks},
            questions=self._last_questions(placed),
            media=self._media(examples),
            counts=counts,
            samples=tuple(f"{example.source}/{example.sample.id}" for example in examples),
            sequences=_sequence_index(placed, ids) if self.packs else None,
        )

    def idle(self) -> Batch:
        """The cheapest micro-batch: one token, nothing to learn; for a rank that has fewer
        micro-batches in a step than others.
        """
        nothing: dict[str, list[Any]] = {task: [] for task in self.heads}
        pad = self.processor.tokenizer.pad_token_id or 0
        idle = Example(
            sample=Sample("idle", turns=()),
            source="",
            ids=[pad],
            labels=[IGNORED],
            slots=nothing,
            given_positions=nothing,
            targets=nothing,
            given=nothing,
            views=[],
            questions=[[0]],
        )
        return self([idle])

    def _media(self, examples: Sequence[Example]) -> dict[str, Any]:
        views = [example.views for example in examples]
        turns = [example.sample.turns for example in examples]
        media = self.processor.collate_media(views)
        return media and {**media, **self.processor.collate_instructions(turns, views)}

    def _slots(self, task: str) -> int:
        return len(self.tokens.tasks[task].slots)

    def _token_index(self, ids: torch.Tensor, mask: torch.Tensor) -> TokenIndex:
        given = {self.tokens.given_id(task) for task in self.tokens.tasks} - {None}
        found = (ids >= self.tokens.rows) & mask
        for token in given:
            found &= ids != token
        rows, positions = torch.nonzero(found, as_tuple=True)
        return TokenIndex(rows, positions, ids[rows, positions] - self.tokens.rows)

    def _given(self, placed: Sequence[_Place]) -> dict[str, GivenIndex]:
        index: dict[str, GivenIndex] = {}
        for task in sorted(self.heads):
            if self.tokens.given_id(task) is None:
                continue
            places = [
                (row, start + position)
                for example, row, start in placed
                for position in example.given_positions.get(task, ())
            ]
            rows, positions = torch.tensor(places, dtype=torch.long).reshape(-1, 2).unbind(1)
            given = _joined([place.example for place in placed], "given", task)
            values = self.heads[task].collate_given(given)
            index[task] = GivenIndex(rows, positions, values)
        return index

    def context(self, task: str, calls: Sequence[ContextCall]) -> ContextIndex:
        """What becomes the context of some calls of a task.

        Args:
            task: Whose head.
            calls: In reading order.
        """
        head = self.heads[task]
        need = head.context_need()
        return ContextIndex(
            head.collate_prepared([call.prepared for call in calls]),
            word_index([(call.row, call.words) for call in calls]) if need.question else None,
            self._frame_index(calls) if need.vision and calls else None,
        )

    def _frame_index(self, calls: Sequence[ContextCall]) -> FrameIndex:
        """Frames of the first medium of each call; calls of one sample share theirs."""
        firsts: dict[tuple[int, int], int] = {}  # sample to its first frame
        shown: list[View] = []
        count = 0
        for call in calls:
            if call.sample not in firsts:
                firsts[call.sample] = count
                shown.append(call.views[0])
                count += len(call.views[0].frames)
        sizes = [len(call.views[0].frames) for call in calls]
        which = torch.zeros(len(calls), max(sizes), dtype=torch.long)
        mask = torch.zeros(len(calls), max(sizes), dtype=torch.bool)
        for index, (call, size) in enumerate(zip(calls, sizes, strict=True)):
            which[index, :size] = firsts[call.sample] + torch.arange(size)
            mask[index, :size] = True
        return FrameIndex(self.processor.collate_frames(shown), which, mask)

    def _last_questions(self, placed: Sequence[_Place]) -> Any:
        if not any(head.context_need().question for head in self.heads.values()):
            return None
        return word_index(
            [
                (row, [start + position for position in example.questions[-1]])
                for example, row, start in placed
            ]
        )


@dataclass(frozen=True)
class ContextCall:
    """One call, as far as its context goes.

    Attributes:
        row: Of the batch.
        words: Positions of the words of its question in the batch.
        prepared: By the head.
        views: The head's views of the media.
        start: Where its sample begins in the row.
    """

    row: int
    words: Sequence[int]
    prepared: Any
    views: Sequence[View]
    start: int = 0

    @property
    def sample(self) -> tuple[int, int]:
        """What calls of one sample have in common: its row and where it begins."""
        return self.row, self.start


class _Place(NamedTuple):
    """Where an example stands in a batch: its row and its first position."""

    example: Example
    row: int
    start: int


def _placed(rows: Sequence[Sequence[Example]], padding: Literal["left", "right"]) -> list[_Place]:
    """Examples one after another in their rows, which end together if padded on the left."""
    lengths = [sum(len(example.ids) for example in row) for row in rows]
    places = []
    for row, (examples, length) in enumerate(zip(rows, lengths, strict=True)):
        start = max(lengths) - length if padding == "left" else 0
        for example in examples:
            places.append(_Place(example, row, start))
            start += len(example.ids)
    return places


def _sequence_index(placed: Sequence[_Place], ids: torch.Tensor) -> SequenceIndex:
    """Of rows that are padded on the right."""
    rows, length = ids.shape
    begins = torch.tensor([row * length + start for _, row, start in placed])
    bounds = torch.cat([begins, torch.tensor([rows * length])])
    sizes = bounds.diff()
    positions = torch.arange(rows * length) - begins.repeat_interleave(sizes)
    return SequenceIndex(
        positions=positions.reshape(rows, length),
        bounds=bounds.to(torch.int32),
        longest=int(sizes.max()),
    )


def word_index(questions: Sequence[tuple[int, Sequence[int]]]) -> WordIndex:
    """Row and positions of the words of each question, padded; at least one column."""
    longest = max([1, *(len(words) for _, words in questions)])
    positions = torch.zeros(len(questions), longest, dtype=torch.long)
    mask = torch.zeros(len(questions), longest, dtype=torch.bool)
    for index, (_, words) in enumerate(questions):
        positions[index, : len(words)] = torch.tensor(words, dtype=torch.long)
        mask[index, : len(words)] = True
    rows = torch.tensor([row for row, _ in questions], dtype=torch.long)
    return WordIndex(rows, positions, mask)


def _calls(placed: Sequence[_Place], task: str) -> list[ContextCall]:
    return [
        ContextCall(
            row=row,
            words=[start + position for position in example.questions[turn]],
            prepared=prepared,
            views=example.head_views.get(task, ()),
            start=start,
        )
        for example, row, start in placed
        for prepared, turn in zip(
            example.prepared.get(task, ()), example.question_of.get(task, ()), strict=True
        )
    ]


def _joined(examples: Sequence[Example], name: str, task: str) -> list[Any]:
    return [value for example in examples for value in getattr(example, name).get(task, ())]


def _label_index(labels: torch.Tensor) -> LabelIndex:
    """The hidden state before each label."""
    rows, before = torch.nonzero(labels[:, 1:] != IGNORED, as_tuple=True)
    return LabelIndex(rows, before, labels[rows, before + 1])


def _slot_index(placed: Sequence[_Place], task: str, slots: int) -> SlotIndex:
    calls = [
        (row, [start + position for position in call])
        for example, row, start in placed
        for call in example.slots.get(task, ())
    ]
    return SlotIndex(
        torch.tensor([row for row, _ in calls], dtype=torch.long),
        torch.tensor([positions for _, positions in calls], dtype=torch.long).reshape(-1, slots),
    )
