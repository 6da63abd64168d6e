"""``tpokit weights merge``, ``import`` and ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tpokit.errors import UsageError

weights = typer.Typer(name="weights", no_args_is_help=True)


@weights.callback()
def _weights() -> None:
    """Work with saved models and published weights."""


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


@weights.command("import")
def import_(  # noqa: PLR0913 - one parameter for each option of the command
    source: Annotated[
        Path, typer.Argument(help="A folder of published weights, a file or an index of them.")
    ],
    *,
    output: Annotated[Path | None, typer.Option(help="Folder of the new model.")] = None,
    llm: Annotated[
        Path | None,
        typer.Option(help="Folder of the base LLM, for files that hold trained tensors only."),
    ] = None,
    format_name: Annotated[
        str | None, typer.Option("--format", help="Format of the files; default: found out.")
    ] = None,
    merge_lora: Annotated[
        bool, typer.Option("--merge-lora", help="Add adapters to their layers.")
    ] = False,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Read pickles (.bin, .pth, .pt), tensors only.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Leave out a head; may be given several times."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16 of the backbone; default: as published."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compare names and shapes, and write nothing.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write to this file what became of every tensor, as JSON.")
    ] = None,
    registry: Annotated[
        Path | None, typer.Option(help="A registry file with further plugins.")
    ] = None,
) -> None:
    """Make a model of published weights, which can be asked, scored and trained on."""
    if output is None and not dry_run:
        raise UsageError("--output is missing: the folder of the new model (or give --dry-run)")

    from tpokit.reporting.console import say, weights_table
    from tpokit.weights.importing import ImportOptions, check_weights, import_weights

    options = ImportOptions(
        llm=llm,
        format=format_name,
        merge_lora=merge_lora,
        weights_only=weights_only,
        without=tuple(without or ()),
        dtype=dtype,
        registry=registry,
        report=report,
    )
    if output is None or dry_run:
        weights_table(check_weights(source, options))
        say("everything fits; nothing was written")
        return
    weights_table(import_weights(source, output, options))
    say(f"the model is in {output}")


@weights.command("export")
def export(
    run: Annotated[Path, typer.Argument(help="A run, a stage of it, a merged or imported model.")],
    *,
    output: Annotated[Path, typer.Option(help="Folder of the published files.")],
    format_name: Annotated[str, typer.Option("--format", help="Format of the files.")],
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16 of all weights; default: as in the model."),
    ] = None,
    max_shard: Annotated[str, typer.Option(help="Largest size of a file, such as 5GB.")] = "5GB",
    unused: Annotated[
        Path | None,
        typer.Option(help="Imported model whose unused tensors are given back, if not found."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write to this file where every tensor is from, as JSON.")
    ] = None,
    registry: Annotated[
        Path | None, typer.Option(help="A registry file with further plugins.")
    ] = None,
) -> None:
    """Write a model under the names of a published format, for others' programs."""
    from tpokit.reporting.console import say, weights_table
    from tpokit.weights.exporting import ExportOptions, export_weights

    options = ExportOptions(
        format=format_name,
        dtype=dtype,
        max_shard=max_shard,
        unused=unused,
        registry=registry,
        report=report,
    )
    weights_table(export_weights(run, output, options))
    say(f"the files are in {output}")
