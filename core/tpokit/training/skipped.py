"""Steps that change no weight, because a loss or a gradient on some rank is not finite.

All ranks must skip such a step together, and DeepSpeed has summed and cut up the gradients before
anybody could look at them. But every engine finds gradients that are not finite by their norm, and
drops them. So the ranks agree before the backward pass of the last micro-batch, and multiply its
loss by NaN, all of them. A number that is multiplied by 1 stays what it is.

A skipped step is over for the schedule and the data, as if its gradient had been zero; optimizer
and weights are as before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tpokit.batch import Batch
from tpokit.errors import TrainingError
from tpokit.reporting import console
from tpokit.training.json_lines import append_rows, read_rows
from tpokit.training.ranks import Ranks
from tpokit.types import LossTerm

SKIPPED_STEPS_FILE = "skipped_steps.jsonl"
"""In the folder of a run: one line for each micro-batch for which a step was skipped."""
_LOSS = "loss"
_NAMED = 8
"""So many samples are named on the console; the file has all."""


@dataclass(frozen=True)
class SkippedBatch:
    """A micro-batch for which a step was skipped.

    Attributes:
        step: Of the stage, from 1.
        rank: Where it was.
        terms: Loss terms that are not finite to their sum, in words; none if the loss is finite but
            the gradient of the step is not. Then all micro-batches of the step are listed.
        samples: Names of its samples.
    """

    step: int
    rank: int
    terms: dict[str, str]
    samples: tuple[str, ...]


class SkippedSteps:
    """Decides in every step of a stage whether it is skipped; keeps the list of the run, and stops
    it when too many follow each other.

    Attributes:
        count: Steps of the stage that were skipped so far.
    """

    def __init__(self, path: Path, stage: str, allowed: int, ranks: Ranks) -> None:
        """Start; no file is made before there is something to write.

        Args:
            path: The list of the run.
            stage: Name of the stage.
            allowed: How many steps in a row may be skipped, ``run.skipped_steps``.
            ranks: All of them skip the same steps; the first one writes and talks.
        """
        self.count = 0
        self._in_a_row = 0
        self._path = path
        self._stage = stage
        self._allowed = allowed
        self._ranks = ranks
        self._seen: list[tuple[dict[str, Tensor], tuple[str, ...]]] = []
        self._bad: Tensor | None = None

    def go_on(self, done: int) -> None:
        """Count those of the list up to a step, after which a resumed run goes on; the others come
        again.
        """
        steps = {row["step"] for row in read_rows(self._path) if row["stage"] == self._stage}
        steps = {step for step in steps if step <= done}
        self.count = len(steps)
        self._in_a_row = 0
        while done - self._in_a_row in steps:
            self._in_a_row += 1

    def loss_known(self, terms: Mapping[str, LossTerm], loss: Tensor, batch: Batch) -> None:
        """Take in a micro-batch; nothing is read back from the device."""
        sums = {name: term.sum.detach() for name, term in terms.items()}
        learnt = any(batch.counts.values())  # otherwise its samples are no real ones
        self._seen.append(({**sums, _LOSS: loss.detach()}, batch.samples if learnt else ()))
        bad = ~torch.isfinite(loss.detach())
        self._bad = bad if self._bad is None else self._bad | bad

    def factor(self) -> Tensor:
        """What the loss of the last micro-batch of a step is multiplied by: 1, or NaN on every rank
        if any loss of the step is not finite on any of them. All ranks must call this.
        """
        if self._bad is None:
            raise TrainingError("a step without a micro-batch")
        bad = self._bad.float()
        if self._ranks.world > 1:
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        self._bad = bad > 0
        return torch.where(self._bad, math.nan, 1.0)

    def ended(self, step: int, norm: float | None) -> bool:
        """Whether a step is skipped; the same on all ranks, which must all call this.

        Args:
            step: Of the stage, from 1.
            norm: Of its gradient, over all ranks, if it is known.

        Raises:
            TrainingError: Too many in a row were.
        """
        bad = self._bad is not None and bool(self._bad)
        seen, self._seen, self._bad = self._seen, [], None
        if not bad and (norm is None or math.isfinite(norm)):
            self._in_a_row = 0
            return False
        own = [
            SkippedBatch(step, self._ranks.rank, _not_finite(sums), samples)
            for sums, samples in seen
        ]
        shared = self._ranks.shared([batch for batch in own if batch.terms or not bad])
        found = [batch for batches in shared for batch in batches]
        self.count += 1
        self._in_a_row += 1
        self._note(found)
        return True

    def _note(self, found: Sequence[SkippedBatch]) -> None:
        if self._ranks.first:
            append_rows(self._path, [{"stage": self._stage, **asdict(batch)} for batch in found])
        message = f"stage {self._stage}, step {found[0].step}: {_reason(found)}"
        if self._in_a_row > self._allowed:
            raise TrainingError(
                f"{message} ({self._in_a_row} in a row; run.skipped_steps allows {self._allowed}; "
                f"all skipped steps: {self._path})"
            )
        if self._ranks.first:
            console.say(f"{message}; the step is skipped")


def _not_finite(sums: Mapping[str, Tensor]) -> dict[str, str]:
    values = {name: float(value) for name, value in sums.items()}
    bad = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
    return bad if set(bad) <= {_LOSS} else {k: v for k, v in bad.items() if k != _LOSS}


def _reason(found: Sequence[SkippedBatch]) -> str:
    """What is not finite, on which rank, on which samples."""
    if not any(batch.terms for batch in found):
        samples = [name for batch in found for name in batch.samples]
        return f"the loss is finite but its gradient is not; samples: {_named(samples)}"
    reasons = []
    for rank, batches in groupby(found, key=lambda batch: batch.rank):
        terms: dict[str, str] = {}
        samples = []
        for batch in batches:
            terms.update(batch.terms)
            samples += batch.samples
        values = ", ".join(f"{name} = {value}" for name, value in terms.items())
        reasons.append(f"{values} on rank {rank}; samples: {_named(samples)}")
    return "loss is not finite: " + "; ".join(reasons)


def _named(samples: Sequence[str]) -> str:
    more = f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else ""
    return (", ".join(samples[:_NAMED]) or "none") + more
