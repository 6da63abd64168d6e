"""Many tensors as one, for the way from a data worker to the trainer.

torch hands every tensor of a batch over by a socket of its own: with some forty in a batch the
trainer waited tens of milliseconds for a batch that was ready.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ALIGNED = 64
"""Bytes; a tensor begins at a multiple, as torch's own allocations do."""


class Place(NamedTuple):
    """Of a tensor within the one."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


class Packed(NamedTuple):
    """A value with its tensors apart. It holds pickle: unpack only what you packed yourself.

    Attributes:
        rest: All else, pickled.
        places: Of its tensors, in the order in which ``rest`` names them; starts in bytes.
        data: ``[bytes]`` uint8 on the CPU; all of them.
    """

    rest: bytes
    places: tuple[Place, ...]
    data: Tensor


def pack(value: Any) -> Packed:
    """Put the tensors of anything that can be pickled into one.

    Tensors on other devices, with a gradient, or of a class or layout of their own are pickled as
    ever.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    places, end = [], 0
    for tensor in pickler.tensors:
        places.append(Place(end, tuple(tensor.shape), tensor.dtype))
        end += -(-places[-1].bytes // _ALIGNED) * _ALIGNED
    packed = Packed(file.getvalue(), tuple(places), torch.empty(end, dtype=torch.uint8))
    for view, tensor in zip(_views(packed), pickler.tensors, strict=True):
        view.copy_(tensor)
    return packed


def unpack(packed: Packed) -> Any:
    """The value again; its tensors are parts of ``packed.data``."""
    return _Unpickler(packed).load()


def _views(packed: Packed) -> list[Tensor]:
    return [
        packed.data[place.start : place.start + place.bytes].view(place.dtype).view(place.shape)
        for place in packed.places
    ]


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._known: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        plain = type(obj) is Tensor and obj.layout == torch.strided and obj.device.type == "cpu"
        if not plain or obj.requires_grad or obj.is_quantized:
            return None
        if id(obj) not in self._known:
            self._known[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self._known[id(obj)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, packed: Packed) -> None:
        super().__init__(io.BytesIO(packed.rest))
        self._tensors = _views(packed)

    def persistent_load(self, pid: int) -> Tensor:
        return self._tensors[pid]
