"""Samples that cannot be read in training: how they are noted, and how many there may be.

A data worker notes what it replaced beside the example (`Reading`), and the note travels with the
batch (`ReadBatch`) to whoever keeps the list (`tpokit.training.bad_samples`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from tpokit.batch import Batch
from tpokit.data.arrangement import Rows
from tpokit.types import Example

TOGETHER = 1000
"""So many samples at the beginning of a stage are judged together."""


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read.

    Attributes:
        position: Its place in the order of the stage, from 0.
        source: Name of the data entry.
        index: Of the sample in the source.
        sample: Its own id; ``None`` if not even that could be read.
        message: What is wrong.
    """

    position: int
    source: str
    index: int
    sample: str | None
    message: str


@dataclass(frozen=True)
class BadSampleLimit:
    """How many bad samples a stage may have.

    Attributes:
        share: Of the samples so far, ``run.bad_samples``.
        samples: Of the whole stage.
    """

    share: float
    samples: int

    def judged(self, position: int) -> int:
        """How many samples are judged at a position: those so far, but the first `TOGETHER` (all,
        in a shorter stage) as one, since a bad sample among the first ten says little.
        """
        return max(position + 1, min(self.samples, TOGETHER))

    def allowed(self, position: int) -> int:
        """How many samples may be bad up to a position, with it."""
        return math.floor(self.share * self.judged(position) + 1e-9)


@dataclass(frozen=True)
class Reading:
    """What came of a position.

    Attributes:
        example: Of its sample, or of the one that took its place; ``None`` if none could.
        bad: Samples that could not be read, in the order in which they were tried.
    """

    example: Example | None
    bad: tuple[BadSample, ...] = ()


@dataclass(frozen=True)
class ReadBatch:
    """What was read together on a rank: a piece of its share of a step.

    Attributes:
        batches: Its micro-batches; none if a place could not be filled.
        bad: What was replaced.
        shortened: How many of its samples were too long and lost turns or frames.
    """

    batches: tuple[Batch, ...]
    bad: tuple[BadSample, ...] = ()
    shortened: int = 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ReadBatch:
        """The same with the batches on a device."""
        return replace(self, batches=tuple(b.to(device, non_blocking) for b in self.batches))

    def pin_memory(self) -> ReadBatch:
        """The same with the batches in page-locked memory."""
        return replace(self, batches=tuple(batch.pin_memory() for batch in self.batches))


@dataclass(frozen=True)
class ReadingCollator:
    """Makes micro-batches of readings.

    Attributes:
        arrange: Examples to the rows of each micro-batch.
        collate: Rows to a micro-batch.
    """

    arrange: Callable[[Sequence[Example]], Sequence[Rows]]
    collate: Callable[[Rows], Batch]

    def __call__(self, readings: Sequence[Reading | Example]) -> ReadBatch:
        """Collate; an example is a reading without anything bad."""
        found = [item if isinstance(item, Reading) else Reading(item) for item in readings]
        bad = tuple(sample for reading in found for sample in reading.bad)
        examples = [reading.example for reading in found if reading.example is not None]
        if len(examples) < len(found):
            return ReadBatch((), bad)
        batches = tuple(self.collate(rows) for rows in self.arrange(examples))
        return ReadBatch(batches, bad, sum(example.shortened for example in examples))
