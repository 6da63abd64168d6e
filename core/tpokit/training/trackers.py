"""Trackers that a run reports to: those of transformers' Trainer, by the names that it has."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from tpokit.errors import UsageError


def check_trackers(names: Sequence[str]) -> None:
    """See that trackers are installed.

    Args:
        names: ``run.report_to``; a tracker is called as its package is.

    Raises:
        UsageError: One is not; says what to type.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"run.report_to: {missing[0]!r} is not installed; pip install {' '.join(missing)}, or "
            "leave it out"
        )


def tracker_callbacks(names: Sequence[str], folder: Path, done: int) -> list[TrainerCallback]:
    """What tells trackers of every line of the log; for the first rank.

    Trainer would make the same by its argument ``report_to``, with the files of TensorBoard in the
    folder of checkpoints, which does not stay.

    Args:
        names: ``run.report_to``.
        folder: For files of TensorBoard.
        done: Steps of the stage that were done before; what was written behind them is hidden.
    """
    kinds = get_reporting_integration_callbacks(list(names))
    made = [_callback(*both, folder, done) for both in zip(names, kinds, strict=True)]
    return [*made, _LastOfStage()] if "wandb" in names else made


class _LastOfStage(TrainerCallback):  # type: ignore[misc] # transformers is not typed
    """Ends the run of W&B with a stage; Trainer would go on with it in the next one, where steps
    begin anew.
    """

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        importlib.import_module("wandb").finish()


def _callback(name: str, kind: Any, folder: Path, done: int) -> TrainerCallback:
    if name != "tensorboard":
        return kind()
    writers = importlib.import_module("torch.utils.tensorboard")
    return kind(writers.SummaryWriter(str(folder), purge_step=done + 1))
