"""What became of every published tensor, and what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tpokit.errors import CheckpointError
from tpokit.interfaces.weights import Shape

State = Literal[
    "placed",
    "placed in part",
    "unused",
    "not there",
    "missing",
    "of another shape",
    "unexpected",
    "written",
    "kept",
    "zeros",
    "left out",
]
"""Of a published tensor.

When it is taken in: ``placed``, all of it or some rows; known and ``unused``; ``not there``, as
files of the format may lack it; or it does not fit. When it is given back: ``written`` from the
model; ``kept`` from what was unused when the model was taken in; ``zeros``, where nothing is known
of it or of some rows; or ``left out``.
"""
_SHOWN = 3
"""Names that a message gives of each kind of fault."""


@dataclass(frozen=True)
class TensorRow:
    """A published tensor.

    Attributes:
        name: As published.
        shape: In the files; if it is not there, as the format has it.
        dtype: By torch's name; empty if it is not there.
        bytes: Of its data in the files.
        state: What became of it.
        places: Where it goes, in words.
        parts: Parts of the model, and files beside it, that it goes to.
        reason: Why it, or some of its rows, are not used, or what is wrong with it.
    """

    name: str
    shape: Shape
    dtype: str
    bytes: int
    state: State
    places: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class GroupRow:
    """Published tensors that begin alike and went the same way.

    Attributes:
        name: The first word of their names.
        state, reason: Of all of them.
        tensors: How many.
        bytes: Of their data.
        parts: Where they go, sorted.
    """

    name: str
    state: State
    reason: str
    tensors: int
    bytes: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class WeightsReport:
    """An import or an export.

    Attributes:
        format: Of the published files.
        folder: Of the published files.
        backbone: Name of the backbone.
        heads: Task to name of the head.
        tensors: Every tensor of the format or of the files.
        faults: What does not fit, by kind; none: all is well.
    """

    format: str
    folder: str
    backbone: str
    heads: dict[str, str]
    tensors: tuple[TensorRow, ...]
    faults: dict[str, tuple[str, ...]]

    @property
    def bytes(self) -> int:
        """Of all tensors that are there."""
        return sum(row.bytes for row in self.tensors)

    def groups(self) -> list[GroupRow]:
        """The tensors in few lines, in their order."""
        found: dict[tuple[str, State, str], list[TensorRow]] = {}
        for row in self.tensors:
            found.setdefault((_first_word(row.name), row.state, row.reason), []).append(row)
        return [
            GroupRow(
                name=name,
                state=state,
                reason=reason,
                tensors=len(rows),
                bytes=sum(row.bytes for row in rows),
                parts=tuple(sorted({part for row in rows for part in row.parts})),
            )
            for (name, state, reason), rows in found.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data: counts and bytes by state, then every tensor."""
        states = list(dict.fromkeys(row.state for row in self.tensors))
        return {
            **asdict(self),
            "bytes": self.bytes,
            "states": {
                state: {
                    "tensors": sum(row.state == state for row in self.tensors),
                    "bytes": sum(row.bytes for row in self.tensors if row.state == state),
                }
                for state in states
            },
        }

    def check(self, what: str) -> None:
        """Nothing, if all is well.

        Args:
            what: Of which the message says that it does not fit.

        Raises:
            CheckpointError: Something does not fit; names every kind, with its number and the first
                few.
        """
        if self.faults:
            kinds = [f"{len(names)} {kind}: {shown(names)}" for kind, names in self.faults.items()]
            raise CheckpointError(f"{what} does not fit: {'; '.join(kinds)}")


def shown(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _first_word(name: str) -> str:
    """``lm`` of ``lm.base_model.model``; a base LLM of its own stays apart."""
    return name.split(".", maxsplit=1)[0]
