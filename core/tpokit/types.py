"""What flows through tpokit, from an annotation to an answer.

``Sample`` (one annotation as read) -> ``Example`` (encoded for the model) -> ``Batch`` (collated)
-> ``Answer``.

Importing this file does not import torch; tensors appear in annotations only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tpokit.tokens import marked_tasks

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Role = Literal["system", "user", "assistant"]
MediaKind = Literal["image", "video"]

IGNORED = -100
"""Label of a position that no language loss looks at (the convention of transformers)."""


# ---- one annotation, as read
# -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Media:
    """An image or a video by its file.

    Attributes:
        kind: ``image`` or ``video``.
        path: The file.
        start_s, end_s: The part of the video that is meant, in seconds; ``None``: from the start,
            to the end.
    """

    kind: MediaKind
    path: Path
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        text: May hold marks: ``<image>`` and ``<video>`` where a medium stands (default: all media
            in front of the first user turn), ``<task>`` where a head is called (answers) or
            something is given (questions).
    """

    role: Role
    text: str


@dataclass(frozen=True)
class Sample:
    """One annotation as a data source reads it.

    Attributes:
        id: Names the sample in messages and seeds its random choices; unique within its source.
        turns: The conversation; answers are learnt, everything else is context.
        media: Images and videos, in the order of their marks.
        targets: Task to one annotation for each mark of that task in the answers, in reading order.
            A box is four fractions of the image (x0, y0, x1, y1); other tasks say what they take in
            their head's documentation.
        given: Task to one value for each mark of that task in the questions, in reading order.
    """

    id: str
    turns: tuple[Turn, ...]
    media: tuple[Media, ...] = ()
    targets: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    given: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def calls(self) -> list[str]:
        """Tasks that the answers call, in reading order."""
        answers = [turn.text for turn in self.turns if turn.role == "assistant"]
        return [task for text in answers for task in marked_tasks(text, self.targets)]


@dataclass(frozen=True)
class MediaNeed:
    """What a consumer (the backbone, a head) wants of a video; an image is always one frame.

    Attributes:
        frames: That many frames, each from the middle of one of as many equal parts; or
        rate: that many frames a second, at most ``frames_max``.
        frames_max: Upper limit with ``rate``.
    """

    frames: int | None = None
    rate: float | None = None
    frames_max: int = 64


@dataclass(frozen=True)
class View:
    """Decoded frames for one consumer.

    Attributes:
        kind: ``image`` or ``video``.
        frames: uint8 ``[t, h, w, 3]`` RGB; t: frames (1 for an image), h, w: height, width in
            pixels.
        times_s: When each frame is shown, seconds from the start of the medium, ``[t]``.
        duration_s: Length of the video part that is meant; 0 for an image.
        path: The file, for messages.
    """

    kind: MediaKind
    frames: np.ndarray
    times_s: tuple[float, ...]
    duration_s: float
    path: Path

    @property
    def info(self) -> MediaInfo:
        """The facts of this medium without its pixels."""
        return MediaInfo(
            self.kind, int(self.frames.shape[2]), int(self.frames.shape[1]), self.duration_s
        )


@dataclass(frozen=True)
class MediaInfo:
    """Size of a medium, in which results are stated: pixels and seconds."""

    kind: MediaKind
    width: int
    height: int
    duration_s: float = 0.0


# ---- what a head sees of a call
# ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ContextNeed:
    """What a head wants to see of a call besides its slots.

    Attributes:
        media: Frames of its own; ``None``: it does not look at the media.
        question: Hidden states of the words of the question (`Words`).
        vision: Features of its frames from the backbone's vision tower (`Frames`).
        grid: Cells in each direction into which the features of a frame are pooled.
    """

    media: MediaNeed | None = None
    question: bool = False
    vision: bool = False
    grid: int = 1


@dataclass(frozen=True)
class Seen:
    """What a data worker knows of one call (or of one given value).

    Attributes:
        where: ``source/id`` of the sample, for messages.
        question: Text of the user's turn, without marks of media.
        media: Media of the sample.
        info: Their sizes; of the first one results are stated.
        views: The head's own frames of each medium, if it asked for any and they were read.
        prepared: What `TaskHead.prepare` made; ``None`` while it runs, and where only the right
            result is asked for.
        sample_id: `Sample.id`, by which files of a sample can be found.
    """

    where: str
    question: str = ""
    media: tuple[Media, ...] = ()
    info: tuple[MediaInfo, ...] = ()
    views: tuple[View, ...] = ()
    prepared: Any = None
    sample_id: str = ""


