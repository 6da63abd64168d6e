"""Everything that people see on the console; the one place that knows rich.

On a terminal there are colours and a live line; elsewhere (a file, a pipe, CI) plain lines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tpokit.answers import Answer
    from tpokit.parts import PartRow
    from tpokit.plugins import PluginRow
    from tpokit.weights.report import WeightsReport

_PLAIN_WIDTH = 200
"""Columns where there is no terminal: a table in a log must not be cut to 80."""
_STATE_STYLES = {"ready": "green", "blocked": "dim"}
_RATE = "learning_rate"


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def _table(title: str, *columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(
        title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2)
    )
    for column in columns:
        align = "right" if column in numbers else "left"
        table.add_column(column, justify=align, no_wrap=column in numbers)  # type: ignore[arg-type]
    return table


def say(text: str) -> None:
    """Print a line as it is; nothing in it is taken for markup."""
    _console().print(Text(text), soft_wrap=True)


def fail(error: BaseException) -> None:
    """Print an expected error in red on stderr: ``Type: message``."""
    _console(stderr=True).print(Text(f"{type(error).__name__}: {error}", "red"), soft_wrap=True)


def plugin_table(rows: Sequence[PluginRow]) -> None:
    """Print what plugins offer: kind, name, version, who provides it, state."""
    table = _table("", "kind", "name", "version", "provided by", "state", "summary")
    for row in rows:
        state = row.state + (f" {row.reason}" if row.state == "needs" else "")
        state += f": {row.reason}" if row.reason and row.state != "needs" else ""
        table.add_row(
            row.kind,
            Text(row.name),
            row.version or "-",
            Text(row.provided_by),
            Text(state, _STATE_STYLES.get(row.state, "red")),
            Text(row.summary),
        )
    _console().print(table)


def part_table(rows: Sequence[PartRow], stage_name: str) -> None:
    """Print what a stage does with each part, how large it is, and how fast it learns."""
    numbers = ("parameters", "trained", "learning rate")
    table = _table(f"stage {stage_name}", "part", "mode", *numbers, numbers=numbers)
    for row in rows:
        table.add_row(
            row.part,
            Text(row.mode, "dim" if row.mode == "frozen" else "bold"),
            f"{row.parameters:,}",
            f"{row.trained:,}",
            "-" if row.learning_rate is None else f"{row.learning_rate:.1e}",
        )
    _console().print(table)


def score_table(scores: Mapping[str, Mapping[str, float]], title: str = "") -> None:
    """Print measures side by side.

    Args:
        scores: Column, such as ``before``, ``after`` or ``best constant``, to measure to value; a
            value that is not there is shown as ``-``.
        title: Above the table.
    """
    table = _table(title, "measure", *scores, numbers=tuple(scores))
    for measure in dict.fromkeys(name for column in scores.values() for name in column):
        cells = [column.get(measure) for column in scores.values()]
        table.add_row(Text(measure), *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    _console().print(table)


def weights_table(report: WeightsReport) -> None:
    """Print what became of published tensors: a line for those that begin alike and went the same
    way.
    """
    numbers = ("tensors", "bytes")
    table = _table(
        f"{report.format}: {report.folder}", "published", *numbers, "state", "part", "why",
        numbers=numbers,
    )  # fmt: skip
    for row in report.groups():
        table.add_row(
            Text(row.name),
            f"{row.tensors:,}",
            f"{row.bytes:,}",
            row.state,
            Text(", ".join(row.parts) or "-"),
            Text(row.reason),
        )
    table.add_row("in all", f"{len(report.tensors):,}", f"{report.bytes:,}", "", "", "")
    _console().print(table)


def show_answer(answer: Answer) -> None:
    """Print an answer: its text, then a line for each result of a head."""
    console = _console()
    console.print(Text(answer.text), soft_wrap=True)
    if not answer.calls:
        return
    table = _table("", "task", "result")
    for call in answer.calls:
        table.add_row(call.task, Text(_in_words(call.result)))
    console.print(table)


def _in_words(result: Any) -> str:
    """A result as it describes itself, else its JSON fields."""
    if "__str__" in vars(type(result)):
        return str(result)
    return ", ".join(f"{name} {value}" for name, value in result.to_json().items())


class TrainingProgress:
    """What a stage is doing: step, every loss term, learning rate, samples a second, time left.

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
        self._began_s = time.monotonic()
        self._console = _console()
        self._show = show
        live = show and self._console.is_terminal
        self._live = Live(console=self._console, refresh_per_second=4) if live else None

    def __enter__(self) -> TrainingProgress:
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

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Show a step.

        Args:
            step: Steps of the stage that are done.
            row: ``loss``, every loss term by its full name, and if known ``learning_rate`` (or
                ``learning_rate.part`` of each part) and ``grad_norm``.
        """
        if not self._show:
            return
        line = self._line(step, row)
        if self._live is None:
            self._console.print(Text(line), soft_wrap=True)
        else:
            self._live.update(self._block(step, line))

    def _line(self, step: int, row: Mapping[str, float]) -> str:
        terms = [f"{name} {value:.4g}" for name, value in row.items() if not _is_own(name)]
        rates = [f"{_part(name)}{row[name]:.1e}" for name in row if name.startswith(_RATE)]
        if rates:
            terms.append("rate " + " ".join(rates))
        if "grad_norm" in row:
            terms.append(f"gradient {row['grad_norm']:.3g}")
        seconds, done = time.monotonic() - self._began_s, step - self._start
        if done > 0 and seconds > 0:
            left_s = round((self._steps - step) * seconds / done)
            terms.append(f"{done * self._samples / seconds:.1f} samples/s")
            terms.append(f"left {left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}")
        return f"{self._stage} {step}/{self._steps}  " + "  ".join(terms)

    def _block(self, step: int, line: str) -> RenderableType:
        return Group(Text(line), ProgressBar(total=self._steps, completed=step))


def _is_own(name: str) -> bool:
    """Whether a column is no loss term and has a place of its own in the line."""
    return name.startswith(_RATE) or name == "grad_norm"


def _part(name: str) -> str:
    """``llm`` and a space for ``learning_rate.llm``, nothing for ``learning_rate``."""
    part = name.removeprefix(_RATE).lstrip("./_")
    return f"{part} " if part else ""
