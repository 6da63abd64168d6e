"""Arrays in ``.npz``, ``.npy`` and ``.safetensors`` files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

import tpokit


@dataclass(frozen=True)
class ArrayFile:
    """One file and what is looked for in it.

    Attributes:
        path: The file.
        key: Name of the array; ``None``: the only one, or one of ``usual``.
        usual: Names that are taken without being asked for, best first.
        where: The sample, for messages.
    """

    path: Path
    key: str | None
    usual: Sequence[str]
    where: str

    def read(self) -> np.ndarray:
        """The array, mapped into memory where the format allows.

        Raises:
            DataError: The file cannot be read, has no such array, or not of numbers.
        """
        try:
            array = self._read()
        except (OSError, EOFError, ValueError) as cause:
            raise self._unreadable(cause) from cause
        except (zipfile.BadZipFile, zlib.error, SafetensorError) as cause:
            raise self._unreadable(cause) from cause
        if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
            raise tpokit.DataError(f"{self} holds {array.dtype} instead of real numbers")
        return array

    def rows(self, array: np.ndarray, part: slice) -> np.ndarray:
        """Some rows of what `read` gave, ``[l, w]`` float32, in memory.

        Raises:
            DataError: A number is not finite.
        """
        rows = np.array(array[part], dtype=np.float32)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            first = int(np.argmin(finite)) + (part.start or 0)
            raise tpokit.DataError(
                f"{self}: row {first} has a number that is not finite; extract the features again"
            )
        return rows

    def check_shape(self, array: np.ndarray, width: int, row: str) -> None:
        """Rows of the right width, at least one.

        Args:
            array: What `read` gave.
            width: What the recipe promises.
            row: What a row is, for the message.

        Raises:
            DataError: Another shape.
        """
        shape = list(array.shape)
        if array.ndim != 2:
            raise tpokit.DataError(
                f"{self} has the shape {shape}; it must be [{row}s, {width}], a row for each {row}"
            )
        if shape[1] != width:
            raise tpokit.DataError(
                f"{self} has {shape[1]} numbers a {row}, but the recipe says width: {width}"
            )
        if not shape[0]:
            raise tpokit.DataError(f"{self} is empty; it needs at least one {row}")

    def __str__(self) -> str:
        return f"{self.where}: {self.path}"

    def _read(self) -> np.ndarray:
        if self.path.suffix == ".npy":
            array: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
            return array
        if self.path.suffix == ".npz":
            with np.load(self.path, allow_pickle=False) as archive:
                return np.asarray(archive[self._key(archive.files)])
        with safe_open(self.path, framework="pt") as tensors:  # numpy has no bfloat16, torch has
            tensor = tensors.get_tensor(self._key(list(tensors.keys())))
        return np.asarray(tensor.float() if tensor.is_floating_point() else tensor)

    def _key(self, names: Sequence[str]) -> str:
        held = ", ".join(sorted(names)) or "nothing"
        if self.key is not None:
            if self.key not in names:
                raise tpokit.DataError(f"{self} has no array {self.key!r}; it holds {held}")
            return self.key
        for name in self.usual:
            if name in names:
                return name
        if len(names) != 1:
            raise tpokit.DataError(f"{self} holds {held}; say with 'key' which one is meant")
        return names[0]

    def _unreadable(self, cause: Exception) -> tpokit.DataError:
        if isinstance(cause, FileNotFoundError):
            return tpokit.DataError(f"{self.where}: there is no file {self.path}")
        kind = self.path.suffix
        return tpokit.DataError(f"{self} cannot be read as {kind}: {cause}")
