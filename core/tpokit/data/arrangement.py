"""How the samples that a rank reads together become micro-batches, each of rows of one or more.

Every loss term is divided by its count over the whole step, so the arrangement changes no gradient,
only time and memory. It follows from the samples alone: a resumed run arranges them the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpokit.errors import UsageError
from tpokit.recipe_schema import Packing, RunEntry
from tpokit.types import Example, View

if TYPE_CHECKING:
    from tpokit.interfaces import Backbone

Rows = list[list[Example]]
"""Rows of a micro-batch; a row of several samples is packed."""


@dataclass(frozen=True)
class Arrangement:
    """Rules for micro-batches.

    Attributes:
        samples: At most so many in one.
        tokens: At most so many in one, padding included: rows times the longest; ``None``: any.
        pixels: At most so many through the vision tower in one; ``None``: any.
        packing: Which samples may share a row. A row is never longer than the longest sample of
            its micro-batch, so that attention costs no more than with padding.
        pixels_of: Counts the pixels of the media of a sample; needed with ``pixels``.
    """

    samples: int
    tokens: int | None = None
    pixels: int | None = None
    packing: Packing = "none"
    pixels_of: Callable[[Sequence[View]], int] | None = None

    @classmethod
    def of(cls, run: RunEntry, backbone: Backbone) -> Arrangement:
        """As a recipe says, for its backbone."""
        return cls(
            run.device_batch,
            run.device_tokens,
            run.device_pixels,
            packing_of(run, backbone),
            None if run.device_pixels is None else backbone.processor.pixels,
        )

    def __call__(self, examples: Sequence[Example]) -> list[Rows]:
        """Micro-batches of some samples.

        If one has room for all, each in a row of its own, they stay in their order. Otherwise they
        are put in the order of their lengths, longest first, so that those of about one length come
        together.
        """
        batches = [_MicroBatch(self)]
        for example in sorted(examples, key=lambda example: -len(example.ids)):  # stable
            if not batches[-1].add(example):
                batches.append(_MicroBatch(self))
                batches[-1].add(example)
        if len(batches[0].rows) == len(examples):
            return [[[example] for example in examples]]
        return [batch.rows for batch in batches]

    def may_pack(self, example: Example) -> bool:
        """Whether a sample may share a row."""
        if self.packing == "conversation":
            return not any(example.slots.values()) and not any(example.given_positions.values())
        return self.packing == "all"


class _MicroBatch:
    """A micro-batch that is filled with samples of falling length.

    Attributes:
        rows: So far.
    """

    def __init__(self, rules: Arrangement) -> None:
        self.rows: Rows = []
        self._rules = rules
        self._free: list[int] = []  # tokens left in each row; 0 if it is not to be shared
        self._samples = 0
        self._pixels = 0

    def add(self, example: Example) -> bool:
        """Take a sample in, if there is room; the first one always."""
        count = self._rules.pixels_of
        pixels = 0 if count is None else count(example.views)
        shared = self._row_for(example)
        if self.rows and not self._has_room(pixels, rows=len(self.rows) + (shared is None)):
            return False
        self._samples += 1
        self._pixels += pixels
        if shared is None:
            self.rows.append([example])
            left = self._longest - len(example.ids)
            self._free.append(left if self._rules.may_pack(example) else 0)
        else:
            self.rows[shared].append(example)
            self._free[shared] -= len(example.ids)
        return True

    @property
    def _longest(self) -> int:
        """Tokens of the longest row, which is the first."""
        return len(self.rows[0][0].ids)

    def _has_room(self, pixels: int, rows: int) -> bool:
        """For one sample more, of so many pixels, if there are so many rows then."""
        rules = self._rules
        return (
            self._samples < rules.samples
            and (rules.tokens is None or rows * self._longest <= rules.tokens)
            and (rules.pixels is None or self._pixels + pixels <= rules.pixels)
        )

    def _row_for(self, example: Example) -> int | None:
        """The first row that a sample may share and that has room for it."""
        if not self._rules.may_pack(example):
            return None
        length = len(example.ids)
        return next((row for row, free in enumerate(self._free) if free >= length), None)


def packing_of(run: RunEntry, backbone: Backbone) -> Packing:
    """What is packed; without a word in the recipe conversation, if the backbone can.

    Raises:
        UsageError: The recipe wants packing, but the backbone cannot.
    """
    if run.packing is None:
        return "conversation" if backbone.packs else "none"
    if run.packing != "none" and not backbone.packs:
        raise UsageError(
            f"run.packing is {run.packing!r}, but {type(backbone).__name__} cannot take several "
            "samples in one row; leave it out, or write none"
        )
    return run.packing
