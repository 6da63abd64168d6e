"""How much a run does and how fast: calls, tokens, padding, speeds, waiting for data, memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from multiprocessing import active_children
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from tpokit.batch import Batch
from tpokit.losses import ASSIGN, LANGUAGE
from tpokit.reporting import log_columns as columns
from tpokit.training.flops import FlopCount
from tpokit.training.watching import Step, StepWatcher, Wish
from tpokit.types import LossTerm

_GIB = 2**30


class SpeedWatcher(StepWatcher):
    """Counts what a line of the log says besides the loss.

    Time is that of steps: from when a rank asks for its data to the end of the step. What lies
    between steps (a checkpoint, an evaluation) is not in it. Nothing is read back from the device
    until a line is due; ranks are brought together then, once.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        samples_per_step: int,
        device: torch.device,
        world: int,
        flops: FlopCount | None = None,
    ) -> None:
        """Start counting.

        Args:
            tasks: Of all heads, in the same order on every rank.
            samples_per_step: Over all devices.
            device: Where batches go.
            world: Number of ranks.
            flops: Counts the arithmetic of the model; ``None`` where the peak of the device is not
                known.
        """
        self._tasks = tuple(tasks)
        self._samples_per_step = samples_per_step
        self._device = device
        self._world = world
        self._flops = flops
        self._tokens = torch.zeros((), dtype=torch.float64, device=device)
        self._counts = [0.0] * (3 + len(self._tasks))  # positions, words, triggers, calls by task
        self._untimed = 0.0  # tokens that an earlier process has taken in
        self._steps = 0
        self._elapsed_s = 0.0
        self._waited_s = 0.0
        self._since_s: float | None = None

    def step_begins(self, step: Step) -> None:
        """Take in what the data say of themselves."""
        self._since_s = time.perf_counter() - step.waited_s
        self._waited_s += step.waited_s
        self._steps += 1
        for batch in step.batches:
            found = [
                batch.ids.numel(),
                batch.counts.get(LANGUAGE, 0.0),
                batch.counts.get(ASSIGN, 0.0),
                *(len(batch.slots[task].rows) for task in self._tasks),
            ]
            self._counts = [before + more for before, more in zip(self._counts, found, strict=True)]
        if self._flops is not None:
            self._flops.start()

    def loss_known(self, terms: Mapping[str, LossTerm], loss: Tensor, batch: Batch) -> None:
        """Count tokens where they are: asking a GPU for them would make it wait."""
        self._tokens += batch.mask.sum()
        if self._flops is not None:
            self._flops.take(batch)

    def backward_done(self, batch: Batch) -> None:
        """The next forward pass counts again."""
        if self._flops is not None:
            self._flops.start()

    def step_ended(self, number: int) -> Wish:
        """Stop the clock until the next step."""
        self._stop_clock()
        self._since_s = None
        if self._flops is not None:
            self._flops.stop()
        return Wish.NOTHING

    def row(self) -> dict[str, float]:
        """Counts, speeds and memory since the line before, over all ranks."""
        self._stop_clock()
        seconds = max(self._elapsed_s, 1e-9)
        flops = 0.0 if self._flops is None else self._flops.read()
        totals, largest = self._of_all_ranks(
            [self._tokens.item(), self._untimed, flops, *self._counts],
            [self._waited_s / seconds, *_resident_gib(), _gpu_memory_gib()],
        )
        tokens, untimed, flops, positions, words, triggers, *calls = totals
        row = {
            **{f"{columns.CALLS}{t}": n for t, n in zip(self._tasks, calls, strict=True)},
            f"{columns.TOKENS}words": words,
            f"{columns.TOKENS}triggers": triggers,
            columns.PADDING: 1 - tokens / max(positions, 1),
            columns.SAMPLES_PER_S: self._steps * self._samples_per_step / seconds,
            columns.TOKENS_PER_S: (tokens - untimed) / seconds,
        }
        names = (columns.WAITING, columns.MEMORY, columns.WORKER_MEMORY, columns.GPU_MEMORY)
        row |= {name: value for name, value in zip(names, largest, strict=True) if value}
        if self._flops is not None:
            row[columns.MFU] = flops / (seconds * self._flops.peak * self._world)
        self._forget()
        return row

    def state(self) -> dict[str, Any]:
        """Counts; times begin anew when a run goes on."""
        return {"tokens": self._tokens.item(), "counts": self._counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        self._tokens.fill_(state["tokens"])
        self._counts = list(state["counts"])
        self._untimed = state["tokens"]

    def _stop_clock(self) -> None:
        if self._since_s is not None:
            now = time.perf_counter()
            self._elapsed_s += now - self._since_s
            self._since_s = now

    def _forget(self) -> None:
        self._tokens.zero_()
        self._counts = [0.0] * len(self._counts)
        self._steps = 0
        self._untimed = self._elapsed_s = self._waited_s = 0.0

    def _of_all_ranks(
        self, added: list[float], compared: list[float]
    ) -> tuple[list[float], list[float]]:
        """Sums and largest values."""
        if self._world == 1:
            return added, compared
        mine = torch.tensor(added + compared, dtype=torch.float64, device=self._device)
        found = [torch.empty_like(mine) for _ in range(self._world)]
        dist.all_gather(found, mine)
        together = torch.stack(found).cpu()
        return (
            together[:, : len(added)].sum(0).tolist(),
            together[:, len(added) :].amax(0).tolist(),
        )


def _resident_gib() -> tuple[float, float]:
    """Resident memory of this process and of the largest of its data workers, in GiB."""
    sizes = [0]
    for worker in active_children():
        try:
            sizes.append(psutil.Process(worker.pid).memory_info().rss)
        except psutil.Error:
            continue  # it has ended meanwhile
    return psutil.Process().memory_info().rss / _GIB, max(sizes) / _GIB


def _gpu_memory_gib() -> float:
    return torch.cuda.max_memory_allocated() / _GIB if torch.cuda.is_available() else 0.0
