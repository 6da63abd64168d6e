"""The columns of a line of the log: loss terms (``loss``, ``language``, ``assign``,
``task.term``), and what is named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RATE = "learning_rate."
"""In front of a part: its learning rate."""
NORM = "grad_norm"
"""Norm of the whole gradient before clipping, in the step of the line."""
PART_NORM = "gradient_norm."
"""In front of a part: norm of its gradient before clipping, in the step of the line."""
TASK_NORM = "task_gradient."
"""In front of a task: norm of the gradient of its share of the loss on the shared weights."""
TASK_COSINE = "task_cosine."
"""In front of two tasks, ``a.b``: cosine between their gradients on the shared weights."""
CALLS = "calls."
"""In front of a task: how often its head was called since the line before, over all ranks."""
TOKENS = "tokens."
"""In front of ``words`` and ``triggers``: how many were learnt from since the line before, over all
ranks.
"""
PADDING = "padding"
"""Share of the positions since the line before that held no token, over all ranks."""
BAD_SAMPLES = "bad_samples"
"""How many of the stage could not be read so far; left out while there are none."""
SHORTENED = "shortened_samples"
"""How many of the stage were too long and lost turns or frames so far; left out while there are
none.
"""
SKIPPED_STEPS = "skipped_steps"
"""How many of the stage changed no weight so far; left out while there are none."""
MACHINE = "machine."
"""In front of all that depends on the machine and its load: times, speeds, memory. All other
columns of a resumed run are those of an unbroken one, bit for bit.
"""
SAMPLES_PER_S = f"{MACHINE}samples_per_s"
"""Over all devices."""
TOKENS_PER_S = f"{MACHINE}tokens_per_s"
"""Over all devices, without padding."""
WAITING = f"{MACHINE}waiting_for_data"
"""Share of the time in which a rank waited for its data; the largest of all ranks."""
MEMORY = f"{MACHINE}memory_gib"
"""Resident memory of a rank without its data workers; the largest of all ranks."""
WORKER_MEMORY = f"{MACHINE}worker_memory_gib"
"""Resident memory of a data worker, with what it shares with its rank; the largest of all."""
GPU_MEMORY = f"{MACHINE}gpu_memory_gib"
"""Most that tensors have taken so far; the largest of all ranks."""
MFU = f"{MACHINE}mfu"
"""Share of the arithmetic that the devices could have done which the model needed."""

_TERMS = ("loss", "language", "assign")
_PREFIXES = (RATE, PART_NORM, TASK_NORM, TASK_COSINE, CALLS, TOKENS, MACHINE)


def is_term(column: str) -> bool:
    """Whether a column is a loss term."""
    return column in _TERMS or ("." in column and not column.startswith(_PREFIXES))


def repeatable(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed run, or the same run on another machine, writes again: all but `MACHINE`."""
    return {name: value for name, value in row.items() if not name.startswith(MACHINE)}


def below(row: Mapping[str, float], prefix: str) -> dict[str, float]:
    """The columns of a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): value for k, value in row.items() if k.startswith(prefix)}
