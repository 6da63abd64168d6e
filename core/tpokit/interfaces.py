"""What a plugin subclasses.

`TaskHead`, `Backbone` with its `Processor`, `DataSource`, `Metric`, `Drawing`. Ours use nothing
that is not here.

Legend of all shapes: b samples of a batch, l positions, d width of the backbone, n calls of a task
in the whole batch in reading order, k slots of one call, m given values of a task in the whole
batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tpokit.errors import DataError, UsageError
from tpokit.options import NoOptions
from tpokit.options import Options as AnyOptions
from tpokit.tokens import TaskTokens
from tpokit.types import (
    Batch,
    Context,
    ContextNeed,
    Frames,
    LossTerm,
    Media,
    MediaInfo,
    MediaNeed,
    Sample,
    Seen,
    View,
    Words,
)

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class Host(NamedTuple):
    """What a head is built into.

    ``hidden``: d, width of the backbone's hidden states. ``vision``: width of its vision tower; 0
    if it gives no features of single frames. ``folder``: where relative paths in options start.
    """

    hidden: int
    vision: int = 0
    folder: Path = Path()


class TaskHead(nn.Module, ABC):
    """Predicts a dense target from the hidden states of a task's slots.

    A subclass sets the class attributes and writes `forward`, `loss`, `read_target` and `decode`;
    everything else has a default. Its network must work for ``n = 0`` and for any width ``d``. It
    must not draw from global random state.

    Attributes:
        task: What it does, ``[a-z][a-z0-9_]*``; data sources mark it as ``<task>``.
        tokens: Trigger, slots and given token, set on the class; an instance may set its own where
            they depend on its options.
        terms: Names of its loss terms, as in its spec.
    """

    task: ClassVar[str]
    tokens: TaskTokens
    terms: ClassVar[tuple[str, ...]]
    Options: ClassVar[type[AnyOptions]] = NoOptions

    def __init__(self, options: AnyOptions, host: Host) -> None:
        """Build the network.

        Args:
            options: An instance of ``Options``.
            host: The backbone that it is built for; ``host.hidden`` is d.
        """
        super().__init__()
        self.options = options
        self.host = host

    # ---- reading annotations (runs in data workers; must not touch parameters) ----

    @abstractmethod
    def read_target(self, annotation: Any, seen: Seen) -> Any:
        """Check one annotation of a data source and give it the head's own form.

        Args:
            annotation: As it stands in ``Sample.targets``.
            seen: The call; ``seen.where`` names the sample for messages.

        Raises:
            DataError: The annotation is wrong; says what and what would be right.
        """

    def read_given(self, annotation: Any, seen: Seen) -> Any:
        """The same for a value of ``Sample.given``; only for heads with a given token."""
        raise DataError(f"{seen.where}: task {self.task!r} takes nothing given: {annotation!r}")

    def context_need(self) -> ContextNeed:
        """What the head wants to see of a call besides its slots; default: nothing."""
        return ContextNeed()

    def wants_frames(self, media: Media) -> bool:
        """Whether the frames that `context_need` asks for are needed of a medium; default: yes.

        A head that keeps what it makes of them says no, and the medium need not be decoded for it.
        """
        return True

    def prepare(self, seen: Seen) -> Any:
        """What `collate_prepared` gets of one call; default: the head's views of the media.

        Here a head reads files of its own, or makes what is cheaper made once than in the model.

        Raises:
            DataError: Something is missing or wrong.
        """
        return seen.views

    def collate_prepared(self, prepared: Sequence[Any]) -> Any:
        """``Context.prepared`` of the n calls of a batch; default: as they are."""
        return tuple(prepared)

    def collate(self, targets: Sequence[Any]) -> Any:
        """Targets of the n calls of a batch, as tensors (or anything with ``to(device)``); default:
        float ``[n, ...]``.
        """
        return torch.tensor(targets, dtype=torch.float32) if targets else torch.zeros(0, 4)

    def collate_given(self, given: Sequence[Any]) -> Any:
        """Given values of a batch, as tensors; default: float ``[m, 4]``."""
        return (
            torch.tensor(given, dtype=torch.float32).reshape(len(given), -1)
            if given
            else torch.zeros(0, 4)
        )

    def counts(self, targets: Any) -> dict[str, float]:
        """How many items each loss term sums over; default: the n calls, for every term.

        Must follow from the targets alone: counts are added up over ranks and accumulation before
        the forward pass.
        """
        return {term: float(len(targets)) for term in self.terms}

    # ---- network ----

    def encode_given(self, given: Any) -> Tensor:
        """Embeddings ``[m, d]`` that stand at the given tokens of the prompt; only for heads with a
        given token.
        """
        raise NotImplementedError(f"{type(self).__name__} has a given token and so must encode it")

    @abstractmethod
    def forward(self, slots: Tensor, context: Context) -> Any:
        """Predict from slots.

        Args:
            slots: ``[n, k, d]`` hidden states, float; n may be 0.
            context: What else the head asked to see of these calls.

        Returns:
            A prediction: a tensor, or a tuple or dict of tensors.
        """

    @abstractmethod
    def loss(self, prediction: Any, targets: Any) -> dict[str, LossTerm]:
        """Unweighted terms, one for each name in ``terms``; each sum has a graph and is 0 when n is
        0.
        """

    def idle_inputs(self) -> dict[str, Any]:
        """The cheapest inputs by which every trainable parameter takes part in a step that has no
        call of this task.

        Returns:
            ``slots`` ``[n, k, d]`` and ``context`` of calls that need no target (default: one call
            of zeros; the prediction itself is multiplied by zero), and ``given`` for heads with a
            given token.
        """
        parameter = next(self.parameters(), None)
        like = torch.zeros(()) if parameter is None else parameter
        need = self.context_need()
        there = torch.ones(1, 1, dtype=torch.bool, device=like.device)
        cells = need.grid**2 * self.host.vision
        inputs: dict[str, Any] = {
            "slots": like.new_zeros(1, len(self.tokens.slots), self.host.hidden),
            "context": Context(
                prepared=self.collate_prepared([]),
                question=Words(like.new_zeros(1, 1, self.host.hidden), there)
                if need.question
                else None,
                frames=Frames(like.new_zeros(1, 1, cells), there) if need.vision else None,
            ),
        }
        if self.tokens.given is not None:
            inputs["given"] = like.new_zeros(1, 4)
        return inputs

    # ---- results ----

    @abstractmethod
    def decode(self, prediction: Any, media: Sequence[MediaInfo]) -> list[Any]:
        """Results of the n calls in the units of their media.

        Args:
            prediction: From `forward`.
            media: The medium of each call, ``[n]``.

        Returns:
            n results such as `tpokit.Box`: anything with ``to_json()``.
        """

    def result_of(self, target: Any, media: MediaInfo) -> Any:
        """The result that would be right, from a target of `read_target`; what a `Metric` compares
        with.
        """
        return self.decode(self.collate([target]), [media])[0]


class Processor(ABC):
    """The part of a backbone that has no weights: template, tokenizer, pixels. Lives in data
    workers.

    Attributes:
        tokenizer: A transformers tokenizer.
        end_of_turn: What an answer ends with in the template and the model must learn to write.
        max_length: Longest sequence of the model, in tokens.
    """

    tokenizer: Any
    end_of_turn: str
    max_length: int

    @abstractmethod
    def media_need(self) -> MediaNeed:
        """Which frames of a video the backbone sees."""

    @abstractmethod
    def render(self, messages: Sequence[Mapping[str, Any]], answer_next: bool) -> str:
        """Apply the model's own chat template.

        Args:
            messages: In transformers' form: ``{"role": ..., "content": [{"type": "image"}, {"type":
                "text", "text": ...}]}``.
            answer_next: End with the words that open an answer.

        Returns:
            Text with one placeholder for each medium.
        """

    @abstractmethod
    def expand(self, text: str, views: Sequence[View]) -> str:
        """Repeat each placeholder as often as its medium gives tokens.

        Raises:
            DataError: The number of placeholders is not the number of media.
        """

    @abstractmethod
    def collate_media(self, views: Sequence[Sequence[View]]) -> dict[str, Any]:
        """Pixels of a batch, as the backbone's `Backbone.embed` wants them; ``views`` by sample."""

    def collate_frames(self, views: Sequence[View]) -> Any:
        """Pixels of all frames of some views, as `Backbone.encode_frames` wants them.

        Raises:
            UsageError: This backbone gives no features of single frames (the default).
        """
        raise UsageError(
            f"{type(self).__name__} gives no features of single frames; choose other features for "
            "the head"
        )


