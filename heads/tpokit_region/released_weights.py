"""Weights of the region head as VideoChat-TPO was published.

Source: OpenGVLab/TPO, modeling_videochate.py: ``loc_decoder``. What gives a box to the LLM there,
``loc_encoder``, belongs to its mask task.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self, cast

from torch import nn

from tpokit import TokenTable
from tpokit.errors import CheckpointError, UsageError
from tpokit.interfaces import Place, Published, Shape, Shapes, WeightRules
from tpokit_region.head import RegionHead

_THEIRS, _OURS = "loc_decoder.", "heads.region.box_decoder."
_FIRST = f"{_THEIRS}0.weight"


class RegionReleasedWeights(WeightRules):
    """Rules of the format ``videochat_tpo``."""

    def __init__(self, width: int, hidden: int) -> None:
        """Make them; `from_published` and `from_model` are the usual ways.

        Args:
            width: d of the LLM.
            hidden: Width between the two layers.
        """
        self._width, self._hidden = width, hidden

    @classmethod
    def from_published(cls, shapes: Shapes) -> Self | None:
        """See `WeightRules.from_published`."""
        if not any(name.startswith(_THEIRS) for name in shapes):
            return None
        shape = shapes.get(_FIRST, ())
        if len(shape) != 2:
            raise CheckpointError(
                f"{_FIRST} must be there as a matrix, but "
                f"{f'has shape {list(shape)}' if shape else 'is missing'}"
            )
        return cls(width=shape[1], hidden=shape[0])

    @classmethod
    def from_model(cls, part: nn.Module) -> Self:
        """See `WeightRules.from_model`."""
        head = cast(RegionHead, part)
        if head.options.format != "corners":
            raise UsageError(
                "heads.region: the format videochat_tpo holds a head with format: corners, not "
                f"{head.options.format}"
            )
        if head.options.given:
            raise UsageError(
                "heads.region: the format videochat_tpo holds no head that takes boxes in "
                "questions; train it with given: false"
            )
        hidden, width = head.box_decoder[0].weight.shape
        return cls(width, hidden)

    def options(self) -> dict[str, Any]:
        """Of a head as published."""
        return {"format": "corners", "hidden": self._hidden, "given": False}

    def tensors(self, tokens: TokenTable) -> Iterable[Published]:
        """See `WeightRules.tensors`."""
        shapes: dict[str, Shape] = {
            "0.weight": (self._hidden, self._width),
            "0.bias": (self._hidden,),
            "2.weight": (4, self._hidden),
            "2.bias": (4,),
        }
        for name, shape in shapes.items():
            yield Published(_THEIRS + name, shape, (Place(_OURS + name),))
