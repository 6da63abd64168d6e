"""One sample as the model gets it, for people: its prompt in pieces, its media, its targets."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import groupby
from typing import Any, Literal

from tpokit.answers import Answer, Call
from tpokit.data.bad_samples import BadSample, BadSampleLimit
from tpokit.data.dataset import MixedDataset, open_sources
from tpokit.data.mixing import Draw, with_lengths
from tpokit.data.sample_reader import reader_of
from tpokit.errors import DataError, UsageError
from tpokit.interfaces import Processor
from tpokit.model import TpoModel
from tpokit.plugins import Plugins
from tpokit.recipe import Recipe, StageEntry
from tpokit.tokens import TokenTable
from tpokit.types import IGNORED, Example, Media, MediaInfo
from tpokit.variants import empty_model

Kind = Literal["text", "media", "trigger", "slot", "given"]
_REPEATED = 4
"""A token that stands so often in a row holds the place of a medium, if no processor says so."""
_SHOWN = 8
"""Members of a long sequence that are shown."""


@dataclass(frozen=True)
class PromptPiece:
    """Tokens in a row that are of one kind.

    Attributes:
        kind: What they are: ``text``, places of ``media``, the ``trigger`` that calls a head, a
            ``slot`` that it reads, or the place of something ``given``.
        learnt: Whether the model learns to write them.
        text: What they stand for; of media one of the tokens.
        start: Position of the first one.
        tokens: How many there are.
    """

    kind: Kind
    learnt: bool
    text: str
    start: int
    tokens: int


@dataclass(frozen=True)
class SeenMedium:
    """A medium, and who sees what of it.

    Attributes:
        media: Which.
        info: Its size.
        times_s: Consumer (the backbone, a task) to when each of its frames is shown, in seconds.
    """

    media: Media
    info: MediaInfo
    times_s: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class ShownTarget:
    """What is right for a call, or what is given in a question.

    Attributes:
        task: Whose head.
        given: Whether it stands in a question.
        value: In the head's own units, in short.
        result: What would be right, in pixels and seconds; ``None`` for something given.
    """

    task: str
    given: bool
    value: str
    result: Any


@dataclass(frozen=True)
class ShownSample:
    """A sample as training sees it.

    Attributes:
        draw: Which one it is.
        position: In the order of the stage, if it was asked for by that.
        sample: Its id.
        shortened: Whether it was too long and was made to fit.
        pieces: The prompt.
        media: In the order of the prompt.
        targets: In the order of tasks, then of reading.
        replaced: What stood there before and could not be read.
        answer: The right answer, for a drawing.
    """

    draw: Draw
    position: int | None
    sample: str
    shortened: bool
    pieces: tuple[PromptPiece, ...]
    media: tuple[SeenMedium, ...]
    targets: tuple[ShownTarget, ...]
    replaced: tuple[BadSample, ...]
    answer: Answer

    @property
    def tokens(self) -> int:
        """Of the whole prompt."""
        return sum(piece.tokens for piece in self.pieces)


def sample_at(
    recipe: Recipe, plugins: Plugins, stage: StageEntry, position: int, block: int = 1
) -> ShownSample:
    """The sample at a position of a stage, or the one that takes its place.

    Args:
        recipe: Resolved with ``plugins``.
        plugins: Where its names are looked up.
        stage: One of its stages.
        position: In the order of the stage, from 0.
        block: Of the order, see `tpokit.data.mixing.Mixture`.

    Raises:
        UsageError: The stage is shorter.
        DataError: Neither it nor another one can be read.
    """
    sources = open_sources(recipe, plugins, stage.plan.entries)
    sizes = {name: len(source) for name, source in sources.items()}
    whole = with_lengths(recipe, sizes).stage(stage.name)
    samples = whole.length * stage.samples_per_step
    if position >= samples:
        raise UsageError(
            f"stage {stage.name!r} has no position {position}: it reads {samples} samples, "
            "counted from 0"
        )
    model = empty_model(recipe, plugins).train()
    reader = reader_of(recipe, stage.name, sources, model)
    anything = BadSampleLimit(1.0, samples)
    dataset = MixedDataset(sources, stage.mix, reader.seed, reader.encoder, anything, block)
    draw, reading = dataset.draw(position), dataset[position]
    if reading.example is None:
        raise DataError(reading.bad[0].message)
    return _shown(model, reading.example, draw, position, reading.bad)


def sample_of(
    recipe: Recipe, plugins: Plugins, entry: str, index: int, stage: str, epoch: int = 0
) -> ShownSample:
    """A sample of a data entry.

    Args:
        recipe: Resolved with ``plugins``.
        plugins: Where its names are looked up.
        entry: Name of the data entry.
        index: Of the sample in it.
        stage: Whose random choices are made; one that does not exist makes choices, too.
        epoch: Of the entry, from 0.

    Raises:
        UsageError: There is no such sample.
        DataError: It cannot be read, or is wrong.
    """
    sources = open_sources(recipe, plugins, [entry])
    size = len(sources[entry])
    if not 0 <= index < size:
        raise UsageError(f"data.{entry} has no sample {index}: it has {size}, counted from 0")
    model = empty_model(recipe, plugins).train()
    reader = reader_of(recipe, stage, sources, model)
    sample = reader.read(entry, index, epoch)
    example = reader.encode(sample, entry, index, epoch)
    return _shown(model, example, Draw(entry, entry, epoch, index), None, ())


def _shown(
    model: TpoModel,
    example: Example,
    draw: Draw,
    position: int | None,
    replaced: tuple[BadSample, ...],
) -> ShownSample:
    targets = tuple(_targets(model, example))
    calls = tuple(Call(target.task, target.result) for target in targets if not target.given)
    return ShownSample(
        draw=draw,
        position=position,
        sample=example.sample.id,
        shortened=example.shortened,
        pieces=tuple(prompt_pieces(example, model.tokens, model.backbone.processor)),
        media=tuple(_media(example)),
        targets=targets,
        replaced=replaced,
        answer=_answer(example, calls),
    )


def _answer(example: Example, calls: tuple[Call, ...]) -> Answer:
    said = {"user": "", "assistant": ""}
    for turn in example.sample.turns:
        if turn.role in said:
            said[turn.role] += f"{turn.text}\n"
    return Answer(said["user"].strip(), said["assistant"].strip(), calls, tuple(example.media))


# ---- the prompt ----


def prompt_pieces(example: Example, tokens: TokenTable, processor: Processor) -> list[PromptPiece]:
    """The tokens of an example in pieces, in their order.

    Args:
        example: Encoded for a model.
        tokens: Its task tokens.
        processor: Of its backbone.
    """
    tokenizer = processor.tokenizer
    holders = {tokenizer.convert_tokens_to_ids(word) for word in processor.reserved}
    kinds = _kinds(example, tokens, holders)
    names = {index: name for name, index in tokens.ids.items()}
    learnt = [label != IGNORED for label in example.labels]
    pieces: list[PromptPiece] = []
    marks = zip(kinds, learnt, strict=True)
    for (kind, is_learnt), run in groupby(enumerate(marks), key=lambda at: at[1]):
        places = [place for place, _ in run]
        ids = [example.ids[place] for place in places]
        if kind in ("trigger", "slot", "given"):
            text = "".join(names[found] for found in ids)
        elif kind == "media":
            text = tokenizer.decode(ids[:1])
        else:
            before = example.ids[places[0] - 1] if places[0] else None
            text = _decoded(ids, before, tokens.rows, tokenizer)
        pieces.append(PromptPiece(kind, is_learnt, text, places[0], len(places)))
    return pieces


def _kinds(example: Example, tokens: TokenTable, holders: Collection[int]) -> list[Kind]:
    """Of each token; ``holders``: ids that hold places of media, if they are known."""
    triggers = range(tokens.rows, tokens.rows + len(tokens.tasks))
    given = {tokens.given_id(task) for task in tokens.tasks}
    kinds: list[Kind] = []
    for found, run in groupby(example.ids):
        count = len(list(run))
        holds = found in holders if holders else count >= _REPEATED
        kind: Kind = "media" if holds else "text"
        if found >= tokens.rows:
            kind = "trigger" if found in triggers else "given" if found in given else "slot"
        kinds += [kind] * count
    return kinds


def _decoded(ids: Sequence[int], before: int | None, rows: int, tokenizer: Any) -> str:
    """Text of some tokens as it stands behind the one before: alone, some tokenizers would take the
    first blank away.
    """
    if before is None or before >= rows:
        return str(tokenizer.decode(list(ids)))
    start = tokenizer.decode([before])
    return str(tokenizer.decode([before, *ids]))[len(start) :]


# ---- media and targets ----


def _media(example: Example) -> list[SeenMedium]:
    """Media in their order; a head that has kept what it made of one has no view of it."""
    return [
        SeenMedium(
            media,
            view.info,
            {"backbone": view.times_s}
            | {
                task: own.times_s
                for task, views in example.head_views.items()
                for own in views
                if own.path == media.path
            },
        )
        for media, view in zip(example.sample.media, example.views, strict=True)
    ]


def _targets(model: TpoModel, example: Example) -> list[ShownTarget]:
    medium = example.media[0] if example.media else MediaInfo("image", 1, 1)
    shown = []
    for task in model.heads:
        head = model.head(task)
        for target in example.targets.get(task, ()):
            result = head.result_of(target, medium)
            shown.append(ShownTarget(task, False, in_short(target), result))
        for value in example.given.get(task, ()):
            shown.append(ShownTarget(task, True, in_short(value), None))
    return shown


def in_short(value: Any) -> str:
    """Any value in a line: arrays by type and shape, long sequences by their first members."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if is_dataclass(value) and not isinstance(value, type):
        inner = [f"{f.name}={in_short(getattr(value, f.name))}" for f in fields(value)]
        return f"{type(value).__name__}({', '.join(inner)})"
    if isinstance(value, dict):
        members = [f"{key}: {in_short(inner)}" for key, inner in list(value.items())[:_SHOWN]]
        return "{" + ", ".join(members + ["..."] * (len(value) > _SHOWN)) + "}"
    if isinstance(value, (list, tuple)):
        members = [in_short(inner) for inner in value[:_SHOWN]]
        return "[" + ", ".join(members + ["..."] * (len(value) > _SHOWN)) + "]"
    return repr(value)
