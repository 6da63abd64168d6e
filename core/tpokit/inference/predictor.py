"""Asking a model: one path for printing, scoring and exporting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from tpokit.answers import Answer, Call, NoResult
from tpokit.batch import moved
from tpokit.checkpoints.store import load_model, saved_recipe
from tpokit.data.collate import Collator, ContextCall
from tpokit.data.conversation import Encoder
from tpokit.data.media import read_media
from tpokit.errors import DataError, UsageError
from tpokit.inference.drawing import write_drawing
from tpokit.inference.generate import Generated, generate
from tpokit.inference.lockstep import Lockstep
from tpokit.model import TpoModel
from tpokit.plugins import Plugins
from tpokit.recipe import SlotOrder
from tpokit.types import Context, Example, Media, MediaInfo, Sample, Turn, Words

_Place = tuple[int, int]
"""Of a call: row of the batch, and which of its calls."""
_BLIND = "the question has no image or video"
_VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".avi", ".mov", ".mkv", ".gif"})


class Predictor:
    """A model that is ready to answer.

    Attributes:
        model: In evaluation mode, on the device that was asked for.
    """

    def __init__(
        self,
        model: TpoModel,
        max_length: int | None = None,
        plugins: Plugins | None = None,
        slots: SlotOrder = "after_trigger",
        lockstep: Lockstep | None = None,
    ) -> None:
        """Get ready.

        Args:
            model: Trained or not; is put into evaluation mode.
            max_length: Longest prompt, in tokens; default: what the backbone can.
            plugins: Where drawings are looked up; default: what is installed.
            slots: When the slots of a head are fed: see `generate`.
            lockstep: With other ranks, which then call `answer` equally often.
        """
        self._lockstep = lockstep or Lockstep()
        self.model = model.eval()
        self._slots: SlotOrder = slots
        self._plugins = plugins
        processor = model.backbone.processor
        heads = {task: model.head(task) for task in model.heads}
        limit = max_length or processor.max_length
        self._encoder = Encoder(processor, heads, model.tokens, limit)
        self._collator = Collator(processor, heads, model.tokens, padding="left")

    def ask(
        self,
        question: str,
        media: Sequence[Media | Path | str] = (),
        *,
        given: Mapping[str, Sequence[Any]] | None = None,
        max_new_tokens: int = 128,
        answer_prefix: str = "",
    ) -> Answer:
        """Ask one question.

        Args:
            question: May hold ``<image>`` and ``<video>`` where a medium stands, and ``<task>``
                where a given value stands.
            media: Images and videos by their files; a part of a video or a folder of frames as
                `tpokit.Media`.
            given: Task to values for its marks in the question; boxes are fractions.
            max_new_tokens: Most tokens that are written.
            answer_prefix: Words that the answer begins with, such as ``Best option: (``; the text
                of the answer is what the model writes behind them.
        """
        sample = Sample(
            id="question",
            turns=(Turn("user", question),),
            media=tuple(media_of(medium) for medium in media),
            given={task: tuple(values) for task, values in (given or {}).items()},
        )
        return self.answer([sample], max_new_tokens, answer_prefix=answer_prefix)[0]

    def answer(
        self, samples: Sequence[Sample], max_new_tokens: int = 128, *, answer_prefix: str = ""
    ) -> list[Answer]:
        """Answer the last question of each sample in one batch; earlier turns are context.

        ``answer_prefix``: see `ask`. Without a sample there is no answer, but in step with other
        ranks this one does what they do.
        """
        examples: list[Example] = []
        with self._lockstep.holding():
            examples = [
                self._encoder.encode(sample, "ask", answer_next=True, answer_prefix=answer_prefix)
                for sample in samples
            ]
        written = self._written(examples, max_new_tokens)
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

    def _written(self, examples: Sequence[Example], max_new_tokens: int) -> list[Generated]:
        """What the model writes for each example; none for the idle question of a rank that has
        none of its own.
        """
        if not examples and not self._lockstep.together:
            return []
        batch = self._collator(examples) if examples else self._collator.idle()
        batch = batch.to(next(self.model.parameters()).device)
        budget = max_new_tokens if examples else 0
        written = generate(self.model, batch, budget, self._slots, self._lockstep)
        return written if examples else []

    @torch.no_grad()
    def _results(
        self, examples: Sequence[Example], written: Sequence[Generated]
    ) -> list[list[Call]]:
        """Run each head once over all its calls of the batch; results by row, in reading order."""
        found: dict[_Place, Call] = {}
        for task in self.model.heads:
            calls: dict[_Place, ContextCall] = {}
            with self._lockstep.holding():
                calls = self._calls(task, examples, written, found)
            if not self._lockstep.anyone(bool(calls)):
                continue
            head = self.model.head(task)
            context = self._context(task, list(calls.values()), written)
            with self._lockstep.whole(head), self._lockstep.holding():
                if calls:
                    slots = torch.stack([written[row].calls[order][1] for row, order in calls])
                    media = [_medium(examples[row]) for row, _ in calls]
                    results = head.decode(head(slots, context), media)
                    found.update(
                        {place: Call(task, r) for place, r in zip(calls, results, strict=True)}
                    )
        self._lockstep.let_go()
        return [
            [found[row, order] for order in range(len(answer.calls))]
            for row, answer in enumerate(written)
        ]

    def _calls(
        self,
        task: str,
        examples: Sequence[Example],
        written: Sequence[Generated],
        found: dict[_Place, Call],
    ) -> dict[_Place, ContextCall]:
        """The calls of a task that its head can work on; for the others ``found`` says why not."""
        looks = self.model.head(task).context_need().looks
        calls: dict[_Place, ContextCall] = {}
        for row, answer in enumerate(written):
            for order, (called, _) in enumerate(answer.calls):
                if called != task:
                    continue
                example = examples[row]
                blind = looks and not example.sample.media
                call = NoResult(_BLIND) if blind else self._call(task, row, example)
                if isinstance(call, NoResult):
                    found[row, order] = Call(task, call)
                else:
                    calls[row, order] = call
        return calls

    def _context(
        self,
        task: str,
        calls: Sequence[ContextCall],
        written: Sequence[Generated],
    ) -> Context:
        """What a head sees of calls that were written, besides their slots; of none where another
        rank has some, the vision tower runs idly.
        """
        head, device = self.model.head(task), next(self.model.parameters()).device
        if not calls:
            need = head.context_need()
            if need.vision:
                self.model.backbone.encode_frames(None, need.grid)
            return Context()
        index = moved(self._collator.context(task, calls), device)
        words = None
        if head.context_need().question:
            states = [written[call.row].question for call in calls]
            found = [state for state in states if state is not None]
            padded = pad_sequence(found, batch_first=True)
            lengths = torch.tensor([len(state) for state in found], device=device)
            words = Words(padded, torch.arange(padded.shape[1], device=device) < lengths[:, None])
        return self.model.context(task, index, words)

    def _call(self, task: str, row: int, example: Example) -> ContextCall | NoResult:
        """A call that was written, or why its head cannot work on this sample.

        Raises:
            DataError: It cannot, although the sample has a target of the task: the data are wrong,
                not the model.
        """
        try:
            return self._prepared(task, row, example)
        except DataError as cause:
            if task in example.sample.targets:
                raise
            return NoResult(str(cause))

    def _prepared(self, task: str, row: int, example: Example) -> ContextCall:
        """What a head looks at; frames of its own are read now, as no target announced the call,
        unless it streams the medium.
        """
        head = self.model.head(task)
        need = head.context_need()
        if need.media is not None and not need.stream and task not in example.head_views:
            example.head_views[task] = [
                read_media(medium, {task: need.media})[task]
                for medium in example.sample.media
                if head.wants_frames(medium)
            ]
        asked = [turn.text for turn in example.sample.turns if turn.role == "user"][-1]
        seen = self._encoder.seen(example, task, asked)
        return ContextCall(row, (), head.prepare(seen), seen.views)

    def draw(self, answer: Answer, media: Sequence[Media | Path | str], out: Path) -> None:
        """Draw the results of an answer over its first medium and write a file, whole or not at
        all.

        Args:
            answer: What is drawn.
            media: As they were asked about.
            out: ``.png``: a picture. ``.mp4``: all frames of the video, at their own times, with
                every result that moves along.

        Raises:
            UsageError: There is no medium to draw on, the file is neither, or there is no video or
                nothing that moves in one.
        """
        plugins = self._plugins or Plugins.load()
        write_drawing(answer, [media_of(medium) for medium in media], Path(out), plugins)


def load(
    folder: Path | str, device: str | None = None, slots: SlotOrder | None = None
) -> Predictor:
    """Load a run, a stage of a run, a merged or an imported model.

    Args:
        folder: What ``tpokit train``, ``tpokit weights merge`` or ``tpokit weights import`` wrote.
        device: Such as ``cuda`` or ``cpu``; default: a GPU if there is one.
        slots: When the slots of a head are fed (see `generate`); default: as its recipe says.
    """
    recipe = saved_recipe(Path(folder))
    plugins = Plugins.load(recipe.registry_path)
    model = load_model(Path(folder), plugins)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    order = slots or recipe.decoding.slots
    return Predictor(model.to(chosen), recipe.run.max_length, plugins, order)


def media_of(medium: Media | Path | str) -> Media:
    """An image or a video, told apart by the suffix of the file; a medium is taken as it is.

    Raises:
        UsageError: There is no such file, or it is a folder.
    """
    if isinstance(medium, Media):
        return medium
    path = Path(medium)
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder; a folder of frames does not say how many are shown a second: "
            'from Python, give Media("video", path, rate=...)'
        )
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    return Media("video" if path.suffix.lower() in _VIDEO_SUFFIXES else "image", path)


def _medium(example: Example) -> MediaInfo:
    """The medium that results are stated in: the first of the sample."""
    return example.media[0] if example.media else MediaInfo("image", 1, 1)
