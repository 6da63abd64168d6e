"""Adds up loss terms on the device between two lines of the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from tpokit.training.ranks import Ranks
from tpokit.types import LossTerm


class TermMeter:
    """Sums and counts of every term, and the combined loss, since the last line of the log.

    Nothing is read back from the device until a line is due; ranks are added up then, once.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        """Start empty.

        Args:
            names: Full names of all terms, in the same order on every rank.
            device: Where the terms are.
        """
        self._names = list(names)
        self._sums = torch.zeros(len(self._names) + 1, dtype=torch.float64, device=device)
        self._counts = [0.0] * len(self._names)
        self._steps = 0
        self._step_sums = torch.zeros_like(self._sums)
        self._step_counts = [0.0] * len(self._names)

    def step_begins(self, counts: Mapping[str, float]) -> None:
        """Take in the counts of a whole step, over all ranks."""
        self._step_counts = [counts.get(name, 0.0) for name in self._names]

    def add(self, terms: Mapping[str, LossTerm], loss: Tensor) -> None:
        """Take in the terms of a micro-batch and its share of the combined loss."""
        nothing = self._sums.new_zeros(())
        found = [terms[name].sum.detach() if name in terms else nothing for name in self._names]
        self._step_sums += torch.stack([value.to(self._sums) for value in [*found, loss.detach()]])

    def step_ended(self, skipped: bool) -> None:
        """Add the step to the line, unless it changed no weight; then its loss is not finite."""
        if not skipped:
            self._sums += self._step_sums
            self._counts = [a + b for a, b in zip(self._counts, self._step_counts, strict=True)]
            self._steps += 1
        self._step_sums.zero_()

    def read(self, world: int) -> dict[str, float]:
        """Means since the last reading, over all ranks; empties the meter.

        Returns:
            ``loss``, the mean over the steps, and each term, its sum over its count; a term of
            which there was nothing is left out. Nothing if all steps were skipped.
        """
        if not self._steps:
            return {}
        sums = self._sums.clone()
        if world > 1:
            dist.all_reduce(sums)
        *found, loss = sums.tolist()
        row = {"loss": loss / world / self._steps}
        for name, total, count in zip(self._names, found, self._counts, strict=True):
            if count:
                row[name] = total / count
        self._sums.zero_()
        self._counts = [0.0] * len(self._names)
        self._steps = 0
        return row

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs to write the same line."""
        numbers = torch.tensor([*self._counts, float(self._steps)], dtype=torch.float64)
        return {"sums": self._sums.cpu(), "numbers": numbers}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`."""
        self._sums.copy_(state["sums"])
        *self._counts, steps = state["numbers"].tolist()
        self._steps = int(steps)

    def restore_from(self, states: Sequence[Mapping[str, Tensor]], ranks: Ranks) -> None:
        """Go on from the `state` of another number of ranks: the first one takes all sums.

        Args:
            states: Of each rank there was.
            ranks: Those of now; each rank's share of the loss is scaled by their number.
        """
        self.restore(states[0])
        self._sums.zero_()
        if ranks.first:
            for state in states:
                self._sums += state["sums"].to(self._sums)
            self._sums[-1] *= ranks.world / len(states)
