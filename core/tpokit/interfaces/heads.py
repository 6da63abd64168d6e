"""What a task head subclasses.

Legend of all shapes: b samples of a batch, l positions, d width of the backbone, n calls of a task
in the whole batch in reading order, k slots of one call, m given values of a task in the whole
batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tpokit.errors import DataError
from tpokit.options import NoOptions
from tpokit.options import Options as AnyOptions
from tpokit.tokens import TaskTokens
from tpokit.types import Context, ContextNeed, Frames, LossTerm, Media, MediaInfo, Seen, Words


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

    @classmethod
    def build_empty(cls, options: AnyOptions, host: Host) -> TaskHead:
        """The same head without numbers, which reads annotations and is never run: no file of
        weights read; default: the head itself.
        """
        return cls(options, host)

    @classmethod
    def build_small(cls, options: AnyOptions, host: Host) -> TaskHead:
        """A head of the same kind that runs on a laptop: narrow, random weights from torch's
        generator, no file of weights read; default: the head itself.

        It takes the same annotations.
        """
        return cls(options, host)

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
            A prediction: a tensor, a tuple or dict of tensors, or a dataclass of these. It must be
            a dataclass where the number of tensors depends on the calls: ZeRO-3 counts those of
            tuples and dicts, and ranks would disagree.
        """

    @abstractmethod
    def loss(self, prediction: Any, targets: Any) -> dict[str, LossTerm]:
        """Unweighted terms, one for each name in ``terms``; each sum has a graph and is 0 when n is
        0.
        """

    def idle_inputs(self) -> dict[str, Any]:
        """The cheapest inputs by which every trainable parameter takes part in a micro-batch that
        has no call of this task, by the same modules in the same order.

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

    def without_gradient(self, learnt: Collection[str]) -> tuple[str, ...]:
        """Regular expressions for names of parameters, as the head calls them, that may be trained
        and yet get a gradient of zero, always or with the terms that are learnt; default: none.

        Training stops at any other parameter that gets none.

        Args:
            learnt: Loss terms with a weight above 0.
        """
        return ()

    def model_files(self) -> dict[str, Path]:
        """Files beside the recipe without which the head is not whole, such as frozen weights: the
        option that names each (``sam2.checkpoint``) to where it is; default: none.

        A model that is merged takes them along.
        """
        return {}

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
