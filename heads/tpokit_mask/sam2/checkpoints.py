"""Reading weights of SAM 2 from a file: nothing of it is run, and what does not fit is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tpokit.errors import CheckpointError
from tpokit_mask.sam2.sizes import RELEASED

_PATCHES = "image_encoder.trunk.patch_embed.proj.weight"
_BLOCKS = "image_encoder.trunk.blocks."
_ONLY_IN_2_1 = "no_obj_embed_spatial"


def load_weights(model: nn.Module, path: Path, size: str) -> None:
    """Load all weights of a model.

    Args:
        model: SAM 2, on any device; weights are taken into its types.
        path: ``.safetensors`` with the names of sam2, or a published ``.pt``, which holds them
            under ``model``.
        size: What the model is, for messages.

    Raises:
        CheckpointError: There is no such file, it is broken or something else, or holds the weights
            of another size.
    """
    if not path.is_file():
        raise CheckpointError(
            f"no file {path}; weights of SAM 2 are a .safetensors, or one as published, such as "
            "sam2.1_hiera_tiny.pt"
        )
    weights = _read(path)
    if _PATCHES not in weights:
        raise CheckpointError(
            f"{path} holds no weights of SAM 2: it lacks {_PATCHES} and begins with "
            f"{', '.join(sorted(weights)[:3]) or 'nothing'}"
        )
    own = model.state_dict()
    problems = [f"lacks {name}" for name in own if name not in weights]
    problems += [f"has {name}, unknown there" for name in weights if name not in own]
    problems += [
        f"has {name} as {list(weights[name].shape)} instead of {list(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        raise CheckpointError(
            f"{path} looks like {_size_of(weights)}, which does not fit {size}: it "
            f"{', '.join(problems[:2])}{f' and {len(problems) - 2} more' * (len(problems) > 2)}"
        )
    model.load_state_dict(weights)


def _read(path: Path) -> Mapping[str, Tensor]:
    """Tensors of a file by name.

    Raises:
        CheckpointError: It cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = {"model": load_file(path)}
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # torch raises anything where bytes are broken
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is broken or no file of weights: {first}") from cause
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        names = ", ".join(map(str, list(content)[:3])) if isinstance(content, dict) else ""
        raise CheckpointError(
            f"{path} is no checkpoint of SAM 2: it must hold the weights under 'model', but is a "
            f"{type(content).__name__}{f' with {names}' if names else ''}"
        )
    return weights


def _size_of(weights: Mapping[str, Tensor]) -> str:
    """Which size weights are of, in words."""
    width = weights[_PATCHES].shape[0]
    blocks = len({name.split(".")[3] for name in weights if name.startswith(_BLOCKS)})
    version = "2.1" if _ONLY_IN_2_1 in weights else "2.0"
    for name, released in RELEASED.items():
        if (released.trunk_width, released.trunk_blocks, released.version) == (
            width,
            blocks,
            version,
        ):
            return name
    return f"a SAM {version} of its own size ({blocks} blocks from {width} channels)"
