"""Finding published weights: a folder, a file or an index becomes a `Source`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tpokit.errors import CheckpointError, UsageError
from tpokit.weights.report import shown
from tpokit.weights.sources import Listing, PickleSource, SafetensorsSource, Source

_PICKLES = (".bin", ".pth", ".pt")
_INDEX = ".index.json"
_WHOLE = {"model.safetensors", "pytorch_model.bin"}
"""Files that transformers writes a whole model into; others beside one are something else."""
_NO_WEIGHTS = {"training_args.bin", "optimizer.pt", "scheduler.pt"}
"""Pickles that transformers' Trainer writes beside weights."""


def open_source(path: Path, weights_only: bool = False, listing: bool = False) -> Source:
    """What is published in a folder or a file.

    Args:
        path: A folder, a file of safetensors, a pickle, or an index. In a folder an index counts
            first, then ``model.safetensors``, then all other safetensors together, and pickles last
            in the same order.
        weights_only: Read pickles, tensors only.
        listing: Take a JSON listing, too (see `Listing`).

    Raises:
        UsageError: There is nothing of that name, it is no checkpoint, or it is a pickle and
            ``weights_only`` was not asked for.
        CheckpointError: It is not whole; names the file.
    """
    if path.is_dir():
        return _open_folder(path, weights_only)
    if not path.is_file():
        raise UsageError(f"there is no file or folder {path}")
    if path.name.endswith(_INDEX):
        return _open_index(path, weights_only)
    if path.suffix == ".json" and listing:
        return Listing(path)
    if path.suffix == ".json":
        raise UsageError(f"{path} lists tensors at best and has none; it will do for --dry-run")
    if path.suffix != ".safetensors" and path.suffix not in _PICKLES:
        raise UsageError(
            f"{path} is no checkpoint by its name; give a folder, an index (*{_INDEX}), or a file "
            f"*.safetensors, *{', *'.join(_PICKLES)}"
        )
    return _open_files(path, [path], weights_only)


def _open_folder(folder: Path, weights_only: bool) -> Source:
    for ending in (".safetensors", ".bin"):
        indices = sorted(folder.glob(f"*{ending}{_INDEX}"))
        if len(indices) > 1:
            names = " and ".join(path.name for path in indices)
            raise UsageError(f"{folder} has several indices, {names}; give one of them")
        if indices:
            return _open_index(indices[0], weights_only)
        files = sorted(folder.glob(f"*{ending}"))
        if ending in _PICKLES:
            files = sorted(path for path in folder.iterdir() if path.suffix in _PICKLES)
        files = [path for path in files if path.name not in _NO_WEIGHTS]
        whole = [path for path in files if path.name in _WHOLE]
        if files:
            return _open_files(folder, whole or files, weights_only)
    raise UsageError(f"{folder} has no weights: no *.safetensors and no *{', *'.join(_PICKLES)}")


def _open_files(origin: Path, files: list[Path], weights_only: bool) -> Source:
    pickles = [path for path in files if path.suffix in _PICKLES]
    if not pickles:
        return SafetensorsSource(origin, files)
    if not weights_only:
        raise UsageError(
            f"{pickles[0]} is a pickle, which can run any code while it is read; with "
            "--weights-only tensors are read from it and all else is refused"
        )
    return PickleSource(origin, pickles)


def _open_index(index: Path, weights_only: bool) -> Source:
    """Files of an index, which must hold exactly what it says."""
    try:
        places: dict[str, str] = dict(
            json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise CheckpointError(
            f"{index} is no index of weights: {type(cause).__name__}: {cause}"
        ) from cause
    counts = Counter(places.values())
    missing = [shard for shard in sorted(counts) if not (index.parent / shard).is_file()]
    if missing:
        lost = ", ".join(f"{shard} ({counts[shard]} tensors)" for shard in missing)
        raise CheckpointError(
            f"{index.parent}: files are missing that {index.name} names: {lost}, of "
            f"{len(places)} tensors in {len(counts)} files"
        )
    source = _open_files(index, [index.parent / shard for shard in sorted(counts)], weights_only)
    found = {name: info.file for name, info in source.tensors.items()}
    lacking = [name for name, shard in places.items() if found.get(name) != shard]
    extra = [name for name in found if name not in places]
    if lacking or extra:
        raise CheckpointError(
            f"{index} and its files do not fit together: "
            + "; ".join(
                f"{len(names)} tensors {what}: {shown(names)}"
                for names, what in (
                    (lacking, "are not in the files that it names for them"),
                    (extra, "are in the files and not in it"),
                )
                if names
            )
        )
    return source
