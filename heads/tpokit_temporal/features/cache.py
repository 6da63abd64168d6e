"""Features of frozen extractors on disk, so that a video is encoded once.

A file's name is a hash of everything that its numbers follow from: the content of the video, the
part that is meant, the extractor with its weights, and its options. What does not match is not
found; nothing is ever out of date. The folder may be deleted at any time.
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

import tpokit
from tpokit_temporal.features.content import ContentHashes

FORMAT = 1
"""Raised whenever the same options give other numbers than before."""

_ENDING = ".safetensors"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheKey:
    """What features follow from.

    Attributes:
        digest: Short name.
        description: All of it, as JSON.
    """

    digest: str
    description: str


@dataclass(frozen=True)
class CachedClips:
    """Features of one video.

    Attributes:
        clips: ``[l, v]`` float32.
        clip_s: Length of a clip in seconds.
    """

    clips: Tensor
    clip_s: float


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
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder; it is made when something is written.

        Args:
            folder: Need not be there.
        """
        self.folder = folder
        self.hashes = ContentHashes(self.folder / "files.jsonl")
        self._writes = True

    def key(self, media: tpokit.Media, maker: Mapping[str, str | int | float | None]) -> CacheKey:
        """The key of a medium.

        Args:
            media: Read whole, unless it was before.
            maker: Extractor and options.

        Raises:
            OSError: The medium cannot be read.
        """
        description = {
            **maker,
            "format": FORMAT,
            "content": self.hashes.of(media.path),
            "start_s": media.start_s,
            "end_s": media.end_s,
        }
        text = json.dumps(description, sort_keys=True)
        return CacheKey(hashlib.blake2b(text.encode(), digest_size=20).hexdigest(), text)

    def get(self, key: CacheKey) -> CachedClips | None:
        """What was kept, or ``None``."""
        try:
            data = self._path(key).read_bytes()  # at once: the file may be replaced meanwhile
            clips = load(data)["clips"]
            about = _metadata(data)
            if about["key"] != key.description or about["check"] != _check(clips, about["clip_s"]):
                return None
            return CachedClips(clips, float(about["clip_s"]))
        except (OSError, ValueError, KeyError, SafetensorError):
            return None

    def put(self, key: CacheKey, clips: Tensor, clip_s: float) -> None:
        """Keep features ``[l, v]``; never fails."""
        if not self._writes:
            return
        clips = clips.detach().float().cpu().contiguous()
        length = repr(clip_s)
        about = {"key": key.description, "clip_s": length, "check": _check(clips, length)}
        path = self._path(key)
        partial = path.with_name(f".{key.digest}.{uuid.uuid4().hex}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # not synced: after a crash the check tells a file that never reached the disk
            partial.write_bytes(save({"clips": clips}, about))
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

    def _path(self, key: CacheKey) -> Path:
        return self.folder / key.digest[:2] / f"{key.digest}{_ENDING}"


def _metadata(data: bytes) -> dict[str, str]:
    """The texts beside the tensors of a safetensors file, which `load` does not give."""
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return found


def _check(clips: Tensor, clip_s: str) -> str:
    """Hash of all numbers: a header does not tell whether its data are whole."""
    header = f"{clips.dtype} {list(clips.shape)} {clip_s}".encode()
    data = clips.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(header + data, digest_size=16).hexdigest()
