"""How many samples were too long and lost turns or frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tpokit.reporting.log_columns import SHORTENED
from tpokit.training.watching import Step, StepWatcher


class ShortenedSamples(StepWatcher):
    """Counts those of a stage, over all ranks."""

    def __init__(self) -> None:
        """Start at none."""
        self._count = 0

    def step_begins(self, step: Step) -> None:
        """Count those of a step."""
        self._count += step.shortened

    def row(self) -> dict[str, float]:
        """How many so far; nothing while there are none."""
        return {SHORTENED: self._count} if self._count else {}

    def state(self) -> dict[str, Any]:
        """How many so far."""
        return {"count": self._count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._count = state["count"]
