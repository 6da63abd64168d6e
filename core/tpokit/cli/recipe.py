"""``tpokit recipe check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tpokit.recipe import StageEntry

recipe = typer.Typer(name="recipe", no_args_is_help=True)


@recipe.callback()
def _recipes() -> None:
    """Work with recipes."""


@recipe.command()
def check(
    file: Annotated[Path, typer.Argument(help="The recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value: stages[0].steps=10")
    ] = None,
    registry: Annotated[
        Path | None, typer.Option(help="A registry file, instead of the recipe's.")
    ] = None,
) -> None:
    """Find every problem of a recipe, without a GPU, weights or data."""
    from tpokit.errors import RecipeError
    from tpokit.recipe import open_recipe
    from tpokit.reporting.console import say

    try:
        checked, _ = open_recipe(file, overrides or (), registry)
    except RecipeError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(error.exit_code) from None
    stages = ", ".join(f"{stage.name} ({_length(stage)})" for stage in checked.stages)
    heads = ", ".join(checked.heads) or "none"
    say(f"{file} is fine: backbone {checked.backbone.plugin}; heads {heads}; stages {stages}")


def _length(stage: StageEntry) -> str:
    if stage.epochs is None:
        return f"{stage.steps} steps"
    return f"{stage.epochs:g} epoch{'' if stage.epochs == 1 else 's'}"
