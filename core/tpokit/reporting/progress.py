"""The progress of a stage, and of anything that is counted, on the console.

On a terminal there is a live block; elsewhere (a file, a pipe, CI) plain lines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tpokit.reporting import log_columns as columns
from tpokit.reporting.console import open_console
from tpokit.reporting.log_columns import is_term


class _Progress:
    """Something that goes on; a context manager. On a terminal there is a live block meanwhile."""

    def __init__(self, console: Console, show: bool = True, transient: bool = False) -> None:
        self._console = console
        self._began_s = time.monotonic()
        live = Live(console=console, refresh_per_second=4, transient=transient)
        self._live = live if show and console.is_terminal else None

    def __enter__(self) -> Self:
        self._began_s = time.monotonic()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()


class TrainingProgress(_Progress):
    """What a stage is doing: step, every loss term, learning rates, gradients, counts, speed,
    memory, time left.

    A context manager. On a terminal it is one live block; elsewhere each update is one line.
    """

    def __init__(
        self, stage: str, steps: int, samples_per_step: int, start: int = 0, show: bool = True
    ) -> None:
        """Get ready.

        Args:
            stage: Its name.
            steps: Of the whole stage.
            samples_per_step: Over all devices.
            start: Steps that were done before (a resumed stage).
            show: False: print nothing (every rank but the first).
        """
        self._stage = stage
        self._steps = steps
        self._samples = samples_per_step
        self._start = start
        self._show = show
        super().__init__(open_console(), show)

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Show a step.

        Args:
            step: Steps of the stage that are done.
            row: A line of the log, see `tpokit.reporting.log_columns`.
        """
        if not self._show:
            return
        if self._live is None:
            self._console.print(Text(self._line(step, row)), soft_wrap=True)
        else:
            self._live.update(self._block(step, row))

    def scores(self, step: int, scores: Mapping[str, float], note: str = "") -> None:
        """Print the scores of an evaluation, and why the stage ends with it if there is a
        ``note``; on a terminal they stay above the live block.
        """
        if not self._show:
            return
        found = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
        line = f"{self._stage} {step}/{self._steps} scores  {found}"
        self._console.print(Text(line), soft_wrap=True)
        if note:
            ends = f"{self._stage} ends after step {step}: {note}"
            self._console.print(Text(ends), soft_wrap=True)

    def _groups(self, step: int, row: Mapping[str, float]) -> dict[str, list[str]]:
        """What there is to show, by what it is about."""
        groups = _groups_of(row)
        seconds, done = time.monotonic() - self._began_s, step - self._start
        if done > 0 and seconds > 0:
            left_s = round((self._steps - step) * seconds / done)
            if not groups["speed"]:
                groups["speed"] = [f"{done * self._samples / seconds:.1f} samples/s"]
            groups["left"] = [f"{left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}"]
        return groups

    def _line(self, step: int, row: Mapping[str, float]) -> str:
        """All in one line; what says by itself what it is stands without a name."""
        said = [
            "  ".join(entries) if name in _WITHOUT_NAME else f"{name} {' '.join(entries)}"
            for name, entries in self._groups(step, row).items()
            if entries
        ]
        return f"{self._stage} {step}/{self._steps}  " + "  ".join(said)

    def _block(self, step: int, row: Mapping[str, float]) -> RenderableType:
        """A line for each group below a bar."""
        groups = self._groups(step, row)
        left = f"left {groups.pop('left', ['?'])[0]}"
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            Text(f"{self._stage} {step}/{self._steps}", "bold"),
            ProgressBar(total=self._steps, completed=step, width=40),
            left,
        )
        lines = Table.grid(padding=(0, 2))
        for name, entries in groups.items():
            if entries:
                lines.add_row(Text(name, "dim"), Columns(map(Text, entries), padding=(0, 2)))
        return Group(bar, lines)


_WITHOUT_NAME = ("terms", "speed")


def _groups_of(row: Mapping[str, float]) -> dict[str, list[str]]:
    """The columns of a row as they are read, by what they are about: terms first."""
    norms = {"": row[columns.NORM]} if columns.NORM in row else {}
    known = {columns.NORM, columns.PADDING, "learning_rate"}
    counts = {
        **columns.below(row, columns.CALLS),
        **columns.below(row, columns.TOKENS),
        **{k: v for k, v in row.items() if "." not in k and k not in known and not is_term(k)},
    }
    rates = {"": row["learning_rate"]} if "learning_rate" in row else {}
    return {
        "terms": [f"{name} {value:.4g}" for name, value in row.items() if is_term(name)],
        "rate": _named({**rates, **columns.below(row, columns.RATE)}, ".1e"),
        "gradient": _named({**norms, **columns.below(row, columns.PART_NORM)}, ".3g"),
        "tasks": _named(columns.below(row, columns.TASK_NORM), ".3g"),
        "cosine": _named(columns.below(row, columns.TASK_COSINE), "+.2f"),
        "counts": _named(counts, ",.0f"),
        "speed": [
            f"{row[name]:{form}} {unit}".strip() for name, form, unit in _SPEEDS if name in row
        ],
        "memory": [
            f"{label}{row[name]:.2f} GiB" for name, label in _MEMORIES.items() if name in row
        ],
    }


_SPEEDS = (
    (columns.SAMPLES_PER_S, ".1f", "samples/s"),
    (columns.TOKENS_PER_S, ",.0f", "tokens/s"),
    (columns.PADDING, ".0%", "padding"),
    (columns.WAITING, ".0%", "waiting for data"),
    (columns.MFU, ".1%", "MFU"),
)
_MEMORIES = {columns.MEMORY: "", columns.WORKER_MEMORY: "worker ", columns.GPU_MEMORY: "GPU "}


def _named(values: Mapping[str, float], form: str) -> list[str]:
    return [f"{name} {value:{form}}".strip() for name, value in values.items()]


class Counting(_Progress):
    """How much of something is done, on stderr: a live line on a terminal, elsewhere a line now and
    then.

    A context manager.
    """

    def __init__(self, what: str, every_s: float = 10.0) -> None:
        """Get ready.

        Args:
            what: Is counted.
            every_s: Seconds between two lines where there is no terminal.
        """
        self._what = what
        self._every_s = every_s
        self._told_s = time.monotonic()
        super().__init__(open_console(stderr=True), transient=True)

    def update(self, done: int, count: int) -> None:
        """Show how far it is."""
        line = Text(f"{done:,} of {count:,} {self._what}")
        if self._live is not None:
            self._live.update(Group(line, ProgressBar(total=count, completed=done)))
        elif time.monotonic() - self._told_s >= self._every_s:
            self._told_s = time.monotonic()
            self._console.print(line, soft_wrap=True)
