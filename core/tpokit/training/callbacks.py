"""What is seen of a run: live progress, one JSON line for every line of the log, loss curves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tpokit.atomic import write_text

LOG_FILE = "log.jsonl"
RATE = "learning_rate."
"""In front of a part: its learning rate."""
SPEED = "samples_per_s"
"""Over all devices."""
BAD_SAMPLES = "bad_samples"
"""How many of the stage could not be read so far; left out while there are none."""


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
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        rates = [value for name, value in numbers.items() if name.startswith(RATE)]
        shown = {k: v for k, v in numbers.items() if not k.startswith(RATE) and k != SPEED}
        self._shown(state.global_step, {**shown, "learning_rate": max(rates)})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a log, oldest first; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the run was stopped while it wrote this line
    return rows


def forget_rows(path: Path, stage: str, after_step: int) -> None:
    """Take away the rows of a stage behind a step, which are about to be written again."""
    rows = read_rows(path)
    kept = [row for row in rows if row["stage"] != stage or row["step"] <= after_step]
    if path.is_file():
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
