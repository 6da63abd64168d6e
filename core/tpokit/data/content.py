"""Names of files by their content, each file being read for it once."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

_SETTLED_S = 2.0
"""A file that was written so lately could be written again without its time of change moving on
(file systems count it in steps of up to 2 s), so its content is not remembered."""

_State = tuple[int, int]  # size in bytes, time of change in nanoseconds


class ContentHashes:
    """BLAKE2 hashes of files, remembered by path, size and time of change.

    They are kept within the process and, one JSON object a line, in an index file that processes
    share: each appends whole lines and reads what others appended. A line that is torn or foreign
    is as good as none.
    """

    def __init__(self, index: Path | None) -> None:
        """Start without reading anything.

        Args:
            index: The index file; ``None`` to remember within the process only.
        """
        self._index = index
        self._read_up_to = 0
        self._known: dict[str, tuple[_State, str]] = {}

    def of(self, path: Path) -> str:
        """Hash of a file, 32 hexadecimal digits.

        Raises:
            OSError: It cannot be read.
        """
        name = str(path.resolve())
        state = _state(path)
        found = self._known.get(name)
        if found is None or found[0] != state:
            self._read_index()
            found = self._known.get(name)
        if found is not None and found[0] == state:
            return found[1]
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, _blake2b).hexdigest()
        if _state(path) == state and time.time() - state[1] / 1e9 > _SETTLED_S:
            self._remember(name, state, digest)
        return digest

    def of_all(self, paths: Sequence[Path]) -> str:
        """One hash over names (without folders) and contents of several files.

        Raises:
            OSError: One cannot be read.
        """
        digest = _blake2b()
        for path in sorted(paths, key=lambda path: path.name):
            digest.update(f"{path.name}:{self.of(path)}\n".encode())
        return digest.hexdigest()

    def _remember(self, name: str, state: _State, digest: str) -> None:
        self._known[name] = state, digest
        if self._index is None:
            return
        line = json.dumps({"path": name, "size": state[0], "mtime_ns": state[1], "hash": digest})
        try:
            self._index.parent.mkdir(parents=True, exist_ok=True)
            with self._index.open("ab", buffering=0) as stream:  # one write, so lines do not mix
                stream.write(f"{line}\n".encode())
        except OSError:
            self._index = None  # a full or read-only disk: the process still remembers

    def _read_index(self) -> None:
        """Take in the lines that were appended since the last time."""
        if self._index is None:
            return
        try:
            with self._index.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size < self._read_up_to:
                    self._read_up_to = 0  # somebody emptied the folder
                stream.seek(self._read_up_to)
                lines = stream.read().splitlines(keepends=True)
        except OSError:
            return
        for line in lines:
            if line.endswith(b"\n"):
                self._read_up_to += len(line)
                self._take_in(line)

    def _take_in(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            state = int(entry["size"]), int(entry["mtime_ns"])
            self._known[str(entry["path"])] = state, str(entry["hash"])
        except (ValueError, KeyError, TypeError):
            return


def _state(path: Path) -> _State:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _blake2b() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)
