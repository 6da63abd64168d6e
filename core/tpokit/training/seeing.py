"""What is measured of every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tpokit.model import TpoModel
from tpokit.recipe import Recipe, StageEntry
from tpokit.reporting.log_columns import TASK_COSINE, TASK_NORM, below
from tpokit.training.flops import FlopCount, peak_flops
from tpokit.training.gradients import PartGradients, TaskGradients, shared_parameters
from tpokit.training.ranks import Ranks
from tpokit.training.shortened import ShortenedSamples
from tpokit.training.speed import SpeedWatcher
from tpokit.training.watching import StepWatcher


def measurements(
    recipe: Recipe, stage: StageEntry, model: TpoModel, ranks: Ranks
) -> tuple[list[StepWatcher], list[str]]:
    """What measures a stage, and what there is to say about it.

    Args:
        recipe: For its ``run:`` section and loss weights.
        stage: What is trained.
        model: With its modes set, before an engine wraps it.
        ranks: Processes of the run.

    Returns:
        Watchers, the same on every rank and after a resume; and lines for the console.
    """
    run = recipe.run
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    peak = peak_flops(device, run.precision)
    flops = None if peak is None else FlopCount(model, peak)
    shared, lines = _shared(recipe, model)
    weights = recipe.loss_weights(stage)
    return [
        SpeedWatcher(list(model.heads), stage.samples_per_step, device, ranks.world, flops),
        PartGradients(model, run.log_every, stage.length),
        TaskGradients(model, shared, weights, run.gradients_every, ranks.world),
        ShortenedSamples(),
    ], lines


def _shared(recipe: Recipe, model: TpoModel) -> tuple[list[torch.nn.Parameter], list[str]]:
    """Weights on which tasks are compared, if that is wanted."""
    if not recipe.run.gradients_every:
        return [], []
    if recipe.run.engine == "zero3":
        return [], ["run.gradients_every: left out, zero3 has no whole weights to compare tasks on"]
    part, shared = shared_parameters(model)
    if not shared:
        return [], ["run.gradients_every: left out, the stage trains nothing that tasks share"]
    numbers = sum(parameter.numel() for parameter in shared.values())
    line = f"gradients of tasks are compared on {numbers:,} numbers of {part}"
    return list(shared.values()), [line]


def compared_tasks(rows: Sequence[Mapping[str, Any]], stage: str) -> dict[str, dict[str, float]]:
    """How the tasks of a stage got on with each other, as means over the lines of its log.

    Args:
        rows: Of the log.
        stage: Name of the stage.

    Returns:
        Task to its row of a table: ``norm`` of its gradient, and task to cosine; empty if tasks
        were not compared.
    """
    own = [row for row in rows if row["stage"] == stage]
    norms, cosines = (_means([below(row, prefix) for row in own]) for prefix in _COMPARED)
    table: dict[str, dict[str, float]] = {task: {"norm": norm} for task, norm in norms.items()}
    for pair, cosine in cosines.items():
        one, other = pair.split(".")
        table[one][other] = table[other][one] = cosine
    return table


_COMPARED = (TASK_NORM, TASK_COSINE)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}
