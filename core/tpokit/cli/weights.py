"""``tpokit weights merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

weights = typer.Typer(name="weights", no_args_is_help=True)


@weights.callback()
def _weights() -> None:
    """Work with saved models."""


@weights.command()
def merge(
    run: Annotated[Path, typer.Argument(help="A run or a stage of it.")],
    output: Annotated[Path, typer.Option(help="Folder of the new model.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: as trained.")
    ] = None,
) -> None:
    """Write one model that needs neither its base nor adapters."""
    from tpokit.checkpoints.merge import merge as merge_run

    merge_run(run, output, dtype)
