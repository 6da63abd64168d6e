"""``tpokit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run, a stage of it, a merged or imported model.")],
    recipe: Annotated[
        Path | None,
        typer.Option(help="Score on the data: and evaluate: sections of this recipe instead."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value: evaluate.samples=100")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to this file.")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="Write every answer to this file, a JSON object a line."),
    ] = None,
) -> None:
    """Score a saved model on the evaluate: section of its recipe."""
    from tpokit.atomic import write_json
    from tpokit.evaluation.runner import evaluate_run
    from tpokit.reporting.console import score_table

    report = evaluate_run(run, overrides or (), answers=answers, scored_on=recipe)
    score_table({"score": report.scores, "best constant": report.constant})
    if json_file is not None:
        write_json(json_file, report.to_json())
