"""Reading published tensors into an empty model, and beside it, one tensor at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tpokit.interfaces import AddedProduct, Place, Published
from tpokit.weights.comparing import span, unused_rows
from tpokit.weights.model_tensors import ModelTensors
from tpokit.weights.sources import Source

UNUSED_FILE = "unused.safetensors"
_OF_BACKBONE = "backbone."


class NumberFormats:
    """In which number format a tensor is kept.

    The backbone and files beside the model have one format: the one that is asked for, else the one
    of most of the backbone's published numbers. A tensor that would change its values by that stays
    as it was published, unless the format was asked for. Bridge and heads are float32.
    """

    def __init__(
        self, source: Source, published: Mapping[str, Published], asked: torch.dtype | None
    ) -> None:
        """Count the published numbers of the backbone."""
        counts: Counter[torch.dtype] = Counter()
        for name, info in source.tensors.items():
            places = published[name].places if name in published else ()
            if info.dtype.is_floating_point and any(_is_of_backbone(place) for place in places):
                counts[info.dtype] += info.numbers
        self._asked = asked
        self._usual = counts.most_common(1)[0][0] if counts else torch.float32

    def convert(self, tensor: Tensor, place: Place) -> Tensor:
        """A tensor as it is kept at a place."""
        if not tensor.is_floating_point():
            return tensor
        if place.file is None and not _is_of_backbone(place):
            return tensor.float()
        return self.usual(tensor) if self._asked is None else tensor.to(self._asked)

    def usual(self, tensor: Tensor) -> Tensor:
        """A tensor in the published number format of the backbone, if that changes no value."""
        if not tensor.is_floating_point():
            return tensor
        kept = tensor.to(self._usual)
        return kept if torch.equal(kept.to(tensor.dtype), tensor) else tensor


def _is_of_backbone(place: Place) -> bool:
    return place.file is None and place.ours.startswith(_OF_BACKBONE)


def fill(
    source: Source,
    published: Mapping[str, Published],
    added: Sequence[AddedProduct],
    ours: ModelTensors,
    formats: NumberFormats,
) -> None:
    """Put published tensors into the parameters of a model, one after the other.

    Args:
        source: Which fits the format and the model.
        published, added: Of the format.
        ours: Of the empty model, whose parameters become real.
        formats: Which number format each gets.
    """
    for name in source.tensors:
        for place in published[name].places:
            if place.file is None:
                _put(ours, place, formats.convert(source.read(name, place.rows), place))
    for product in added:
        _add(source, product, ours)
    for name, shape in ours.shapes.items():
        if ours.get(name).is_meta and 0 in shape:
            ours.put(name, torch.zeros(shape))  # rows of a bridge without heads


def _put(ours: ModelTensors, place: Place, numbers: Tensor) -> None:
    name = ours.name(place.ours)
    assert name is not None
    shape, old = ours.shapes[name], ours.get(name)
    if place.our_rows is None:
        # only buffers are real from the start, and a module relies on their number format
        kept = numbers if old.is_meta else numbers.to(old.dtype)
        ours.put(name, kept.reshape(shape).contiguous())
        return
    if old.is_meta:
        old = torch.zeros(shape, dtype=numbers.dtype)
    whole = old.to(torch.promote_types(old.dtype, numbers.dtype))
    rows = slice(*place.our_rows)
    whole[rows] = numbers.reshape(whole[rows].shape).to(whole.dtype)
    ours.put(name, whole)


def _add(source: Source, product: AddedProduct, ours: ModelTensors) -> None:
    """Add a product to rows of ours, computed in float32."""
    name = ours.name(product.ours)
    assert name is not None
    left = source.read(product.left, product.rows).float()  # [rows, r]
    right = source.read(product.right).float()  # [r, d]
    whole = ours.get(name)
    rows = slice(*product.our_rows)
    total = whole[rows].float() + product.scale * (left @ right)
    whole[rows] = total.to(whole.dtype)


# ---- beside the model ----


def write_files(
    source: Source, published: Mapping[str, Published], formats: NumberFormats, folder: Path
) -> None:
    """Write the files that heads read their weights from."""
    for file in files_of(published.values()):
        content = {
            place.ours: formats.convert(source.read(name, place.rows), place).contiguous()
            for name, place in _places_in(file, source, published)
        }
        save_file(content, folder / file, metadata={"format": "pt"})


def files_of(published: Iterable[Published]) -> list[str]:
    """Names of the files beside the model, sorted."""
    return sorted({place.file for tensor in published for place in tensor.places if place.file})


def _places_in(
    file: str, source: Source, published: Mapping[str, Published]
) -> Iterator[tuple[str, Place]]:
    for name in source.tensors:
        yield from ((name, place) for place in published[name].places if place.file == file)


def write_unused(
    source: Source,
    published: Mapping[str, Published],
    added: Sequence[AddedProduct],
    formats: NumberFormats,
    folder: Path,
) -> None:
    """Write tensors, and rows of tensors, that the model does not use, so that an export can give
    them back. Rows go by ``NAME[first:behind]``, in the usual number format: the other rows of
    their tensor may have had a wider one.
    """
    content = {}
    for name in source.tensors:
        tensor = published[name]
        everything = span(tensor.shape, None)
        for rows in unused_rows(tensor, added):
            if rows == everything:
                content[name] = source.read(name)
            else:
                content[f"{name}[{rows[0]}:{rows[1]}]"] = formats.usual(source.read(name, rows))
    if content:
        save_file(content, folder / UNUSED_FILE, metadata={"format": "pt"})
