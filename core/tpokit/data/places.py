"""Places of the entries in large files: found once, then kept on disk.

To find the lines of a gigabyte takes seconds, the entries of a JSON list longer, and every rank of
every run would do it again. What was found of a file lies in ``~/.cache/tpokit/places``, in a file
of numbers that is mapped into memory: opening it takes no time, and processes of a machine share
the memory. It counts as long as the file has the size and time of change that it had. The folder
may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpokit.atomic import whole_file
from tpokit.errors import CheckpointError

FOLDER = Path("~/.cache/tpokit/places")
"""Where places are kept."""
KEPT_BYTES = 1 << 24
"""Files below this size are gone through each time: that is as quick."""
_FORMAT = 1
_NUMBER = np.dtype("<i8")
_HEAD = 5  # numbers in front: format, size and time of change of the file, rows, columns
_SETTLED_S = 2.0
"""A file that was written so lately could be written again without its time of change moving on
(file systems count it in steps of up to 2 s), so its places are not kept."""
_NOT_KEPT = "places of entries cannot be kept in %s (%s); they are looked for at each start"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _State:
    """By which a file is known to be the same: size in bytes, time of change in nanoseconds."""

    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> _State:
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


def places_in(path: Path, kind: str, find: Callable[[Path], np.ndarray]) -> np.ndarray:
    """Places in a file, as ``find`` gives them or gave them before.

    Of several processes that ask at once, on machines that share the home folder or on one, a
    single one goes through the file and the others wait for it: outside of any collective, so that
    no time-out of one is spent. Where the folder cannot be written, each process does it alone.

    Args:
        path: The file.
        kind: Name and version of what ``find`` finds.
        find: Finds it: whole numbers ``[rows, columns]``.

    Raises:
        OSError: The file cannot be read.
    """
    state = _State.of(path)
    if state.size < KEPT_BYTES:
        return find(path)
    name = hashlib.blake2b(f"{kind}\n{path.resolve()}".encode(), digest_size=16).hexdigest()
    kept = FOLDER.expanduser() / f"{name}.places"
    found = _opened(kept, state)
    if found is not None:
        return found
    with _alone(kept) as can_keep:
        found = _opened(kept, state)  # another process may have kept them meanwhile
        if found is None:
            found = find(path).astype(_NUMBER, copy=False)
            settled = time.time() - state.changed_ns / 1e9 > _SETTLED_S
            if can_keep and settled and _State.of(path) == state:
                _keep(kept, state, found)
    return found


def _opened(kept: Path, state: _State) -> np.ndarray | None:
    """What was kept for a file in this state; whatever does not fit is as good as nothing."""
    try:
        head = np.fromfile(kept, _NUMBER, _HEAD)
        if head[:3].tolist() != [_FORMAT, state.size, state.changed_ns]:
            return None
        shape = (int(head[3]), int(head[4]))
        if kept.stat().st_size != (_HEAD + shape[0] * shape[1]) * _NUMBER.itemsize:
            return None
        mapped = np.memmap(kept, _NUMBER, "r", _HEAD * _NUMBER.itemsize, shape)
    except (OSError, ValueError, IndexError):
        return None
    return np.asarray(mapped)  # still mapped; a single number of a memmap takes far longer


def _keep(kept: Path, state: _State, found: np.ndarray) -> None:
    head = np.array([_FORMAT, state.size, state.changed_ns, *found.shape], _NUMBER)
    try:
        with whole_file(kept) as partial, partial.open("wb") as file:
            file.write(head.tobytes())
            file.write(found.tobytes())
    except CheckpointError as cause:
        _log.warning(_NOT_KEPT, kept.parent, cause)


@contextlib.contextmanager
def _alone(kept: Path) -> Iterator[bool]:
    """Wait until no other process looks for the same places; the lock of one that dies is free.

    Yields:
        Whether they can be kept: there is a folder, and it has locks.
    """
    lock = None
    can_keep = False
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(kept.with_suffix(".lock"), os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        can_keep = True
    except OSError as cause:
        _log.warning(_NOT_KEPT, kept.parent, cause)
    try:
        yield can_keep
    finally:
        if lock is not None:
            os.close(lock)
