"""``tpokit predict``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from tpokit.errors import UsageError

if TYPE_CHECKING:
    from tpokit.recipe import SlotOrder


def predict(
    run: Annotated[Path, typer.Argument(help="A run, a stage of it, a merged or imported model.")],
    ask: Annotated[str, typer.Option(help="The question.")],
    media: Annotated[
        list[Path] | None,
        typer.Option(help="An image or a video; may be given several times.", exists=True),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=x0,y0,x1,y1",
            help="A box, as fractions of the image, for the next <TASK> in the question; may be "
            "given several times.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the answer to this file.")
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option(help="Draw the results over the medium: a .png, or of a video also an .mp4."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    slots: Annotated[
        str | None,
        typer.Option(
            help="When the slots of a head are fed: after_trigger or before_trigger; default: as "
            "the model's recipe says."
        ),
    ] = None,
) -> None:
    """Ask a trained model about images and videos."""
    boxes = given_boxes(given or ())
    order = slot_order(slots)

    from tpokit.atomic import write_json
    from tpokit.inference.drawing import check_drawing
    from tpokit.inference.predictor import load, media_of
    from tpokit.reporting.console import show_answer

    shown = [media_of(path) for path in media or ()]
    if draw is not None:
        check_drawing(shown, draw)
    predictor = load(run, slots=order)
    answer = predictor.ask(ask, shown, given=boxes, max_new_tokens=max_new_tokens)
    show_answer(answer)
    if json_file is not None:
        write_json(json_file, answer.to_json())
    if draw is not None:
        predictor.draw(answer, shown, draw)


def given_boxes(options: Sequence[str]) -> dict[str, list[tuple[float, ...]]]:
    """Boxes by task, in the order in which they were given.

    Raises:
        UsageError: One is not of the form ``TASK=x0,y0,x1,y1``.
    """
    boxes: dict[str, list[tuple[float, ...]]] = {}
    for option in options:
        task, _, corners = option.partition("=")
        try:
            box = tuple(float(corner) for corner in corners.split(","))
        except ValueError:
            box = ()
        if not task.strip() or len(box) != 4 or not all(map(math.isfinite, box)):
            raise UsageError(
                f"--given {option}: must be TASK=x0,y0,x1,y1, a box as fractions of the image"
            )
        boxes.setdefault(task.strip(), []).append(box)
    return boxes


def slot_order(name: str | None) -> SlotOrder | None:
    """The order of that name.

    Raises:
        UsageError: There is none.
    """
    from tpokit.recipe import SlotOrder

    found: SlotOrder | None
    for found in (None, *get_args(SlotOrder)):
        if name == found:
            return found
    raise UsageError(f"--slots {name}: must be {' or '.join(get_args(SlotOrder))}")
