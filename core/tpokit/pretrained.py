"""Folders of pretrained models, whose loading plugins share, and which weights are in them.

A folder, a folder inside a package and a repository of the hub all become one local folder first;
from there on there is one way. No code of a checkpoint is ever run.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers.utils import logging as transformers_logging

from tpokit.errors import UsageError

PACKAGE = "package://"
"""Before the name of a package and a folder in it."""
_HASHED_WHOLE = 256 * 2**20  # bytes; larger files are hashed in samples
_SAMPLE = 2**20  # bytes
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")
_SMALL_LAYERS, _SMALL_HEADS, _SMALL_HEAD_WIDTH = 2, 4, 16


def find_folder(
    name: str, what: str, start: Path, revision: str | None = None, files: Sequence[str] = ()
) -> Path:
    """The local folder of a model, downloaded if it is on the hub.

    Args:
        name: A folder, ``package://PACKAGE/FOLDER``, or a repository of the hub.
        what: Names it in messages: "backbone model".
        start: A relative folder starts there.
        revision: Branch, tag or commit of a repository.
        files: Patterns of the files to download.

    Raises:
        UsageError: There is no such folder, package or repository.
    """
    if name.startswith(PACKAGE):
        folder = _package_folder(name, what)
    else:
        folder = start / Path(name).expanduser()
        if not folder.is_dir():
            if _REPOSITORY.fullmatch(name) is None:
                raise UsageError(f"{what} {name!r}: there is no folder {folder}")
            return _download(name, what, folder, revision, files)
    if revision is not None:
        raise UsageError(
            f"{what} {name!r} is a local folder, so revision {revision!r} means nothing; leave it "
            "out"
        )
    return folder


def _package_folder(name: str, what: str) -> Path:
    package, _, inner = name.removeprefix(PACKAGE).partition("/")
    try:
        root = importlib.resources.files(package)
    except (ModuleNotFoundError, ValueError, TypeError) as cause:
        raise UsageError(f"{what} {name!r}: the package {package!r} is not installed") from cause
    folder = Path(str(root.joinpath(inner)))
    if not folder.is_dir():
        raise UsageError(f"{what} {name!r}: the package {package!r} has no folder {inner!r}")
    return folder


def _download(
    name: str, what: str, folder: Path, revision: str | None, files: Sequence[str]
) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as cause:
        place = "" if revision is None else f" at revision {revision!r}"
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise UsageError(
            f"{what} {name!r}: there is no folder {folder}, and the hub gives no repository of "
            f"that name{place}: {reason}"
        ) from cause


def small_config(described: Mapping[str, Any], layers: int = _SMALL_LAYERS) -> dict[str, Any]:
    """A configuration of transformer layers, by the names that transformers uses, made small: few
    and narrow layers, all else as it was.

    What is small already stays.

    Args:
        described: A configuration as plain data.
        layers: How many are left at most.
    """
    small = dict(described)
    heads = min(described["num_attention_heads"], _SMALL_HEADS)
    small["num_attention_heads"] = heads
    for name, most in (
        ("hidden_size", heads * _SMALL_HEAD_WIDTH),
        ("intermediate_size", 2 * heads * _SMALL_HEAD_WIDTH),
        ("head_dim", _SMALL_HEAD_WIDTH),
        ("num_hidden_layers", layers),
    ):
        if isinstance(described.get(name), int):
            small[name] = min(described[name], most)
    if isinstance(described.get("num_key_value_heads"), int):
        shared = described["num_key_value_heads"] < described["num_attention_heads"]
        small["num_key_value_heads"] = 1 if shared else heads
    if isinstance(described.get("layer_types"), list):
        small["layer_types"] = described["layer_types"][: small["num_hidden_layers"]]
    return small


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the library's own table and progress bar: what they say becomes one error here."""
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


# ---- which weights these are ----


def revision_of(folder: Path) -> dict[str, str]:
    """``revision``, the commit, of a folder that is a snapshot in the local cache of the hub;
    nothing of any other folder.
    """
    snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return {"revision": folder.name} if snapshot else {}


def hash_of_files(files: list[Path]) -> str:
    """SHA-256 over names and contents of weight files, as hexadecimal digits.

    A file of up to 256 MiB goes in whole; of a larger one its size, its header (names, shapes and
    places of all tensors) and its first and last MiB of data, so that a model of many gigabytes is
    named in moments.
    """
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as stream:
            if size <= _HASHED_WHOLE:
                while block := stream.read(_SAMPLE):
                    digest.update(block)
                continue
            length = stream.read(8)
            digest.update(length + stream.read(struct.unpack("<Q", length)[0]))
            digest.update(stream.read(_SAMPLE))
            stream.seek(size - _SAMPLE)
            digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()


def hash_of_random(description: str, model: nn.Module) -> str:
    """Name of random weights: ``random:`` and SHA-256 over a description (such as a configuration)
    and the first numbers of each parameter, so that another seed is another base.
    """
    digest = hashlib.sha256(description.encode())
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        if not parameter.is_meta:  # a model that is built empty has no numbers
            digest.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return f"random:{digest.hexdigest()}"