class Backbone(nn.Module, ABC):
    """A multimodal LLM with its vision encoder and connector.

    Attributes:
        processor: Its template, tokenizer and pixels.
        width: d of its hidden states.
        rows: Rows of its input embedding (and of its logits).
        vision_width: Width of the features of `encode_frames`; 0 if it has none.
    """

    Options: ClassVar[type[AnyOptions]] = NoOptions

    processor: Processor
    width: int
    rows: int
    vision_width: int = 0

    @classmethod
    @abstractmethod
    def build(cls, options: AnyOptions, folder: Path) -> Backbone:
        """Load or make the model that the options name.

        Args:
            options: An instance of ``Options``.
            folder: Relative paths in the options are relative to it.
        """

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """Every parameter in exactly one of the parts ``vision``, ``connector`` and ``llm``."""

    @abstractmethod
    def lora_targets(self) -> str:
        """One regular expression for the full names (``re.fullmatch``, seen from the backbone) of
        the LLM's linear layers.
        """

    @abstractmethod
    def embed(self, batch: Batch, idle_vision: bool) -> Tensor:
        """Input embeddings ``[b, l, d]`` with the vision features in place.

        Ids at or beyond ``rows`` are task tokens: any embedding will do there, the bridge writes
        over it. Images and videos of a batch go through the vision tower in one call.

        Args:
            batch: With its media.
            idle_vision: Without media, run the tower and connector on the smallest input and add it
                times zero, so that all ranks call the same modules.
        """

    @abstractmethod
    def embed_ids(self, ids: Tensor) -> Tensor:
        """Table lookup ``[b, q]`` to ``[b, q, d]``, without media; ids at or beyond ``rows`` give
        anything.
        """

    @abstractmethod
    def decode(
        self,
        embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: Any = None,
        use_cache: bool = False,
    ) -> tuple[Tensor, Any]:
        """Run the LLM.

        Args:
            embeds: ``[b, q, d]``; q: new positions.
            mask: ``[b, p + q]`` bool over cached and new positions; false: padding.
            positions: ``[b, q]`` position of each new token in its own sample, from 0.
            cache: What an earlier call returned, holding p positions.
            use_cache: Return a cache for the next call.

        Returns:
            Last hidden states ``[b, q, d]`` after the final norm, and the cache or ``None``.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., rows]`` of the given hidden states ``[..., d]``; called only where they
        are needed.
        """

    def encode_frames(self, pixels: Any, grid: int) -> Tensor:
        """Features of single frames from the vision tower, before the connector.

        Args:
            pixels: From `Processor.collate_frames`; ``None``: the smallest input there is, so that
                all ranks call the tower (the result is multiplied by zero).
            grid: Cells in each direction into which the patches of a frame are averaged.

        Returns:
            ``[frames, grid * grid * vision_width]``, cells row by row.

        Raises:
            UsageError: This backbone gives none (the default).
        """
        raise UsageError(f"{type(self).__name__} gives no features of single frames")

    def gradient_checkpointing_enable(self) -> None:
        """Compute activations again in the backward pass instead of keeping them.

        Raises:
            UsageError: This backbone cannot (the default).
        """
        raise UsageError(
            f"run.gradient_checkpointing: {type(self).__name__} cannot do it; leave it out"
        )

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What this base model is: ``name`` as the recipe has it and ``hash`` of its weights, kept
        with what is trained.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the whole model, loadable by `build` from that folder."""


class DataSource(ABC):
    """Reads annotations into samples.

    A source is cheap to make and to copy to workers; it opens files when it is made and reads media
    never.
    """

    Options: ClassVar[type[AnyOptions]] = NoOptions

    @abstractmethod
    def __init__(self, options: AnyOptions, folder: Path) -> None:
        """Open the annotations.

        Args:
            options: An instance of ``Options``.
            folder: Relative paths in the options are relative to it.

        Raises:
            DataError: A file is missing or not in the format.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def read(self, index: int, random: np.random.Generator) -> Sample:
        """One sample.

        Args:
            index: From 0 to ``len(self) - 1``.
            random: For random choices (wording, crops); already seeded by seed, epoch and sample.

        Raises:
            DataError: The annotation is wrong; says the file and line.
        """


