"""Finding and loading a frozen model of transformers: from a folder or the hub, never running code
of a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

import tpokit
from tpokit_temporal.features.options import EncoderFeatures

_DESCRIPTION_FILES = ("*.json", "*.txt", "*.model")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Kinds of weight files, better ones first; of the second only tensors are unpickled."""


def find_folder(options: EncoderFeatures, start: Path) -> Path:
    """The local folder of the model that the options name, downloaded if it is on the hub.

    Args:
        options: ``model`` and ``revision`` are read.
        start: A relative folder starts there.

    Raises:
        UsageError: There is no such folder or repository, or no weights in it.
    """
    name = options.model
    folder = start / Path(name).expanduser()
    if not folder.is_dir():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None or name.startswith("."):
            raise tpokit.UsageError(f"features.model {name!r}: there is no folder {folder}")
        folder = _download(options, folder)
    elif options.revision is not None:
        raise tpokit.UsageError(
            f"features.model {name!r} is a local folder, so revision {options.revision!r} means "
            "nothing; leave it out"
        )
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise tpokit.UsageError(
            f"features.model {name!r}: {folder} must hold config.json and weights "
            f"({' or '.join(_WEIGHTS)}), as save_pretrained writes them"
        )
    return folder


def weight_files(folder: Path) -> list[Path]:
    """Files with weights of the better kind that is there, sorted by name."""
    for kind in _WEIGHTS:
        found = sorted(folder.glob(kind))
        if found:
            return found
    return []


def load_frozen(folder: Path, options: EncoderFeatures) -> Any:
    """The model of a folder, for inference only: no parameter takes a gradient.

    Raises:
        CheckpointError: Its weights do not fit or are not all there.
    """
    try:
        # what transformers draws for missing weights must not move the global generator
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            model, report = AutoModel.from_pretrained(
                folder,
                dtype=options.dtype,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported below, by name
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as cause:
        raise tpokit.CheckpointError(
            f"features.model {options.model!r} cannot be loaded from {folder}: {cause}"
        ) from cause
    lacking = sorted(report["missing_keys"])
    lacking += sorted(name for name, *_ in report["mismatched_keys"])
    if lacking:
        shown = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        raise tpokit.CheckpointError(
            f"features.model {options.model!r}: the weights in {folder} lack {shown} "
            f"({len(lacking)} in all, or of another size); random weights would take their place"
        )
    return model.eval().requires_grad_(False)


def _download(options: EncoderFeatures, folder: Path) -> Path:
    wanted = list(_DESCRIPTION_FILES)
    try:
        for kind in _WEIGHTS:
            wanted.append(kind)
            found = Path(
                snapshot_download(options.model, revision=options.revision, allow_patterns=wanted)
            )
            if weight_files(found):
                break
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as cause:
        revision = "" if options.revision is None else f" at revision {options.revision!r}"
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise tpokit.UsageError(
            f"features.model {options.model!r}: there is no folder {folder}, and the hub gives no "
            f"repository of that name{revision}: {reason}"
        ) from cause
    return found


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
