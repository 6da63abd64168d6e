"""Finding and loading a frozen model of transformers: from a folder or the hub, never running code
of a checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModel

import tpokit
from tpokit import pretrained
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
    files = list(_DESCRIPTION_FILES)
    for kind in _WEIGHTS:
        files.append(kind)
        folder = pretrained.find_folder(name, "features.model", start, options.revision, files)
        if weight_files(folder):
            break
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
        with pretrained.quiet_transformers(), torch.random.fork_rng(devices=[]):
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
