"""Files of a VideoChat2 model in our format: finding, reading, writing and naming its weights.

Weights go by their names in `tpokit_videochat2.backbone.VideoChat2Backbone`. Only safetensors are
read, and no code of a checkpoint is ever run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tpokit import pretrained
from tpokit.connectors import DESCRIPTION_FILE
from tpokit.errors import CheckpointError
from tpokit_videochat2.options import VideoChat2Options

_DESCRIPTION_FILES = ("*.json", "*.model", "*.txt")


def find_folder(options: VideoChat2Options, recipe_folder: Path) -> Path:
    """The local folder of the model that the options name, downloaded if it is on the hub.

    Raises:
        UsageError: There is no such folder, package or repository.
    """
    files = list(_DESCRIPTION_FILES)
    if options.weights == "pretrained":
        files.append("*.safetensors")
    return pretrained.find_folder(
        options.model, "backbone model", recipe_folder, options.revision, files
    )


def fill(model: nn.Module, folder: Path, dtype: torch.dtype | None, skipped: str = "") -> None:
    """Put the weights of a folder into a model whose parameters are on the meta device.

    Args:
        model: Changed in place; tensors are read one by one.
        folder: With ``*.safetensors``.
        dtype: Of the parameters; ``None``: as in the files.
        skipped: Names that begin so are left alone, in the files and in the model.

    Raises:
        CheckpointError: There are no weights, a file is not whole, or names or shapes do not fit.
    """
    files = weight_files(folder)
    if not files:
        raise CheckpointError(
            f"backbone model: {folder} has no weights (*.safetensors); give a folder with weights, "
            "or set weights: random"
        )
    wanted = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not (skipped and name.startswith(skipped))
    }
    there = {
        name: place for name, place in _places(files) if not (skipped and name.startswith(skipped))
    }
    _compare(folder, wanted, there)
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if name in wanted:
                    tensor = file.get_tensor(name)
                    _replace(model, name, tensor if dtype is None else tensor.to(dtype))


def _places(files: list[Path]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors."""
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    yield name, tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as cause:
            raise CheckpointError(
                f"{path} is not whole ({cause}); it was cut short or changed after it was written"
            ) from cause


def _compare(
    folder: Path, wanted: Mapping[str, Tensor], there: Mapping[str, tuple[int, ...]]
) -> None:
    problems = [f"lack {name}" for name in wanted if name not in there]
    problems += [f"hold the unknown {name}" for name in there if name not in wanted]
    problems += [
        f"have {name} as {list(there[name])} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in there and there[name] != tuple(tensor.shape)
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        if (folder / DESCRIPTION_FILE).is_file():
            more += (
                f"; it was saved with another connector ({DESCRIPTION_FILE}): a recipe must name it"
            )
        raise CheckpointError(
            f"the weights in {folder} do not fit its configuration: they "
            f"{'; '.join(problems[:3])}{more}"
        )


def _replace(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    module.register_parameter(last, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))


def write_weights(model: nn.Module, folder: Path, skipped: str = "") -> None:
    """Write the parameters of a model, in shards of at most 5 GB with an index.

    Args:
        model: With whole parameters.
        folder: Exists.
        skipped: Names that begin so are left out.

    Raises:
        CheckpointError: They cannot be written.
    """
    state = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if not (skipped and name.startswith(skipped))
    }
    try:
        save_torch_state_dict(state, folder, max_shard_size="5GB")
    except OSError as cause:
        raise CheckpointError(f"{folder} cannot be written: {cause}") from cause


# ---- which weights these are ----


def dtype_of(path: Path) -> torch.dtype | None:
    """Number format of the first tensor of a file; ``None`` if there is none."""
    try:
        with safe_open(path, "pt") as file:
            return next((file.get_tensor(name).dtype for name in file.keys()), None)  # noqa: SIM118
    except (SafetensorError, OSError):
        return None  # what is wrong with it is said when it is read whole


def weight_files(folder: Path) -> list[Path]:
    """Files with weights, sorted by name."""
    return sorted(folder.glob("model*.safetensors"))
