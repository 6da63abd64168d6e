"""Which heads ranks leave out of a micro-batch, with ``run.schedule: same_task``.

The order of the data (`tpokit.data.mixing.Mixture` with a block) lets all ranks have the same task
of the mix at the same time. What their samples call is agreed upon here all the same: an entry of
one task may call several heads, and some of its samples none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from tpokit.batch import Batch
from tpokit.data.bad_samples import ReadBatch
from tpokit.training.ranks import Ranks


def name_called_tasks(
    read: Sequence[ReadBatch],
    tasks: Sequence[str],
    ranks: Ranks,
    device: torch.device,
    first_whole: bool,
) -> list[ReadBatch]:
    """The pieces of a step, with ``Batch.called`` in each micro-batch.

    Args:
        read: Of as many micro-batches on each rank.
        tasks: That are trained, in the same order on every rank.
        ranks: Processes of the run.
        device: Where ranks talk to each other.
        first_whole: All heads run in the first micro-batch, as ZeRO-3 wants it: to a weight that
            gets no gradient then, it gives that of the step before (DeepSpeed 0.19.8).
    """
    batches = [batch for piece in read for batch in piece.batches]
    called = torch.tensor([[float(_calls(batch, task)) for task in tasks] for batch in batches])
    if ranks.world > 1 and called.numel():
        called = called.to(device)
        dist.all_reduce(called, op=dist.ReduceOp.MAX)
    if first_whole:
        called[:1] = 1.0
    rows = iter(called.tolist())
    return [
        replace(piece, batches=tuple(_with_called(b, tasks, next(rows)) for b in piece.batches))
        for piece in read
    ]


def _calls(batch: Batch, task: str) -> bool:
    given = batch.given.get(task)
    return bool(len(batch.slots[task].rows)) or (given is not None and bool(len(given.rows)))


def _with_called(batch: Batch, tasks: Sequence[str], row: Sequence[float]) -> Batch:
    called = frozenset(task for task, one in zip(tasks, row, strict=True) if one)
    return replace(batch, called=called)
