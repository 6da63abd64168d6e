"""Examples side by side, and where in them everything stands.

Importing this file does not import torch; tensors appear in annotations only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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


class SequenceIndex(NamedTuple):
    """Which tokens of a batch see each other, where a row may hold several samples one after
    another: a token sees those before it in its own sample.

    ``positions [b, l]`` int64: of each token in its own sample, from 0. ``bounds [s + 1]`` int32
    (s: samples): where the samples begin if the rows stand one after another, from 0, and ``b * l``
    at the end. ``longest``: the greatest distance of two bounds, in tokens.

    Rows are padded on the right, and padding counts as the end of the last sample of its row:
    nothing sees it, so nothing has to be masked besides what comes later.
    """

    positions: Tensor
    bounds: Tensor
    longest: int


@dataclass
class Batch:
    """Examples side by side, and where rows are packed, one after another in a row.

    Attributes:
        ids: ``[b, l]`` int64; b: rows, one sample each unless packed, l: longest row.
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
        questions: `WordIndex` of the last question of each sample, if a head asks for words.
        media: What the backbone's processor made of the pixels, by name.
        counts: Loss term (``language``, ``assign``, ``task.term``) to the number of items it sums
            over in this batch; known before the forward pass.
        samples: ``source/id`` of each sample, row by row, for messages.
        sequences: `SequenceIndex`, for backbones that use it; ``None``: a row is one sample.
        called: Tasks that any rank calls, or gives something, in this micro-batch: only their heads
            run; ``None``: all heads do.
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
    sequences: SequenceIndex | None = None
    called: frozenset[str] | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with all its tensors on a device."""
        there = {f.name: moved(getattr(self, f.name), device, non_blocking) for f in fields(self)}
        return replace(self, **there)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for copies that overlap with computing."""
        pinned = {f.name: _pin(getattr(self, f.name)) for f in fields(self)}
        return replace(self, **pinned)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, as on its way from a data worker, it is one tensor (`tpokit.packing`)."""
        from tpokit.packing import pack

        return _unpacked, tuple(pack([getattr(self, field.name) for field in fields(self)]))


def _unpacked(*parts: Any) -> Batch:
    from tpokit.packing import Packed, unpack

    return Batch(*unpack(Packed(*parts)))


def moved(value: Any, device: Any, non_blocking: bool = False) -> Any:
    """The same tuples, lists and dicts with everything that has ``to`` on a device."""
    if hasattr(value, "to"):
        return value.to(device, non_blocking=non_blocking)
    return _map(value, lambda inner: moved(inner, device, non_blocking))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of nested tuples, lists, dicts and dataclasses."""
    if hasattr(value, "requires_grad"):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for inner in value.values() for tensor in tensors_in(inner))
    elif isinstance(value, (list, tuple)):
        yield from (tensor for inner in value for tensor in tensors_in(inner))
    elif is_dataclass(value):
        yield from (t for field in fields(value) for t in tensors_in(getattr(value, field.name)))


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
