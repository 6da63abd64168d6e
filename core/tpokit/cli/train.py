"""``tpokit train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from tpokit.plugins import Plugins
    from tpokit.recipe import Recipe


def train(
    file: Annotated[Path, typer.Argument(help="The recipe.")],
    stage: Annotated[
        str | None, typer.Option(help="Only this stage, from what the one before it left.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[auto|PATH]",
            help="Go on where the run in the output folder was stopped. auto: start it if there is "
            "none. PATH: go on with the run in this folder, or from a checkpoint inside a stage.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away what is in the output folder.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show sizes and memory, try two small steps of each stage, and write nothing.",
        ),
    ] = False,
    check_ranks: Annotated[
        bool,
        typer.Option(
            "--check-ranks",
            help="Compare the gradients of processes in every step, not in the first ones alone.",
        ),
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

    if resume is not None and overwrite:
        raise UsageError("--resume keeps what --overwrite throws away; choose one")
    recipe, plugins = open_recipe(file, overrides or (), registry)
    if stage is not None:
        recipe.stage(stage)

    if dry_run:
        if resume is not None or overwrite:
            raise UsageError("--dry-run writes nothing; leave out --resume and --overwrite")
        _try(recipe, plugins, stage)
        return

    from tpokit.training.stages import train as train_stages  # torch, once the recipe is right

    going_on: bool | Path | Literal["auto"] = False
    if resume is not None:
        going_on = "auto" if resume == "auto" else Path(resume) if resume else True
    train_stages(
        recipe,
        plugins,
        stage=stage,
        resume=going_on,
        overwrite=overwrite,
        check_ranks=check_ranks,
    )


class TrainCommand(TyperCommand):
    """Lets ``--resume`` stand alone, which an option with a value may not do in typer, and leaves
    out what DeepSpeed's launcher adds.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a lonely ``--resume`` an empty value; what follows it is none if it is an option, or
        a file: then it is the recipe. The rank within the node is known from the environment.
        """
        args = [argument for argument in args if not argument.startswith("--local_rank=")]
        filled: list[str] = []
        for place, argument in enumerate(args):
            filled.append(argument)
            follows = args[place + 1 : place + 2]
            if argument == "--resume" and (
                not follows or follows[0].startswith("-") or Path(follows[0]).is_file()
            ):
                filled.append("")
        return super().parse_args(ctx, filled)


def _try(recipe: Recipe, plugins: Plugins, stage: str | None) -> None:
    """Show what the recipe, or one stage of it, would take, and that its steps run."""
    from tpokit.reporting.console import say
    from tpokit.reporting.tables import dry_run_view, tried_stage_view
    from tpokit.training.dry_run import look_ahead, try_stages

    if stage is not None:
        recipe = recipe.model_copy(update={"stages": (recipe.stage(stage),)})
    dry_run_view(look_ahead(recipe, plugins))
    for tried in try_stages(recipe, plugins):
        tried_stage_view(tried)
    say("everything runs; nothing was written")
