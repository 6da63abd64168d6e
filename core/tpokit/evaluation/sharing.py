"""How several processes share an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from tpokit.errors import TpokitError

Found = TypeVar("Found")


@dataclass(frozen=True)
class Sharing:
    """The place of this process among those that evaluate together.

    Attributes:
        rank: Of this process, from 0.
        world: Number of processes; they are one process group.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process adds up and writes."""
        return self.rank == 0

    def of_all(self, work: Callable[[], Found]) -> list[Found]:
        """Do something on every rank and give the results of all, in the order of the ranks.

        Args:
            work: Gives plain data, which travel pickled; must not use collectives that other ranks
                would not.

        Raises:
            TpokitError: It failed on a rank: that error, on all ranks alike.
        """
        if self.world == 1:
            return [work()]
        outcome: Found | TpokitError
        try:
            outcome = work()
        except TpokitError as cause:
            outcome = cause
        outcomes: list[Found | TpokitError] = [outcome] * self.world
        dist.all_gather_object(outcomes, outcome)
        found: list[Found] = []
        for theirs in outcomes:
            if isinstance(theirs, TpokitError):
                raise theirs
            found.append(theirs)
        return found
