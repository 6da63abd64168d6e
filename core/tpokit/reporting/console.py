"""Everything that people see on the console but progress, which has its own module.

On a terminal there are colours and a live line; elsewhere (a file, a pipe, CI) plain lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
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


def open_console(stderr: bool = False) -> Console:
    """Where to print: a terminal as it is, anything else wide enough for a table."""
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
    open_console().print(Text(text), soft_wrap=True)


def fail(error: BaseException) -> None:
    """Print an expected error in red on stderr: ``Type: message``."""
    open_console(stderr=True).print(Text(f"{type(error).__name__}: {error}", "red"), soft_wrap=True)


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
    open_console().print(table)


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
    open_console().print(table)


def rows_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Sequence[str] = (),
) -> None:
    """Print a table.

    Args:
        title: Above it; empty: none.
        columns: Their names.
        rows: A cell for each column; nothing in them is taken for markup.
        numbers: Columns of numbers, which stand to the right.
    """
    table = _table(title, *columns, numbers=numbers)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    open_console().print(table)


def marked_text(pieces: Sequence[Marked]) -> None:
    """Print a text whose pieces are marked: by colours on a terminal, elsewhere by brackets."""
    console = open_console()
    if console.is_terminal:
        console.print(Text.assemble(*((p.text, p.style) for p in pieces)), soft_wrap=True)
    else:
        plain = "".join(f"{p.brackets[:1]}{p.text}{p.brackets[1:]}" for p in pieces)
        console.print(Text(plain), soft_wrap=True)


class Marked(NamedTuple):
    """A piece of a text; ``style`` is one of rich's, ``brackets`` are two characters or none."""

    text: str
    style: str = ""
    brackets: str = ""


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
    open_console().print(table)


def task_table(tasks: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Print what tasks ask of the weights that they share; nothing if they were not compared.

    Args:
        tasks: Task to the ``norm`` of its gradient and its cosine with the gradient of each other
            task; above 0 they help each other.
        title: Above the table.
    """
    if not tasks:
        return
    table = _table(title, "task", "norm", *tasks, numbers=("norm", *tasks))
    for task, row in tasks.items():
        cosines = (f"{row[other]:+.2f}" if other in row else "-" for other in tasks)
        table.add_row(Text(task), f"{row['norm']:.3g}", *cosines)
    open_console().print(table)


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
    open_console().print(table)


def show_answer(answer: Answer) -> None:
    """Print an answer: its text, then a line for each result of a head."""
    console = open_console()
    console.print(Text(answer.text), soft_wrap=True)
    if not answer.calls:
        return
    table = _table("", "task", "result")
    for call in answer.calls:
        table.add_row(call.task, Text(in_words(call.result)))
    console.print(table)


def in_words(result: Any) -> str:
    """A result as it describes itself, else its JSON fields."""
    if "__str__" in vars(type(result)):
        return str(result)
    return ", ".join(f"{name} {value}" for name, value in result.to_json().items())
