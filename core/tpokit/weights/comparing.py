"""Published tensors, the rules of a format and a model of ours, compared by name and shape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from tpokit.errors import PluginError
from tpokit.interfaces import AddedProduct, Place, Published
from tpokit.interfaces.weights import Rows, Shape
from tpokit.weights.model_tensors import ModelTensors
from tpokit.weights.report import State, TensorRow
from tpokit.weights.sources import Source, TensorInfo

MISSING = "missing"
UNEXPECTED = "unexpected"
RESHAPED = "of another shape"
EMPTY = "of our model left empty"
TWICE = "of our model filled twice"
UNKNOWN = "without their place in our model"
_KINDS = (MISSING, UNEXPECTED, RESHAPED, EMPTY, TWICE, UNKNOWN)


def compare(
    source: Source,
    published: Mapping[str, Published],
    added: Sequence[AddedProduct],
    ours: ModelTensors,
) -> tuple[list[TensorRow], dict[str, tuple[str, ...]]]:
    """What becomes of each published tensor, and what does not fit.

    Args:
        source: The files.
        published: Every tensor of the format.
        added: Products that are taken into rows of ours.
        ours: The model that is to be filled.

    Returns:
        Rows for a report, and faults by kind.

    Raises:
        PluginError: Rules leave something unused and do not say why.
    """
    rows = [_row(source.tensors.get(name), tensor, added, ours)
            for name, tensor in published.items()]  # fmt: skip
    rows += [
        TensorRow(name, info.shape, _name(info), info.bytes, "unexpected")
        for name, info in source.tensors.items()
        if name not in published
    ]
    found: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for row in rows:
        if row.state in found:
            detail = f" {list(row.shape)}" if row.state != RESHAPED else f": {row.reason}"
            found[row.state].append(row.name + detail)
    there = [tensor for name, tensor in published.items() if name in source.tensors]
    for kind, name in place_faults(there, ours):
        found[kind].append(name)
    return rows, {kind: tuple(names) for kind, names in found.items() if names}


def _row(
    info: TensorInfo | None,
    tensor: Published,
    added: Sequence[AddedProduct],
    ours: ModelTensors,
) -> TensorRow:
    if info is None:
        state: State = "not there" if tensor.optional else "missing"
        return TensorRow(tensor.name, tensor.shape, "", 0, state)
    if info.shape != tensor.shape:
        reason = f"it is {list(info.shape)} and should be {list(tensor.shape)}"
        return TensorRow(
            tensor.name, info.shape, _name(info), info.bytes, "of another shape", reason=reason
        )
    unused = unused_rows(tensor, added)
    if unused and not tensor.unused:
        raise PluginError(
            f"the rules do not say why {tensor.name}{_rows_text(unused[0])} is not used"
        )
    taken = [product for product in added if tensor.name in (product.left, product.right)]
    places = [_place_text(place) for place in tensor.places]
    places += [f"added to {product.ours}{_rows_text(product.our_rows)}" for product in taken]
    state = "placed" if not unused else "placed in part" if places else "unused"
    return TensorRow(
        name=tensor.name,
        shape=info.shape,
        dtype=_name(info),
        bytes=info.bytes,
        state=state,
        places=tuple(places),
        parts=tuple(sorted({*_parts(tensor, ours), *(ours.part(p.ours) for p in taken)})),
        reason=tensor.unused if unused else "",
    )


def unused_rows(tensor: Published, added: Sequence[AddedProduct]) -> list[Rows]:
    """Rows of a published tensor that go nowhere; of one that goes nowhere at all, all of them (of
    a single number ``(0, 1)``).
    """
    used: list[Rows] = [span(tensor.shape, place.rows) for place in tensor.places]
    used += [product.rows for product in added if product.left == tensor.name]
    used += [span(tensor.shape, None) for product in added if product.right == tensor.name]
    return gaps(used, span(tensor.shape, None))


def gaps(used: Sequence[Rows], whole: Rows) -> list[Rows]:
    """Rows of the whole that are in none of the used ones."""
    found: list[Rows] = []
    end = whole[0]
    for start, stop in [*sorted(used), (whole[1], whole[1])]:
        if start > end:
            found.append((end, start))
        end = max(end, stop)
    return found


def place_faults(published: Sequence[Published], ours: ModelTensors) -> Iterator[tuple[str, str]]:
    """Kind and name of what does not fit between the places of tensors and a model: sizes that
    differ, places that are not there, and tensors of ours that are not filled exactly once.
    """
    shapes = ours.shapes
    filled: dict[str, list[Rows]] = {name: [] for name in shapes}
    for tensor in published:
        for place in tensor.places:
            if place.file is not None:
                continue
            name = ours.name(place.ours)
            if name is None:
                yield UNKNOWN, f"{tensor.name} (for {place.ours})"
                continue
            rows = span(shapes[name], place.our_rows)
            filled[name].append(rows)
            if _size(tensor.shape, place.rows) != _size(shapes[name], rows):
                yield (
                    RESHAPED,
                    f"{tensor.name} {list(tensor.shape)}: {_misfit(place, shapes[name])}",
                )
    for name, spans in filled.items():
        if gaps(spans, span(shapes[name], None)):
            yield EMPTY, f"{name} {list(shapes[name])}"
        ordered = sorted(spans)
        for (_, end), (start, stop) in pairwise(ordered):
            if start < end:
                yield TWICE, f"{name}{_rows_text((start, min(end, stop)))}"


def span(shape: Shape, rows: Rows | None) -> Rows:
    """Rows of a tensor, ``None`` meaning all; a single number is one row."""
    return rows if rows is not None else (0, shape[0] if shape else 1)


def _size(shape: Shape, rows: Rows | None) -> int:
    """Numbers in these rows; -1 if there are not so many rows."""
    start, stop = span(shape, rows)
    inside = 0 <= start <= stop <= span(shape, None)[1]
    return (stop - start) * math.prod(shape[1:]) if inside else -1


def _misfit(place: Place, shape: Shape) -> str:
    return f"{_rows_text(place.rows) or 'all'} for {_place_text(place)} of {list(shape)}"


def _parts(tensor: Published, ours: ModelTensors) -> Iterator[str]:
    for place in tensor.places:
        yield place.file if place.file is not None else ours.part(ours.name(place.ours) or "")


def _place_text(place: Place) -> str:
    target = f"{place.file}: " if place.file is not None else ""
    source = f" from {_rows_text(place.rows)}" if place.rows is not None else ""
    return f"{target}{place.ours}{_rows_text(place.our_rows)}{source}"


def _rows_text(rows: Rows | None) -> str:
    return "" if rows is None else f"[{rows[0]}:{rows[1]}]"


def _name(info: TensorInfo) -> str:
    return str(info.dtype).removeprefix("torch.")
