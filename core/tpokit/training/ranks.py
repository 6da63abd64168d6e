"""The processes of a run: how many, which one this is, and doing things once for all of them.

A launcher such as ``torchrun`` starts the processes and tells each its place in ``RANK`` and
``WORLD_SIZE``.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from tpokit.errors import CheckpointError, TpokitError, TrainingError

_NOISE = re.compile(r"^\[[^]]*\]\s*|\.? This is typically.*$", re.DOTALL)
"""Around what gloo says: a line of its source, and advice."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """The place of this process.

    Attributes:
        rank: Of this process, from 0.
        world: Number of processes.
        launched: Whether a launcher started them.
    """

    rank: int
    world: int
    launched: bool

    @classmethod
    def here(cls) -> Ranks:
        """As the launcher says; one process without a launcher."""
        launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
        if not launched:
            return cls(0, 1, False)
        return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), True)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.rank == 0

    def join(self, timeout_s: int) -> None:
        """Start the process group, if there is more than one process and none has started it.

        Args:
            timeout_s: How long a process waits for the others, in seconds, before it stops.
        """
        if self.world > 1 and not dist.is_initialized():
            gpu = torch.cuda.is_available()
            if gpu:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            limit = datetime.timedelta(seconds=timeout_s)
            dist.init_process_group("nccl" if gpu else "gloo", timeout=limit)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()

    def shared(self, value: Result) -> list[Result]:
        """The values of all processes, in the order of their ranks."""
        if self.world == 1:
            return [value]
        values: list[Result] = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def largest(self, number: int) -> int:
        """The largest of the numbers that the processes have; all must call this."""
        if self.world == 1:
            return number
        place = "cuda" if dist.get_backend() == "nccl" else "cpu"
        found = torch.tensor(number, device=place)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def once(self, work: Callable[[], Result]) -> Result:
        """Do something on the first process and give its result, or its error, to all of them."""
        if self.world == 1:
            return work()
        answer: list[Result | TpokitError | None] = [None]
        if self.first:
            try:
                answer[0] = work()
            except TpokitError as cause:
                answer[0] = cause
        dist.broadcast_object_list(answer, src=0)
        if isinstance(answer[0], TpokitError):
            raise answer[0]
        return answer[0]  # type: ignore[return-value]


@contextmanager
def naming_lost_ranks(ranks: Ranks) -> Iterator[None]:
    """Turn what a process says that has lost another one into one line.

    Raises:
        TrainingError: Another process died, or did not come in time.
    """
    try:
        yield
    except (RuntimeError, CheckpointError) as cause:
        lost = _lost_connection(cause)
        if ranks.world == 1 or lost is None:
            raise
        raise TrainingError(
            f"rank {ranks.rank} waited for another process in vain ({lost}); what that one says is "
            "the reason, or it was killed; what was saved is untouched, go on with --resume"
        ) from cause


def _lost_connection(error: BaseException) -> str | None:
    """What the communication between processes said, if an error comes from there."""
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        if isinstance(cause, dist.DistError) or "/gloo/" in text:
            return _NOISE.sub("", text).strip().splitlines()[0]
        cause = cause.__cause__
    return None
