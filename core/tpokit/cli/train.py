"""``tpokit train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    file: Annotated[Path, typer.Argument(help="The recipe.")],
    stage: Annotated[
        str | None, typer.Option(help="Only this stage, from what the one before it left.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run was stopped.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away what is in the output folder.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value: stages[0].steps=10")
    ] = None,
    registry: Annotated[
        Path | None, typer.Option(help="A registry file, instead of the recipe's.")
    ] = None,
) -> None:
    """Train the stages of a recipe; also under torchrun -m tpokit train."""
    from tpokit.errors import UsageError
    from tpokit.recipe import open_recipe

    if resume and overwrite:
        raise UsageError("--resume keeps what --overwrite throws away; choose one")
    recipe, plugins = open_recipe(file, overrides or (), registry)
    if stage is not None:
        recipe.stage(stage)

    from tpokit.training.stages import train as train_stages  # torch, once the recipe is right

    train_stages(recipe, plugins, stage=stage, resume=resume, overwrite=overwrite)
