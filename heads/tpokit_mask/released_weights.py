"""Weights of the mask head as VideoChat-TPO was published.

Source: OpenGVLab/TPO, modeling_videochate.py: ``track_embed``, ``track_embed_decode2``,
``loc_encoder``, ``sam``. Its SAM 2 becomes a file beside the model, as the head reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, Self, cast

from torch import Tensor, nn

from tpokit import TokenTable
from tpokit.errors import CheckpointError, UsageError
from tpokit.interfaces import Place, Published, Shape, Shapes, WeightRules
from tpokit_mask.head import MaskHead
from tpokit_mask.options import RANDOM
from tpokit_mask.released_sam2 import LARGE, sam2_shapes, sizes_of
from tpokit_mask.sam2.sizes import Sam2Sizes

FILE = "sam2.safetensors"
"""Beside the model."""
_FORMAT = "heads.mask: the format videochat_tpo"
_SAM, _OURS = "sam.", "heads.mask."
_LARGE_NAME = "sam2_hiera_large"
_ADAPTER, _BOXES, _GIVEN = "track_embed.layers.", "track_embed_decode2.layers.", "loc_encoder."
_NOT_IN_WEIGHTS = {"image_size": LARGE.image_size, "dropout": LARGE.dropout}
"""Fields of `Sam2Sizes` by which weights do not change."""


class MaskReleasedWeights(WeightRules):
    """Rules of the format ``videochat_tpo``."""

    def __init__(
        self, widths: tuple[int, int], tokens: int, sam2: Sam2Sizes, head: MaskHead | None = None
    ) -> None:
        """Make them; `from_published` and `from_model` are the usual ways.

        Args:
            widths: d of the LLM; of the hidden layer that encodes a given box.
            tokens: Prompt tokens of a slot.
            sam2: Sizes of SAM 2.
            head: That is to be published.
        """
        self._width, self._hidden = widths
        self._tokens, self._sam2, self._head = tokens, sam2, head

    @classmethod
    def from_published(cls, shapes: Shapes) -> Self | None:
        """See `WeightRules.from_published`; without an image encoder, SAM 2 counts as the published
        one, so that what it lacks is named.
        """
        sam2 = {
            name.removeprefix(_SAM): shape
            for name, shape in shapes.items()
            if name.startswith(_SAM)
        }
        if not sam2 and not any(name.startswith(_ADAPTER) for name in shapes):
            return None
        there = any(name.startswith("image_encoder.") for name in sam2)
        sizes = sizes_of(sam2) if there else LARGE
        rows = _matrix(shapes, f"{_ADAPTER}1.weight")[0]
        if rows % sizes.width:
            raise CheckpointError(
                f"{_ADAPTER}1.weight has {rows} rows, no multiple of the width {sizes.width} of "
                "SAM 2"
            )
        width = _matrix(shapes, f"{_ADAPTER}0.weight")[1]
        hidden = _matrix(shapes, f"{_GIVEN}0.weight")[0]
        return cls((width, hidden), rows // sizes.width, sizes)

    @classmethod
    def from_model(cls, part: nn.Module) -> Self:
        """See `WeightRules.from_model`."""
        head = cast(MaskHead, part)
        options = head.options
        for fits, message in (
            (options.adapter == "mlp", f"has adapter: mlp, not {options.adapter}"),
            (options.slots == 1, f"has one slot, not slots: {options.slots}"),
            (options.given, "encodes boxes in questions; train the head with given: true"),
        ):
            if not fits:
                raise UsageError(f"{_FORMAT} {message}")
        hidden, width = head.box_encoder[0].out_features, head.host.hidden
        return cls((width, hidden), options.tokens_per_slot, _known_sizes(head), head)

    def options(self) -> dict[str, Any]:
        """Of a head as published: there the best of three masks takes the place of an unsteady one,
        and boxes are drawn around the outside of masks.
        """
        large = self._sam2 == LARGE
        size = _LARGE_NAME if large else asdict(self._sam2)
        return {
            "sam2": {"size": size, "checkpoint": FILE, "postprocessing": True},
            "adapter": "mlp",
            "slots": 1,
            "tokens_per_slot": self._tokens,
            "box_of_mask": "outer",
            "given": True,
            "given_hidden": self._hidden,
        }

    def empty_options(self) -> dict[str, Any]:
        """The same with a SAM 2 of random weights."""
        options = self.options()
        return {**options, "sam2": {**options["sam2"], "checkpoint": RANDOM}}

    def tensors(self, tokens: TokenTable) -> Iterable[Published]:
        """See `WeightRules.tensors`."""
        width, hidden, prompt = self._width, self._hidden, self._tokens * self._sam2.width
        for name, place, made, seen in (
            (f"{_ADAPTER}0", "adapter.layers.0.0", width, width),
            (f"{_ADAPTER}1", "adapter.layers.0.2", prompt, width),
            (f"{_BOXES}0", "box_decoder.0", width, width),
            (f"{_BOXES}1", "box_decoder.2", 4, width),
            (f"{_GIVEN}0", "box_encoder.0", hidden, 4),
            (f"{_GIVEN}2", "box_encoder.2", width, hidden),
        ):
            for kind, shape in (("weight", (made, seen)), ("bias", (made,))):
                yield Published(f"{name}.{kind}", shape, (Place(f"{_OURS}{place}.{kind}"),))
        yield from self._sam2_tensors()

    def file_tensors(self, file: str) -> Mapping[str, Tensor]:
        """Weights of SAM 2; see `WeightRules.file_tensors`."""
        if file != FILE or self._head is None:
            return super().file_tensors(file)
        state: dict[str, Tensor] = self._head.sam2.model.state_dict()
        return state

    def _sam2_tensors(self) -> Iterator[Published]:
        """What of SAM 2 was trained is in the head, the rest in the file."""
        trained = {} if self._head is None else self._head.trained_parts.state_dict()
        for name, shape in sam2_shapes(self._sam2).items():
            if name in trained:
                place = Place(f"{_OURS}trained_parts.{name}")
            else:
                place = Place(name, file=FILE)
            yield Published(_SAM + name, shape, (place,))


def _known_sizes(head: MaskHead) -> Sam2Sizes:
    """Sizes of a head's SAM 2, if they could be told from its weights.

    Raises:
        UsageError: They could not.
    """
    stated = head.options.sam2.size
    if isinstance(stated, str):
        if stated != _LARGE_NAME:
            raise UsageError(f"{_FORMAT} holds the SAM 2 {_LARGE_NAME}, not {stated}")
        return LARGE
    shapes = {name: tuple(tensor.shape) for name, tensor in head.sam2.model.state_dict().items()}
    try:
        told = sizes_of(shapes)
    except CheckpointError as cause:
        raise UsageError(f"{_FORMAT}: {cause}") from cause
    if replace(told, **_NOT_IN_WEIGHTS) != replace(stated, **_NOT_IN_WEIGHTS):
        found, wanted = asdict(told), asdict(stated)
        names = [
            name for name in wanted if name not in _NOT_IN_WEIGHTS and found[name] != wanted[name]
        ]
        raise UsageError(
            f"{_FORMAT} does not say {', '.join(f'sam2.size.{name}' for name in names)}, which "
            f"differs from the usual: {', '.join(str(wanted[name]) for name in names)} instead of "
            f"{', '.join(str(found[name]) for name in names)}"
        )
    return stated


def _matrix(shapes: Shapes, name: str) -> Shape:
    shape = shapes.get(name, ())
    if len(shape) != 2:
        raise CheckpointError(
            f"{name} must be there as a matrix, but "
            f"{f'has shape {list(shape)}' if shape else 'is missing'}"
        )
    return shape
