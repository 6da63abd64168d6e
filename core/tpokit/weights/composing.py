"""Published tensors put together again from a model of ours."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tpokit.errors import CheckpointError
from tpokit.interfaces import AddedProduct, Place, Published
from tpokit.interfaces.weights import OF_LLM, Rows, Shape
from tpokit.weights.comparing import gaps, span
from tpokit.weights.model_tensors import ModelTensors
from tpokit.weights.report import State, TensorRow
from tpokit.weights.sources import Source

_ROWS = re.compile(r"(.+)\[(\d+):(\d+)\]")


@dataclass(frozen=True)
class _Piece:
    """Rows of a published tensor (``None``: all), and how to get their numbers."""

    rows: Rows | None
    shape: Shape
    dtype: torch.dtype
    read: Callable[[], Tensor]


class Composer:
    """Every tensor of a format, one at a time."""

    def __init__(
        self,
        published: Mapping[str, Published],
        added: Sequence[AddedProduct],
        ours: ModelTensors,
        files: Mapping[str, Mapping[str, Tensor]],
        unused: Source | None,
        asked: torch.dtype | None,
    ) -> None:
        """Find out of what each is put together.

        Args:
            published, added: Of the format.
            ours: The model.
            files: File beside the model to its tensors.
            unused: What was not used when the model was taken in.
            asked: Number format of all weights; default: the widest of their pieces.

        Raises:
            CheckpointError: What was not used has other shapes than the format.
        """
        self._published = published
        self._added = added
        self._asked = asked
        self._kept = _kept_pieces(unused)
        self._files = files
        self._ours = ours
        counts = Counter[torch.dtype]()
        for name, shape in ours.shapes.items():
            counts[ours.get(name).dtype] += math.prod(shape)
        self._usual = counts.most_common(1)[0][0]
        self._shapes = {name: tensor.shape for name, tensor in published.items()}
        for name, pieces in self._kept.items():
            # a name that no rules have is of a head that is not in the model
            shape = self._shapes.setdefault(name, pieces[0].shape)
            for piece in pieces:
                wanted = shape
                if piece.rows is not None:
                    wanted = (piece.rows[1] - piece.rows[0], *shape[1:])
                if piece.shape != wanted:
                    raise CheckpointError(
                        f"{name} was kept as {list(piece.shape)} when the model was taken in, but "
                        f"the format has {list(wanted)} there: it is of another model"
                    )

    def rows(self) -> Iterator[TensorRow]:
        """Every tensor that is published, and where its numbers are from."""
        for name, shape in self._shapes.items():
            tensor = self._published.get(name, Published(name, shape))
            reason = self._left_out(tensor)
            if reason:
                yield TensorRow(name, shape, "", 0, "left out", reason=reason)
                continue
            dtype, pieces = self._dtype(tensor), self._pieces(tensor)
            zeros = self._zeros(tensor)
            state: State = "written" if tensor.places else "kept"
            yield TensorRow(
                name=name,
                shape=shape,
                dtype=str(dtype).removeprefix("torch."),
                bytes=math.prod(shape) * dtype.itemsize,
                state=state if pieces and not zeros else "zeros",
                places=tuple(place.ours for place in tensor.places),
                parts=tuple(sorted({self._part(place) for place in tensor.places})),
                reason=zeros,
            )

    def compose(self, name: str) -> Tensor:
        """The tensor as it is published."""
        shape = self._shapes[name]
        tensor = self._published.get(name, Published(name, shape))
        whole = torch.zeros(shape or (1,), dtype=self._dtype(tensor))
        for piece in self._pieces(tensor):
            rows = slice(*span(shape, piece.rows))
            whole[rows] = piece.read().reshape(whole[rows].shape).to(whole.dtype)
        for product in self._added:
            if product.left == name:
                whole[slice(*product.rows)] = 0  # ours hold the sum already
        return whole.reshape(shape)

    def _left_out(self, tensor: Published) -> str:
        if tensor.name.startswith(OF_LLM):
            return "of the base LLM, which lies apart"
        if tensor.optional and not tensor.places and tensor.name not in self._kept:
            return "nothing is known of it, and files may lack it"
        return ""

    def _pieces(self, tensor: Published) -> list[_Piece]:
        own = [
            _Piece(
                place.rows,
                tuple(self._own(place).shape),
                self._own(place).dtype,
                partial(self._own, place),
            )
            for place in tensor.places
        ]
        return own + self._kept.get(tensor.name, [])

    def _own(self, place: Place) -> Tensor:
        """Our side of a place."""
        if place.file is not None:
            whole = self._files[place.file][place.ours].detach()
        else:
            whole = self._ours.get(self._ours.name(place.ours) or place.ours)
        return whole if place.our_rows is None else whole[slice(*place.our_rows)]

    def _part(self, place: Place) -> str:
        return place.file or self._ours.part(self._ours.name(place.ours) or place.ours)

    def _dtype(self, tensor: Published) -> torch.dtype:
        found = [piece.dtype for piece in self._pieces(tensor)]
        if not found:
            said: torch.dtype | None = getattr(torch, tensor.dtype) if tensor.dtype else None
            return said or self._asked or self._usual
        widest = found[0]
        for dtype in found[1:]:
            widest = torch.promote_types(widest, dtype)
        return self._asked if self._asked and widest.is_floating_point else widest

    def _zeros(self, tensor: Published) -> str:
        """Why some or all of it is zero; empty if nothing is."""
        pieces = self._pieces(tensor)
        known = [span(tensor.shape, piece.rows) for piece in pieces]
        known += [product.rows for product in self._added if product.left == tensor.name]
        if gaps(known, span(tensor.shape, None)):
            return "nothing is known of it, or of some rows"
        return "" if pieces else "what it was for is in other weights already"


def _kept_pieces(unused: Source | None) -> dict[str, list[_Piece]]:
    """Published name to what was kept of it."""
    kept: dict[str, list[_Piece]] = {}
    for key, info in unused.tensors.items() if unused is not None else ():
        match = _ROWS.fullmatch(key)
        name = match[1] if match else key
        rows = (int(match[2]), int(match[3])) if match else None
        assert unused is not None
        piece = _Piece(rows, info.shape, info.dtype, partial(unused.read, key))
        kept.setdefault(name, []).append(piece)
    return kept
