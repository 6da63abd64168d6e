"""``tpokit data check``, ``show`` and ``prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tpokit.errors import UsageError
from tpokit.near_misses import did_you_mean, listed

if TYPE_CHECKING:
    from tpokit.recipe import Recipe

data = typer.Typer(name="data", no_args_is_help=True)

_Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change a value: run.max_length=2048")
]
_Registry = Annotated[Path | None, typer.Option(help="A registry file, instead of the recipe's.")]
_Recipe = Annotated[Path, typer.Argument(help="The recipe.")]


@data.callback()
def _data() -> None:
    """Look at the data of a recipe."""


@data.command()
def check(
    file: _Recipe,
    *,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode images and videos, too.")
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="So many of each data entry, evenly spread; default: all."),
    ] = None,
    entry: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this data entry; may be given several times."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that look; 0: this one.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything that was found to this file.")
    ] = None,
    overrides: _Overrides = None,
    registry: _Registry = None,
) -> None:
    """Read every annotation as training would, and list all that is wrong."""
    from tpokit.atomic import write_json
    from tpokit.recipe import open_recipe
    from tpokit.reporting.console import say
    from tpokit.reporting.progress import Counting

    recipe, plugins = open_recipe(file, overrides or (), registry)
    for name in entry or ():
        _refuse_unknown(recipe, name)

    from tpokit.data.checking import CheckOptions, check_data  # torch, once the names are right
    from tpokit.reporting.tables import data_report

    names = tuple(dict.fromkeys(entry or sorted(recipe.data)))
    options = CheckOptions(names, samples, decode, workers)
    with Counting("samples looked at") as counting:
        reports = check_data(recipe, plugins, options, counting.update)
    data_report(reports)
    if json_file is not None:
        write_json(json_file, [report.to_json() for report in reports])
    problems = sum(len(report.problems) for report in reports)
    say(f"{problems:,} problems" if problems != 1 else "1 problem")
    if problems:
        raise typer.Exit(1)


@data.command()
def show(  # noqa: PLR0913 - one parameter for each option of the command
    file: _Recipe,
    *,
    index: Annotated[
        int, typer.Option(min=0, help="Position in the stage, or with --entry the sample in it.")
    ],
    entry: Annotated[
        str | None, typer.Option(metavar="NAME", help="A data entry; default: the stage's mix.")
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(help="Whose order and random choices; default: the first that fits."),
    ] = None,
    epoch: Annotated[
        int | None, typer.Option(min=0, help="With --entry: of the entry; default: 0, the first.")
    ] = None,
    devices: Annotated[
        int,
        typer.Option(
            min=1, help="Processes of the run, from whose number the order of same_task follows."
        ),
    ] = 1,
    draw: Annotated[
        Path | None,
        typer.Option(help="Draw the targets over the medium: a .png, or of a video an .mp4."),
    ] = None,
    overrides: _Overrides = None,
    registry: _Registry = None,
) -> None:
    """Show one sample exactly as training sees it."""
    from tpokit.recipe import open_recipe

    recipe, plugins = open_recipe(file, overrides or (), registry)
    if entry is not None:
        _refuse_unknown(recipe, entry)
    elif epoch is not None:
        raise UsageError("--epoch belongs to --entry: in a stage it follows from the position")
    chosen = None if stage is None else recipe.stage(stage)
    if chosen is None:
        fitting = [s for s in recipe.stages if entry is None or entry in s.plan.entries]
        chosen = fitting[0] if fitting else None

    from tpokit.data.showing import sample_at, sample_of  # torch, once the names are right
    from tpokit.inference.drawing import check_drawing, write_drawing
    from tpokit.reporting.tables import sample_view
    from tpokit.training.arguments import Split

    if entry is None:
        assert chosen is not None, "a recipe that is checked has a stage"
        block = Split.in_recipe(recipe, chosen, devices).block(recipe)
        shown = sample_at(recipe, plugins, chosen, index, block)
    else:
        name = "" if chosen is None else chosen.name
        shown = sample_of(recipe, plugins, entry, index, name, epoch or 0)
    media = [medium.media for medium in shown.media]
    if draw is not None:
        check_drawing(media, draw)
    sample_view(shown)
    if draw is not None:
        write_drawing(shown.answer, media, draw, plugins)


@data.command()
def prepare(file: _Recipe, overrides: _Overrides = None, registry: _Registry = None) -> None:
    """Find the entries of large files before a job does, so that its processes start at once."""
    import time

    from tpokit.recipe import open_recipe

    recipe, plugins = open_recipe(file, overrides or (), registry)

    from tpokit.data.dataset import open_sources  # torch, once the names are right
    from tpokit.reporting.console import say

    for name in sorted(recipe.data):
        began_s = time.monotonic()
        size = len(open_sources(recipe, plugins, [name])[name])
        say(f"data.{name}: {size:,} samples, opened in {time.monotonic() - began_s:.1f} s")


def _refuse_unknown(recipe: Recipe, entry: str) -> None:
    """See that the recipe has a data entry.

    Raises:
        UsageError: It has none of that name.
    """
    if entry not in recipe.data:
        raise UsageError(
            f"no data entry {entry!r}{did_you_mean(entry, recipe.data)} "
            f"(there are: {listed(recipe.data)})"
        )
