"""Asking a model: one path for printing, scoring and exporting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpokit.checkpoints.store import load_model, saved_recipe
from tpokit.data.collate import Collator
from tpokit.data.conversation import Encoder
from tpokit.data.media import read_media
from tpokit.errors import UsageError
from tpokit.inference.generate import Generated, generate
from tpokit.model import TpoModel
from tpokit.plugins import Plugins
from tpokit.types import Answer, Call, Example, Media, MediaInfo, MediaNeed, Sample, Turn

if TYPE_CHECKING:
    from PIL.Image import Image

_VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".avi", ".mov", ".mkv", ".gif"})


class Predictor:
    """A model that is ready to answer.

    Attributes:
        model: In evaluation mode, on the device that was asked for.
    """

    def __init__(
        self, model: TpoModel, max_length: int | None = None, plugins: Plugins | None = None
    ) -> None:
        """Get ready.

        Args:
            model: Trained or not; is put into evaluation mode.
            max_length: Longest prompt, in tokens; default: what the backbone can.
            plugins: Where drawings are looked up; default: what is installed.
        """
        self.model = model.eval()
        self._plugins = plugins
        processor = model.backbone.processor
        heads = {task: model.head(task) for task in model.heads}
        limit = max_length or processor.max_length
        self._encoder = Encoder(processor, heads, model.tokens, limit)
        self._collator = Collator(processor, heads, model.tokens, padding="left")

    def ask(
        self,
        question: str,
        media: Sequence[Path | str] = (),
        *,
        given: Mapping[str, Sequence[Any]] | None = None,
        max_new_tokens: int = 128,
    ) -> Answer:
        """Ask one question.

        Args:
            question: May hold ``<image>`` and ``<video>`` where a medium stands, and ``<task>``
                where a given value stands.
            media: Files of images and videos.
            given: Task to values for its marks in the question; boxes are fractions.
            max_new_tokens: Most tokens that are written.
        """
        sample = Sample(
            id="question",
            turns=(Turn("user", question),),
            media=tuple(media_of(path) for path in media),
            given={task: tuple(values) for task, values in (given or {}).items()},
        )
        return self.answer([sample], max_new_tokens)[0]

    def answer(self, samples: Sequence[Sample], max_new_tokens: int = 128) -> list[Answer]:
        """Answer the last question of each sample in one batch; earlier turns are context."""
        examples = [self._encoder.encode(sample, "ask", answer_next=True) for sample in samples]
        device = next(self.model.parameters()).device
        batch = self._collator(examples).to(device)
        written = generate(self.model, batch, max_new_tokens)
        results = self._results(examples, written)
        tokenizer = self.model.backbone.processor.tokenizer
        return [
            Answer(
                question=[turn.text for turn in example.sample.turns if turn.role == "user"][-1],
                text=self.model.tokens.decode(row.ids, tokenizer),
                calls=tuple(calls),
                media=tuple(example.media),
            )
            for example, row, calls in zip(examples, written, results, strict=True)
        ]

    @torch.no_grad()
    def _results(
        self, examples: Sequence[Example], written: Sequence[Generated]
    ) -> list[list[Call]]:
        """Run each head once over all its calls of the batch; results by row, in reading order."""
        found: dict[tuple[int, int], Call] = {}
        for task in self.model.heads:
            places = [
                (row, order)
                for row, answer in enumerate(written)
                for order, (called, _) in enumerate(answer.calls)
                if called == task
            ]
            if not places:
                continue
            slots: Tensor = torch.stack([written[row].calls[order][1] for row, order in places])
            head = self.model.head(task)
            views = self._views(task, [examples[row] for row, _ in places])
            media = [_medium(examples[row]) for row, _ in places]
            results = head.decode(head(slots, views), media)
            found.update(
                {place: Call(task, result) for place, result in zip(places, results, strict=True)}
            )
        return [
            [found[row, order] for order in range(len(answer.calls))]
            for row, answer in enumerate(written)
        ]

    def _views(self, task: str, examples: Sequence[Example]) -> list[Any]:
        """Views for a head that looks at the media itself; read now, as no target announced it."""
        need = self.model.head(task).media_need()
        if need is None:
            return []
        return [
            [read_media(medium, {task: need})[task] for medium in example.sample.media]
            for example in examples
        ]

    def draw(self, answer: Answer, media: Sequence[Path | str], out: Path) -> None:
        """Draw the results of an answer over its first medium and write a PNG.

        Raises:
            UsageError: There is no medium to draw on.
        """
        if not media:
            raise UsageError("nothing to draw on: the question had no image or video")
        draw_answer(answer, Path(media[0]), self._plugins).save(out, format="PNG")


def load(folder: Path | str, device: str | None = None) -> Predictor:
    """Load a run, a stage of a run or a merged model.

    Args:
        folder: What ``tpokit train`` or ``tpokit weights merge`` wrote.
        device: Such as ``cuda`` or ``cpu``; default: a GPU if there is one.
    """
    recipe = saved_recipe(Path(folder))
    plugins = Plugins.load(recipe.registry_path)
    model = load_model(Path(folder), plugins)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(model.to(chosen), recipe.run.max_length, plugins)


def media_of(path: Path | str) -> Media:
    """An image or a video, told apart by the suffix of the file."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    return Media("video" if path.suffix.lower() in _VIDEO_SUFFIXES else "image", path)


def draw_answer(answer: Answer, path: Path, plugins: Plugins | None = None) -> Image:
    """The first frame of a medium with the results of every task drawn over it."""
    from PIL import Image as pillow

    view = read_media(media_of(path), {"drawing": MediaNeed(frames=1)})["drawing"]
    picture = pillow.fromarray(view.frames[0])
    plugins = plugins or Plugins.load()
    for task in sorted({call.task for call in answer.calls}):
        for spec in plugins.for_task("drawing", task):
            picture = plugins.factory(spec)().draw(picture, answer.results(task))
    return picture


def _medium(example: Example) -> MediaInfo:
    """The medium that results are stated in: the first of the sample."""
    return example.media[0] if example.media else MediaInfo("image", 1, 1)