class Words(NamedTuple):
    """Last hidden states at the words of the question of each call.

    ``states [n, w, d]``, ``mask [n, w]`` bool; n: calls, w: longest question in tokens, d: width of
    the backbone.
    """

    states: Tensor
    mask: Tensor


class Frames(NamedTuple):
    """Features of the backbone's vision tower at the head's frames of the first medium of each
    call.

    ``states [n, t, c]``, ``mask [n, t]`` bool; n: calls, t: most frames, c: width of the tower
    times the cells of the grid.
    """

    states: Tensor
    mask: Tensor


class Context(NamedTuple):
    """What a head sees of its n calls besides their slots.

    ``prepared``: what the head's own ``collate_prepared`` made; by default the head's views of the
    media of each call. ``question`` and ``frames``: only for a head that asked for them.
    ``targets``: collated targets in training, for networks with parts that only learning needs;
    ``None`` in inference.
    """

    prepared: Any = ()
    question: Words | None = None
    frames: Frames | None = None
    targets: Any = None


# ---- encoded and collated
# ----------------------------------------------------------------------------------


@dataclass
class Example:
    """One sample, encoded for a backbone.

    Attributes:
        sample: Where it came from.
        source: Name of the recipe's data entry.
        ids: Token ids of the table, ``list[int]`` of length l, media placeholders expanded.
        labels: Same length; `IGNORED` where nothing is learnt.
        slots: Task to positions ``[n][k]``; n: calls in reading order, k: slots of one call.
        given_positions: Task to positions ``[m]`` of given tokens.
        targets, given: Task to annotations, checked by the head.
        views: The backbone's view of each medium, in order.
        head_views: Task to the head's own views of each medium, for heads that asked for frames.
        prepared: Task to what its head prepared for each of the n calls.
        questions: Positions of the words of each user turn; empty if no head asks for them.
        question_of: Task to the user turn that each of the n calls answers.
    """

    sample: Sample
    source: str
    ids: list[int]
    labels: list[int]
    slots: dict[str, list[list[int]]]
    given_positions: dict[str, list[int]]
    targets: dict[str, list[Any]]
    given: dict[str, list[Any]]
    views: list[View]
    head_views: dict[str, list[View]] = field(default_factory=dict)
    prepared: dict[str, list[Any]] = field(default_factory=dict)
    questions: list[list[int]] = field(default_factory=list)
    question_of: dict[str, list[int]] = field(default_factory=dict)

    @property
    def media(self) -> list[MediaInfo]:
        """Sizes of the media."""
        return [view.info for view in self.views]


class SlotIndex(NamedTuple):
    """Where the slots of one task stand in a batch: ``rows [n]``, ``positions [n, k]`` (n: calls,
    k: slots of a call).
    """

    rows: Tensor
    positions: Tensor


class TokenIndex(NamedTuple):
    """Where triggers and slots stand in a batch: ``rows [t]``, ``positions [t]``, ``which [t]``
    into the bridge's rows.
    """

    rows: Tensor
    positions: Tensor
    which: Tensor


class LabelIndex(NamedTuple):
    """What the language loss looks at: the hidden state at ``rows [p], positions [p]`` must predict
    ``ids [p]``.

    A position is one before that of its label; computed while collating, so that the GPU waits for
    nothing.
    """

    rows: Tensor
    positions: Tensor
    ids: Tensor


class GivenIndex(NamedTuple):
    """Where given tokens of one task stand, ``rows [m]``, ``positions [m]``, and the head's own
    ``values``.
    """

    rows: Tensor
    positions: Tensor
    values: Any


class WordIndex(NamedTuple):
    """Where the words of n questions stand in a batch: ``rows [n]``, ``positions [n, w]``, ``mask
    [n, w]``; w: longest question, positions are 0 where the mask is false.
    """

    rows: Tensor
    positions: Tensor
    mask: Tensor


class FrameIndex(NamedTuple):
    """Frames of n calls for the backbone's vision tower: each frame of a batch once, ``which [n,
    t]`` into them, ``mask [n, t]``; ``pixels`` as the backbone's processor made them, ``None``
    without frames.
    """

    pixels: Any
    which: Tensor
    mask: Tensor


class ContextIndex(NamedTuple):
    """What becomes the `Context` of the n calls of a task: ``prepared`` by the head, and where to
    find the rest.
    """

    prepared: Any
    question: WordIndex | None
    frames: FrameIndex | None


