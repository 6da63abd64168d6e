"""How long a trainer waits for a batch that a data worker has ready.

    python bench/batch_transport.py [--quick]

Batches of as many tensors as the quickstart's have, from a worker: packed into one, as
`tpokit.batch.Batch` does it, against one by one, as torch hands tensors over. The trainer's own
work is a pause, in which the worker gets ahead; what is printed is the median of the wait after it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import fields
from typing import Any

import torch
from torch.utils.data import DataLoader

from tpokit.batch import Batch, LabelIndex, TokenIndex

TENSORS = 30
PAUSE_S = 0.1


class OneByOne(Batch):
    """A batch whose tensors travel as torch sends them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Batch, tuple(getattr(self, field.name) for field in fields(self))


def make(kind: type[Batch]) -> Batch:
    """A batch: some tensors of 1 MB, more of few bytes."""
    ids = torch.zeros(12, 100, dtype=torch.long)
    index = [torch.zeros(12, dtype=torch.long) for _ in range(6)]
    return kind(
        ids=ids,
        mask=ids == 0,
        labels=ids.clone(),
        learnt=LabelIndex(*index[:3]),
        tokens=TokenIndex(*index[3:]),
        slots={},
        given={},
        targets={f"task{number}": torch.zeros(12, 4) for number in range(TENSORS)},
        contexts={},
        questions=None,
        media={"pixels": torch.zeros(80, 3, 64, 64), "frames": torch.zeros(40, 3, 64, 64)},
        counts={},
        samples=(),
    )


def median_wait_s(kind: type[Batch], batches: int) -> float:
    """Of the batches after the first three."""
    loader = DataLoader(range(batches), num_workers=1, collate_fn=lambda _: make(kind))
    waits = []
    ready = iter(loader)
    for _ in range(batches):
        time.sleep(PAUSE_S)
        start = time.perf_counter()
        next(ready)
        waits.append(time.perf_counter() - start)
    return statistics.median(waits[3:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few batches")
    batches = 8 if parser.parse_args().quick else 50
    packed, plain = median_wait_s(Batch, batches), median_wait_s(OneByOne, batches)
    print(
        f"wait for a batch: {packed * 1e3:.2f} ms packed, {plain * 1e3:.2f} ms one by one: "
        f"{plain / packed:.1f} x as fast (goal 1)"
    )


if __name__ == "__main__":
    main()
