"""Answers drawn over the medium that they are about: as a picture or as a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tpokit.answers import Answer
from tpokit.atomic import whole_file
from tpokit.data.media import read_media
from tpokit.data.stream import stream_frames
from tpokit.errors import UsageError
from tpokit.interfaces import Drawing
from tpokit.plugins import Plugins
from tpokit.reporting.film import write_film
from tpokit.types import Media, MediaNeed

if TYPE_CHECKING:
    from PIL.Image import Image

_SHOWN = "shown frame"
_PICTURE, _FILM = ".png", ".mp4"


def check_drawing(media: Sequence[Media], out: Path) -> None:
    """Whether an answer about some media can be drawn into a file of that name.

    Raises:
        UsageError: There is nothing to draw on, or the file is not of a kind that fits.
    """
    if not media:
        raise UsageError("nothing to draw on: the question had no image or video")
    suffix = out.suffix.lower()
    if suffix not in (_PICTURE, _FILM):
        raise UsageError(
            f"{out}: results are drawn into a picture ({_PICTURE}) or, over a video, into a video "
            f"({_FILM}); {f'{suffix!r} is neither' if suffix else 'the name has no such ending'}"
        )
    if suffix == _FILM and media[0].kind == "image":
        raise UsageError(
            f"{out}: {media[0].path} is an image, which makes no video; write a {_PICTURE}"
        )


def write_drawing(answer: Answer, media: Sequence[Media], out: Path, plugins: Plugins) -> None:
    """Draw the results of an answer over its first medium, into a file that is whole or absent.

    Args:
        answer: What is drawn.
        media: What it is about.
        out: ``.png``: one picture; ``.mp4``: all frames of the video, with what moves along.
        plugins: Where drawings are looked up.

    Raises:
        UsageError: As `check_drawing`, or nothing that was called moves in a video.
        DataError: The medium cannot be read.
        CheckpointError: The file cannot be written.
    """
    check_drawing(media, out)
    if out.suffix.lower() == _FILM:
        write_film(_film(answer, media[0], out, plugins), out)
        return
    picture = draw_answer(answer, media[0], plugins)
    with whole_file(out) as partial:
        picture.save(partial, format="PNG")


def draw_answer(answer: Answer, medium: Media, plugins: Plugins) -> Image:
    """One frame of a medium, the one in its middle, with the results of every task over it."""
    from PIL import Image as pillow

    drawings = _drawings(answer, plugins)
    needs = {str(index): drawing.need for index, drawing in enumerate(drawings)}
    views = read_media(medium, {_SHOWN: MediaNeed(frames=1), **needs})
    picture = pillow.fromarray(views[_SHOWN].frames[0])
    for index, drawing in enumerate(drawings):
        picture = drawing.draw(picture, answer.results(drawing.task), views[str(index)])
    return picture


def _film(
    answer: Answer, medium: Media, out: Path, plugins: Plugins
) -> Iterator[tuple[float, Image]]:
    """Every frame of a medium with what moves drawn over it; one is held at a time."""
    from PIL import Image as pillow

    moving = [drawing for drawing in _drawings(answer, plugins) if drawing.moves]
    if not moving:
        called = ", ".join(sorted({call.task for call in answer.calls})) or "no head"
        raise UsageError(
            f"{out}: the answer called {called}, and nothing of that moves in a video; write a "
            f"{_PICTURE}"
        )
    for time_s, pixels in stream_frames(medium):
        picture = pillow.fromarray(pixels)
        for drawing in moving:
            picture = drawing.draw_frame(picture, answer.results(drawing.task), time_s)
        yield time_s, picture


def _drawings(answer: Answer, plugins: Plugins) -> list[Drawing]:
    return [
        plugins.factory(spec)()
        for task in sorted({call.task for call in answer.calls})
        for spec in plugins.for_task("drawing", task)
    ]
