"""Folders and files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tpokit.errors import CheckpointError

_PARTIAL = ".partial"

WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)
"""A full disk is an OSError in Python's own files, a SafetensorError in safetensors and a
RuntimeError in the zip writer of torch.save, which DeepSpeed uses too."""


@contextlib.contextmanager
def whole_folder(folder: Path, kept: Callable[[], str]) -> Iterator[Path]:
    """Write a folder under another name beside it; it gets its own when all of it is on the disk.

    Args:
        folder: Must not exist yet.
        kept: Says what is still there if this fails, for the message.

    Yields:
        An empty folder to write into.

    Raises:
        CheckpointError: It cannot be written; what was written of it is gone again.
    """
    partial = partial_name(folder)
    with writing(folder, partial, kept):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        finish(partial, folder)


@contextlib.contextmanager
def writing(folder: Path, partial: Path, kept: Callable[[], str]) -> Iterator[None]:
    """Take away ``partial`` when something inside fails, and say what that means for ``folder``.

    Raises:
        CheckpointError: Writing failed.
    """
    try:
        yield
    except WRITE_ERRORS as cause:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"cannot save {folder}: {cause}; {kept()}") from cause
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def partial_name(folder: Path) -> Path:
    """Name under which a folder is written."""
    return folder.with_name(f".{folder.name}{_PARTIAL}")


def is_partial(path: Path) -> bool:
    """Whether a path is a leftover of something that was never finished."""
    return path.name.startswith(".") and path.name.endswith(_PARTIAL)


def finish(partial: Path, folder: Path) -> None:
    """Put a written folder on the disk and give it its name."""
    for path in partial.rglob("*"):
        if path.is_file():
            _to_disk(path)
    _to_disk(partial)
    partial.rename(folder)
    _to_disk(folder.parent)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file under another name beside it; it gets its own when all of it is on the disk.

    Yields:
        The name to write under.

    Raises:
        CheckpointError: It cannot be written; what was there before still is.
    """
    partial = partial_name(path)
    try:
        yield partial
        _to_disk(partial)
        partial.replace(path)
    except OSError as cause:
        raise CheckpointError(f"cannot save {path}: {cause}; nothing was changed") from cause
    finally:
        partial.unlink(missing_ok=True)  # if it still has that name


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all.

    Raises:
        CheckpointError: It cannot be written; what was there before still is.
    """
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def _to_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk: a rename may otherwise get there before its
    content.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
