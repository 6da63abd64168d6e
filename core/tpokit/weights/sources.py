"""Published weights on disk: which tensors there are, and one of them at a time.

Listing reads headers only. Safetensors are opened anew for each tensor, so that nothing of a file
stays in memory but the tensor that was asked for. A pickle can run code while it is read; torch's
reader that allows tensors only is used, and only if asked for.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tpokit.errors import CheckpointError, UsageError
from tpokit.interfaces.weights import OF_LLM, Rows, Shape
from tpokit.weights.report import shown

_STAYS_MAPPED = 256 * 2**20  # bytes; what is read of a larger file must not stay in memory
_NESTED = ("model", "module", "state_dict")
"""Entries of a pickle that hold the tensors, beside epochs and the like."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Number formats as safetensors calls them."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read.

    Attributes:
        shape, dtype: Of the tensor.
        file: Name of its file.
    """

    shape: Shape
    dtype: torch.dtype
    file: str

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of its data."""
        return self.numbers * self.dtype.itemsize


class Source(ABC):
    """Published tensors by name.

    Attributes:
        origin: What was opened, for messages.
        folder: Where files that belong to them lie.
        tensors: All of them, in the order in which they are best read.
    """

    def __init__(self, origin: Path, folder: Path, tensors: Mapping[str, TensorInfo]) -> None:
        """Keep the listing."""
        self.origin = origin
        self.folder = folder
        self.tensors = tensors

    @property
    def shapes(self) -> dict[str, Shape]:
        """Name to shape."""
        return {name: info.shape for name, info in self.tensors.items()}

    @abstractmethod
    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        """One tensor, or some rows of it: a copy in memory of its own, on the CPU.

        Raises:
            CheckpointError: It cannot be read.
        """


class SafetensorsSource(Source):
    """One or several safetensors files."""

    def __init__(self, origin: Path, files: Iterable[Path]) -> None:
        """Read the headers.

        Raises:
            CheckpointError: A file is not whole, or two have a tensor of one name.
        """
        self._paths = {path.name: path for path in files}
        self._mapped: dict[str, Any] = {}
        folder = origin if origin.is_dir() else origin.parent
        super().__init__(origin, folder, _joined(origin, map(_header, self._paths.values())))

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        """See `Source.read`."""
        path = self._paths[self.tensors[name].file]
        try:
            file = self._mapped.get(path.name) or safe_open(path, "pt")
            if path.stat().st_size <= _STAYS_MAPPED:
                self._mapped[path.name] = file
            part = slice(None) if rows is None else slice(*rows)
            found = file.get_tensor(name) if rows is None else file.get_slice(name)[part]
            copy: Tensor = found.clone()
        except (SafetensorError, OSError) as cause:
            raise _not_whole(path, cause) from cause
        return copy


class PickleSource(Source):
    """One or several files of `torch.save`; they are mapped into memory where that is possible."""

    def __init__(self, origin: Path, files: Iterable[Path]) -> None:
        """Read all but the numbers.

        Raises:
            CheckpointError: A file is not whole, holds something else than tensors, or two have a
                tensor of one name.
        """
        self._content: dict[str, Tensor] = {}
        listings = []
        for path in files:
            content = _unpickled(path)
            listings.append(
                {
                    name: TensorInfo(tuple(tensor.shape), tensor.dtype, path.name)
                    for name, tensor in content.items()
                }
            )
            self._content.update(content)
        folder = origin if origin.is_dir() else origin.parent
        super().__init__(origin, folder, _joined(origin, listings))

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        """See `Source.read`."""
        tensor = self._content[name]
        return (tensor if rows is None else tensor[slice(*rows)]).detach().clone()


class Listing(Source):
    """Names, shapes and number formats without numbers, for a dry run.

    A JSON object: ``tensors`` has name to ``[shape, shard]``; ``dtype`` is the format of all, such
    as ``bfloat16``, or ``bfloat16, except NAME (int64)``.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            CheckpointError: It is not of that form.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            words = str(content["dtype"])
            usual = _dtype(words.partition(",")[0])
            others = {name: _dtype(dtype) for name, dtype in re.findall(r"(\S+) \((\w+)\)", words)}
            tensors = {
                str(name): TensorInfo(
                    tuple(int(n) for n in shape), others.get(name, usual), str(shard)
                )
                for name, (shape, shard) in content["tensors"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
            raise CheckpointError(
                f"{path} is no listing of tensors, a JSON object with 'tensors' and 'dtype': "
                f"{type(cause).__name__}: {cause}"
            ) from cause
        super().__init__(path, path.parent, tensors)

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        """Fails: there are no numbers."""
        raise UsageError(f"{self.origin} lists tensors and has none of them, such as {name}")


class WithLlm(Source):
    """A source together with a base LLM that lies apart; names of that begin with ``llm::``."""

    def __init__(self, own: Source, llm: Source) -> None:
        """Join the listings."""
        super().__init__(
            own.origin,
            own.folder,
            {**own.tensors, **{OF_LLM + name: info for name, info in llm.tensors.items()}},
        )
        self._own = own
        self._llm = llm

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        """See `Source.read`."""
        if name.startswith(OF_LLM):
            return self._llm.read(name.removeprefix(OF_LLM), rows)
        return self._own.read(name, rows)


# ---- single files ----


def _header(path: Path) -> dict[str, TensorInfo]:
    """Listing of a safetensors file."""
    found = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                piece = file.get_slice(name)
                kind = piece.get_dtype()
                if kind not in _DTYPES:
                    raise CheckpointError(f"{path}: {name} has the number format {kind}")
                found[name] = TensorInfo(tuple(piece.get_shape()), _DTYPES[kind], path.name)
    except (SafetensorError, OSError) as cause:
        raise _not_whole(path, cause) from cause
    return found


def _not_whole(path: Path, cause: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not whole or no safetensors file ({cause}); it has {path.stat().st_size} "
        "bytes; copy or download it again"
    )


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Tensors of a pickle, nested once or not at all."""
    try:
        content: Any = torch.load(
            path,
            map_location="cpu",
            weights_only=True,
            mmap=zipfile.is_zipfile(path),  # files of old versions of torch are no archives
        )
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as cause:
        reason = str(cause).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path} is not whole or holds more than tensors, and nothing else is read from a "
            f"pickle ({reason})"
        ) from cause
    if isinstance(content, Mapping) and not any(isinstance(v, Tensor) for v in content.values()):
        inner = [content[key] for key in _NESTED if isinstance(content.get(key), Mapping)]
        content = inner[0] if inner else content
    strange = (
        [f"{name!r} is a {type(value).__name__}" for name, value in content.items()
         if not isinstance(value, Tensor)]
        if isinstance(content, Mapping)
        else [f"it is a {type(content).__name__}"]
    )  # fmt: skip
    if strange or not content:
        raise CheckpointError(
            f"{path} is no checkpoint, names with tensors: {shown(strange) or 'it is empty'}"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _joined(origin: Path, listings: Iterable[Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """All listings in one.

    Raises:
        CheckpointError: A name is in two of them.
    """
    joined: dict[str, TensorInfo] = {}
    for listing in listings:
        twice = [name for name in listing if name in joined]
        if twice:
            other, file = joined[twice[0]].file, listing[twice[0]].file
            raise CheckpointError(
                f"{origin}: {len(twice)} tensors are in two files, {twice[0]} in {other} and "
                f"{file}; give one file, or an index that says what belongs together"
            )
        joined.update(listing)
    return joined


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name.strip(), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no number format of torch")  # noqa: TRY004 - as of a value
    return found