@dataclass
class Batch:
    """Examples side by side.

    Attributes:
        ids: ``[b, l]`` int64; b: samples, l: longest sample.
        mask: ``[b, l]`` bool, false where padded (right in training, left for generation).
        labels: ``[b, l]`` int64, `IGNORED` where nothing is learnt; a label stands at its own
            position (not shifted).
        learnt: `LabelIndex` of the labels.
        tokens: `TokenIndex` of all triggers and slots.
        slots: Task to `SlotIndex`; calls of the whole batch in reading order. Every head of the
            model has an entry.
        given: Task to `GivenIndex`, for heads that take something given.
        targets: Task to what the head's ``collate`` made of the annotations.
        contexts: Task to what its head sees of its calls besides their slots.
        questions: `WordIndex` of the last question of each row, if a head asks for words.
        media: What the backbone's processor made of the pixels, by name.
        counts: Loss term (``language``, ``assign``, ``task.term``) to the number of items it sums
            over in this batch; known before the forward pass.
        samples: ``source/id`` of each row, for messages.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    learnt: LabelIndex
    tokens: TokenIndex
    slots: dict[str, SlotIndex]
    given: dict[str, GivenIndex]
    targets: dict[str, Any]
    contexts: dict[str, ContextIndex]
    questions: WordIndex | None
    media: dict[str, Any]
    counts: dict[str, float]
    samples: tuple[str, ...]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with all its tensors on a device."""
        there = {f.name: moved(getattr(self, f.name), device, non_blocking) for f in fields(self)}
        return replace(self, **there)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for copies that overlap with computing."""
        pinned = {f.name: _pin(getattr(self, f.name)) for f in fields(self)}
        return replace(self, **pinned)


def moved(value: Any, device: Any, non_blocking: bool = False) -> Any:
    """The same tuples, lists and dicts with everything that has ``to`` on a device."""
    if hasattr(value, "to"):
        return value.to(device, non_blocking=non_blocking)
    return _map(value, lambda inner: moved(inner, device, non_blocking))


def _pin(value: Any) -> Any:
    if hasattr(value, "pin_memory"):
        return value.pin_memory()
    return _map(value, _pin)


def _map(value: Any, function: Any) -> Any:
    if isinstance(value, dict):
        return {key: function(inner) for key, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(function(inner) for inner in value))
    if isinstance(value, (list, tuple)):
        return type(value)(function(inner) for inner in value)
    return value


class LossTerm(NamedTuple):
    """One term of a loss, not yet divided.

    ``sum``: scalar with a graph, 0 when there is nothing to sum. ``count``: how many items it sums
        over; must follow
    from the targets alone, because counts are added up over all ranks before any forward pass.
    """

    sum: Tensor
    count: float  # type: ignore[assignment] # hides tuple.count, which nobody needs here


# ---- results
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """A box in an image or frame.

    Attributes:
        x0, y0, x1, y1: Corners in pixels of the original medium, upper left and lower right.
        score: Confidence in [0, 1] if the head gives one.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data: ``{"box": [x0, y0, x1, y1]}``, in pixels with two decimals."""
        plain: dict[str, Any] = {"box": [round(v, 2) for v in (self.x0, self.y0, self.x1, self.y1)]}
        return plain if self.score is None else {**plain, "score": round(self.score, 4)}


@dataclass(frozen=True)
class NoResult:
    """Why a head that was called has found nothing.

    Attributes:
        reason: One clause.
    """

    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"no_result": self.reason}

    def __str__(self) -> str:
        return f"nothing: {self.reason}"


@dataclass(frozen=True)
class Call:
    """A head that was called in an answer.

    Attributes:
        task: Which.
        result: What it found, in pixels and seconds; has ``to_json()``. A `Box` for boxes, a
            `NoResult` where the head could not work.
    """

    task: str
    result: Any


@dataclass(frozen=True)
class Answer:
    """What a model says and shows: the one thing that is printed, drawn, scored and exported.

    Attributes:
        question: What was asked.
        text: The answer; marks such as ``<region>`` stand where a head was called.
        calls: The heads that were called, in reading order.
        media: Sizes of the media that the question was about.
    """

    question: str
    text: str
    calls: tuple[Call, ...] = ()
    media: tuple[MediaInfo, ...] = ()

    @property
    def boxes(self) -> list[Box]:
        """All boxes of the answer, in reading order, in pixels."""
        return [call.result for call in self.calls if isinstance(call.result, Box)]

    def results(self, task: str) -> list[Any]:
        """Results of one task, in reading order, without those that are none."""
        return [
            call.result
            for call in self.calls
            if call.task == task and not isinstance(call.result, NoResult)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {
            "question": self.question,
            "text": self.text,
            "calls": [{"task": call.task, **call.result.to_json()} for call in self.calls],
            "media": [vars(info) for info in self.media],
        }