class Metric(ABC):
    """Scores the results of one task over many samples.

    Attributes:
        task: Whose results.
    """

    task: ClassVar[str]

    @abstractmethod
    def add(self, predicted: Sequence[Any], expected: Sequence[Any], media: MediaInfo) -> None:
        """Take in one sample.

        Args:
            predicted: Results of the task in the answer, in reading order; may be fewer or more
                than expected.
            expected: Results that would be right.
            media: The medium that they are about.
        """

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Measures by name, as fractions in [0, 1] unless the name says a unit."""

    def constant(self) -> dict[str, float]:
        """What the best answer that ignores the input would have scored, by the same names; empty
        if not defined.
        """
        return {}


class Drawing(ABC):
    """Draws results of one task.

    Attributes:
        task: Whose results.
        need: Frames of the medium that it wants to show.
    """

    task: ClassVar[str]
    need: ClassVar[MediaNeed] = MediaNeed(frames=1)

    @abstractmethod
    def draw(self, picture: Image, results: Sequence[Any], view: View) -> Image:
        """Draw over or below a picture.

        Args:
            picture: RGB; its upper left corner is the first frame of the medium, in whose pixels
                boxes are; drawings of other tasks may already be on it.
            results: Of this task, in reading order.
            view: The frames that were asked for.

        Returns:
            A new picture; the given one stays as it is.
        """


__all__ = [
    "Backbone",
    "DataSource",
    "Drawing",
    "Host",
    "Metric",
    "Processor",
    "TaskHead",
]
