"""What flows through tpokit, from an annotation to an answer.

``Sample`` (one annotation as read) -> ``Example`` (encoded for the model) -> ``Batch`` (collated)
-> ``Answer``.

Importing this file does not import torch; tensors appear in annotations only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tpokit.errors import UsageError
from tpokit.tokens import marked_tasks

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Role = Literal["system", "user", "assistant"]
MediaKind = Literal["image", "video"]

IGNORED = -100
"""Label of a position that no language loss looks at (the convention of transformers)."""


@dataclass(frozen=True)
class Media:
    """An image or a video by its file.

    Attributes:
        kind: ``image`` or ``video``.
        path: The file; of a video also a folder with its frames (jpg, jpeg, png) in the order of
            their names.
        start_s, end_s: The part of the video that is meant, in seconds; ``None``: from the start,
            to the end.
        rate: Frames a second of a folder of frames: frame k is shown from k / rate seconds on.
            ``None`` for a file, which says itself when its frames are shown.
    """

    kind: MediaKind
    path: Path
    start_s: float | None = None
    end_s: float | None = None
    rate: float | None = None


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
        frames: That many frames, each from one of as many equal parts; or
        rate: that many frames a second, at most ``frames_max``.
        frames_max: Upper limit with ``rate``.
        pick: When in each part: in its ``middle``, or at a ``random`` time of it, in training only;
            inference always takes the middle.
        short: With ``frames``, where a wanted frame is the same as the one before. ``repeat``: it
            is given again; so a video of fewer frames gives as many as wanted. ``fewer``: each is
            given once. ``error``: as ``repeat``, but a part of a video that has fewer frames than
            wanted cannot be read; a plugin calls the option for this ``short_videos``.
    """

    frames: int | None = None
    rate: float | None = None
    frames_max: int = 64
    pick: Literal["middle", "random"] = "middle"
    short: Literal["repeat", "fewer", "error"] = "repeat"


@dataclass(frozen=True)
class View:
    """Decoded frames for one consumer.

    Attributes:
        kind: ``image`` or ``video``.
        frames: uint8 ``[t, h, w, 3]`` RGB; t: frames (1 for an image), h, w: height, width in
            pixels.
        times_s: When each frame is shown, seconds from the start of the medium, ``[t]``.
        duration_s: Length of the video part that is meant; 0 for an image.
        path: The file, or the folder of frames, for messages.
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


@dataclass(frozen=True)
class ContextNeed:
    """What a head wants to see of a call besides its slots.

    Attributes:
        media: Frames of its own; ``None``: it does not look at the media.
        question: Hidden states of the words of the question (`Words`).
        vision: Features of its frames from the backbone's vision tower (`Frames`).
        grid: Cells in each direction into which the features of a frame are pooled.
        stream: In inference the core reads no frames for this head (`Seen.views` is empty): it
            streams the medium itself, of any length. In training it gets ``media`` all the same.
            Not together with ``vision``, which needs the frames.
    """

    media: MediaNeed | None = None
    question: bool = False
    vision: bool = False
    grid: int = 1
    stream: bool = False

    @property
    def looks(self) -> bool:
        """Whether the head looks at the media in any way."""
        return self.media is not None or self.stream

    def __post_init__(self) -> None:
        if self.stream and self.vision:
            raise UsageError(
                "a head that streams its medium has no frames for the vision tower in inference; "
                "ask for stream or for vision"
            )


@dataclass(frozen=True)
class Seen:
    """What a data worker knows of one call (or of one given value).

    Attributes:
        where: ``source/id`` of the sample, for messages.
        question: Text of the user's turn, without marks of media.
        media: Media of the sample.
        info: Their sizes; of the first one results are stated.
        views: The head's own frames of each medium, if it asked for any and they were read (in
            inference none for a head that streams).
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
        shortened: Whether turns or frames were left out because it was too long.
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
    shortened: bool = False

    @property
    def media(self) -> list[MediaInfo]:
        """Sizes of the media."""
        return [view.info for view in self.views]


class LossTerm(NamedTuple):
    """One term of a loss, not yet divided.

    ``sum``: scalar with a graph, 0 when there is nothing to sum. ``count``: how many items it sums
        over; must follow
    from the targets alone, because counts are added up over all ranks before any forward pass.
    """

    sum: Tensor
    count: float  # type: ignore[assignment] # hides tuple.count, which nobody needs here
