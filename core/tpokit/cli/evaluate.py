"""``tpokit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TIMEOUT_S = 1800  # how long processes wait for each other


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
    """Score a saved model on the evaluate: section of its recipe; several processes share it."""
    from tpokit.atomic import write_json
    from tpokit.evaluation.runner import evaluate_run
    from tpokit.evaluation.sharing import Sharing
    from tpokit.reporting.console import score_table
    from tpokit.training.ranks import Ranks

    ranks = Ranks.here()
    ranks.join(_TIMEOUT_S)
    sharing = Sharing(ranks.rank, ranks.world)
    report = evaluate_run(run, overrides or (), None, answers, recipe, sharing)
    if not ranks.first:
        return
    score_table({"score": report.scores, "best constant": report.constant})
    if json_file is not None:
        write_json(json_file, report.to_json())
