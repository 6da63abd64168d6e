"""The command line: ``tpokit`` and ``python -m tpokit``.

Each verb is a thin function in a module of its own, which imports what it needs when it runs, so
that ``tpokit --help`` is instant. Exit codes: 0 done, 1 ran and failed, 2 asked wrongly, 130
interrupted from the keyboard, 143 and 138 training that saved and stopped for SIGTERM and SIGUSR1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from tpokit.cli.data import data
from tpokit.cli.evaluate import evaluate
from tpokit.cli.plugins import plugins
from tpokit.cli.predict import predict
from tpokit.cli.recipe import recipe
from tpokit.cli.train import TrainCommand, train
from tpokit.cli.weights import weights
from tpokit.errors import TpokitError

app = typer.Typer(
    name="tpokit",
    help="Train multimodal LLMs with vision task heads by Task Preference Optimization.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(plugins)
app.add_typer(recipe)
app.add_typer(data)
app.command(cls=TrainCommand)(train)
app.command()(predict)
app.command()(evaluate)
app.add_typer(weights)


def _version(asked: bool) -> None:
    if asked:
        from tpokit import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of tpokit itself."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code.

    An expected error is one line on stderr, without a traceback; any other is a bug and shows all.

    Args:
        arguments: Without the name of the program; default: those of the process.

    Raises:
        SystemExit: Always.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="tpokit")
    except TpokitError as error:
        from tpokit.reporting.console import fail

        if str(error):  # of processes that stop together, one talks
            fail(error)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as leaving:
        if leaving.code == 130:  # typer turns Ctrl-C into this code, without a word
            _interrupted()
        raise


def _interrupted() -> None:
    typer.echo("interrupted", err=True)
    raise SystemExit(130) from None
