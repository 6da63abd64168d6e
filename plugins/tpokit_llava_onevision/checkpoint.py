"""Finding, loading and naming the weights of a LLaVA-OneVision model.

A hub repository, a folder and a folder inside a package all become one local folder first; from
there on there is one way. Only safetensors are read, and no code of a checkpoint is ever run.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)

import tpokit
from tpokit import pretrained
from tpokit.attention import chosen_attention
from tpokit_llava_onevision.options import LlavaOnevisionOptions
from tpokit_llava_onevision.start import balance

MODEL_TYPE = "llava_onevision"
_DESCRIPTION_FILES = ("*.json", "*.jinja", "*.txt", "*.model")


def find_folder(options: LlavaOnevisionOptions, recipe_folder: Path) -> Path:
    """The local folder of the model that the options name, downloaded if it is on the hub.

    Args:
        options: ``model``, ``revision`` and ``weights`` are read.
        recipe_folder: Relative paths are relative to it.

    Raises:
        UsageError: There is no such folder, package or repository.
    """
    files = list(_DESCRIPTION_FILES)
    if options.weights == "pretrained":
        files.append("*.safetensors")
    name, revision = options.model, options.revision
    return pretrained.find_folder(name, "backbone model", recipe_folder, revision, files)


def read_config(folder: Path, name: str) -> LlavaOnevisionConfig:
    """The configuration in a folder.

    Raises:
        CheckpointError: There is none, or it is that of another class of models.
    """
    path = folder / "config.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise tpokit.CheckpointError(
            f"backbone model {name!r}: {folder} has no config.json; it must be a folder written by "
            "save_pretrained"
        ) from cause
    except (OSError, ValueError) as cause:
        raise tpokit.CheckpointError(f"{path} cannot be read: {cause}") from cause
    found = described.get("model_type") if isinstance(described, dict) else None
    if found != MODEL_TYPE:
        raise tpokit.CheckpointError(
            f"backbone model {name!r} is of the class {found!r} ({path}); this backbone loads "
            f"{MODEL_TYPE!r} only"
        )
    config = LlavaOnevisionConfig.from_pretrained(folder)
    rows = config.text_config.vocab_size
    for kind in ("image", "video"):
        token = getattr(config, f"{kind}_token_id")
        if token >= rows:
            raise tpokit.CheckpointError(
                f"{path}: the {kind} token has id {token}, but the word table ends at {rows - 1}"
            )
    if config.vision_feature_select_strategy != "full":
        raise tpokit.CheckpointError(
            f"{path}: vision_feature_select_strategy is {config.vision_feature_select_strategy!r}; "
            "SigLIP has no class token to leave out, so it must be 'full'"
        )
    return config


def load_model(
    folder: Path, config: LlavaOnevisionConfig, options: LlavaOnevisionOptions
) -> LlavaOnevisionForConditionalGeneration:
    """The model of a folder, with its weights or random ones.

    Random weights come from torch's generator as the caller has seeded it.

    Raises:
        CheckpointError: There are no weights, or they do not fit the configuration.
        UsageError: The attention implementation is not installed.
    """
    named = getattr(config, "dtype", None) if options.dtype == "auto" else options.dtype
    dtype = getattr(torch, named) if isinstance(named, str) else named or torch.float32
    attention = chosen_attention(options.attention, dtype)
    try:
        with pretrained.quiet_transformers():
            if options.weights == "pretrained":
                return _load_pretrained(folder, options, attention)
            model = AutoModelForImageTextToText.from_config(
                config, dtype=dtype, attn_implementation=attention
            )
            if options.start == "balanced":
                balance(model)
            return model
    except ImportError as cause:
        raise tpokit.UsageError(f"attention {attention!r} cannot be used here: {cause}") from cause


def _load_pretrained(
    folder: Path, options: LlavaOnevisionOptions, attention: str
) -> LlavaOnevisionForConditionalGeneration:
    if not weight_files(folder):
        raise tpokit.CheckpointError(
            f"backbone model {options.model!r}: {folder} has no weights (*.safetensors); give a "
            "folder with weights, or set weights: random"
        )
    try:
        # mismatched sizes are let through here, because the report names them one by one
        model, report = LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder,
            dtype=options.dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as cause:
        raise tpokit.CheckpointError(
            f"backbone model {options.model!r}: the weights in {folder} cannot be loaded: {cause}"
        ) from cause
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, found, wanted = mismatched[0]
        more = f" ({len(mismatched) - 1} more do not fit)" if len(mismatched) > 1 else ""
        raise tpokit.CheckpointError(
            f"backbone model {options.model!r}: weights of another width: {name} is "
            f"{list(found)} in the file, but config.json makes it {list(wanted)}{more}"
        )
    for kind, verb in (("missing_keys", "lack"), ("unexpected_keys", "hold the unknown")):
        names = sorted(report[kind])
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise tpokit.CheckpointError(
                f"backbone model {options.model!r}: the weights in {folder} {verb} {shown} "
                f"({len(names)} in all)"
            )
    return model


# ---- which weights these are ----


def weight_files(folder: Path) -> list[Path]:
    """Files with weights, sorted by name."""
    return sorted(folder.glob("*.safetensors"))
