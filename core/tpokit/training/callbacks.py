"""What is seen of a run: live progress, one JSON line for every line of the log, loss curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tpokit.reporting.log_columns import repeatable
from tpokit.training.json_lines import append_rows, forget_rows, read_rows

__all__ = ["LOG_FILE", "StageLog", "forget_rows", "read_rows", "repeatable"]

LOG_FILE = "log.jsonl"


class StageLog(TrainerCallback):  # type: ignore[misc] # transformers is not typed
    """Shows each line of the log and appends it to the file of the run; on the first rank only."""

    def __init__(
        self, stage: str, path: Path, shown: Callable[[int, Mapping[str, float]], None]
    ) -> None:
        """Remember where to write.

        Args:
            stage: Name of the stage, in every row.
            path: ``log.jsonl`` of the run.
            shown: Called with the step and the row.
        """
        self._stage = stage
        self._path = path
        self._shown = shown

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The last step is always in the log."""
        control.should_log = control.should_log or state.global_step >= state.max_steps

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Write and show a row; the summary that Trainer logs at the end is no row."""
        if not state.is_world_process_zero or logs is None or "loss" not in logs:
            return
        numbers = {name: value for name, value in logs.items() if name != "epoch"}
        row = {"stage": self._stage, "step": state.global_step, **numbers}
        append_rows(self._path, [row])
        self._shown(state.global_step, numbers)
