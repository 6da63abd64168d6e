"""Tensors that frozen networks make of media, on disk, so that a medium is encoded once.

A file's name is a hash of everything that its numbers follow from: the content of the medium, the
part that is meant, the network with its weights, and its options. What does not match is not found;
nothing is ever out of date. The folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tpokit.data.content import ContentHashes
from tpokit.data.frame_folder import SUFFIXES
from tpokit.types import Media

_ENDING = ".safetensors"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheKey:
    """What tensors follow from.

    Attributes:
        digest: Short name.
        description: All of it, as JSON.
    """

    digest: str
    description: str


@dataclass(frozen=True)
class CachedFeatures:
    """What was kept under a key.

    Attributes:
        tensors: By name, on the CPU, in the number formats in which they were put.
        facts: Texts that were put beside them.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, str]


@dataclass(frozen=True)
class CacheSize:
    """How much a cache holds: ``files`` and ``size_bytes`` in ``folder``."""

    folder: Path
    files: int
    size_bytes: int

    def __str__(self) -> str:
        plural = "" if self.files == 1 else "s"
        return f"{self.folder}: {self.files} file{plural}, {self.size_bytes / 1e6:.1f} MB"


class FeatureCache:
    """A folder of safetensors files.

    Safe for several processes: a file appears under its name when it is whole. One that is cut off,
    changed or foreign counts as absent. When the disk cannot take a file there is one warning, and
    from then on nothing is written.

    Attributes:
        folder: Where the files are; several caches may share it.
        hashes: Names of files by content, remembered in the folder.
    """

    def __init__(self, folder: Path, format: int) -> None:
        """Name the folder; it is made when something is written.

        Args:
            folder: Need not be there.
            format: Raised by the owner whenever the same options give other numbers than before.
        """
        self.folder = folder
        self.hashes = ContentHashes(self.folder / "files.jsonl")
        self._format = format
        self._writes = True

    def key(self, media: Media, maker: Mapping[str, str | int | float | None]) -> CacheKey:
        """The key of a medium.

        Args:
            media: Read whole, unless it was before. Of a folder of frames all of them count, with
                their names and rate.
            maker: Network, weights and options; what is made of a single frame names that, too.

        Raises:
            OSError: The medium cannot be read.
        """
        description = {
            "maker": dict(maker),
            "format": self._format,
            "content": self._content(media.path),
            "start_s": media.start_s,
            "end_s": media.end_s,
            "rate": media.rate,
        }
        text = json.dumps(description, sort_keys=True)
        return CacheKey(hashlib.blake2b(text.encode(), digest_size=20).hexdigest(), text)

    def has(self, key: CacheKey) -> bool:
        """Whether there is a file; only `get` finds out whether it is whole."""
        return self._path(key).is_file()

    def get(self, key: CacheKey) -> CachedFeatures | None:
        """What was kept, or ``None``."""
        try:
            data = self._path(key).read_bytes()  # at once: the file may be replaced meanwhile
            tensors = load(data)
            about = _metadata(data)
            if about["key"] != key.description or about["check"] != _check(tensors, about["facts"]):
                return None
            return CachedFeatures(tensors, json.loads(about["facts"]))
        except (OSError, ValueError, KeyError, SafetensorError):
            return None

    def put(
        self, key: CacheKey, tensors: Mapping[str, Tensor], facts: Mapping[str, str] = {}
    ) -> None:
        """Keep tensors, whatever their number formats, and texts beside them; never fails."""
        if not self._writes:
            return
        # copies of their own: safetensors refuses tensors that lie over each other
        kept = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        beside = json.dumps(dict(facts), sort_keys=True)
        about = {"key": key.description, "facts": beside, "check": _check(kept, beside)}
        path = self._path(key)
        partial = path.with_name(f".{key.digest}.{uuid.uuid4().hex}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # not synced: after a crash the check tells a file that never reached the disk
            partial.write_bytes(save(kept, about))
            partial.replace(path)
        except OSError as cause:
            self._writes = False
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            _log.warning(
                "features cannot be kept in %s (%s); they are worked out anew each time",
                self.folder,
                cause,
            )

    def size(self) -> CacheSize:
        """How much the folder holds now, leftovers of killed processes included."""
        sizes = []
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process may tidy up
                if path.is_file():
                    sizes.append(path.stat().st_size)
        return CacheSize(self.folder, len(sizes), sum(sizes))

    def _content(self, path: Path) -> str:
        if not path.is_dir():
            return self.hashes.of(path)
        frames = [inside for inside in path.iterdir() if inside.name.lower().endswith(SUFFIXES)]
        return self.hashes.of_all(frames)

    def _path(self, key: CacheKey) -> Path:
        return self.folder / key.digest[:2] / f"{key.digest}{_ENDING}"


def _metadata(data: bytes) -> dict[str, str]:
    """The texts beside the tensors of a safetensors file, which `load` does not give."""
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return found


def _check(tensors: Mapping[str, Tensor], facts: str) -> str:
    """Hash of all that is kept: a header does not tell whether its data are whole.

    It takes most of the time of a `get`, 1 to 2 ms for a megabyte.
    """
    digest = hashlib.blake2b(facts.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)  # no copy
    return digest.hexdigest()
