"""``tpokit predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    run: Annotated[Path, typer.Argument(help="A run, a stage of it, or a merged model.")],
    ask: Annotated[str, typer.Option(help="The question.")],
    media: Annotated[
        list[Path] | None,
        typer.Option(help="An image or a video; may be given several times.", exists=True),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the answer to this file.")
    ] = None,
    draw: Annotated[
        Path | None, typer.Option(help="Draw the results over the medium into this PNG.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
) -> None:
    """Ask a trained model about images and videos."""
    from tpokit.atomic import write_json
    from tpokit.inference.predictor import load
    from tpokit.reporting.console import show_answer

    predictor = load(run)
    answer = predictor.ask(ask, media or (), max_new_tokens=max_new_tokens)
    show_answer(answer)
    if json_file is not None:
        write_json(json_file, answer.to_json())
    if draw is not None:
        predictor.draw(answer, media or (), draw)
