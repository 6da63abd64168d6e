"""Saved models: a folder with the recipe, what was trained, and the base by name and hash.

::

    assign/
      recipe.yaml               as resolved
      model.json                base, stage, modes, task tokens, versions, files
      bridge.safetensors        always
      region.safetensors        each head, by task, always
      llm-lora.safetensors      adapters, once a stage has trained them
      llm.safetensors, connector.safetensors, vision.safetensors    once a stage has trained them in
      full

Frozen weights are never saved. A tensor goes by its full name in the model.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tpokit.atomic import whole_folder
from tpokit.checkpoints.tensors import declared_shape, file_tensors
from tpokit.errors import CheckpointError
from tpokit.lora import add_lora, has_lora
from tpokit.model import TpoModel, build_model
from tpokit.recipe import Recipe, StageEntry, load_recipe

if TYPE_CHECKING:
    from tpokit.plugins import Plugins

FORMAT = 1
"""Version of the folder's layout."""
RUN_FILE = "run.json"
MODEL_FILE = "model.json"
RECIPE_FILE = "recipe.yaml"
LORA = "llm-lora"
"""Name of the file with adapters."""


# ---- writing ----


def files_of(
    model: TpoModel, recipe: Recipe, stage: StageEntry, started: Collection[str] = ()
) -> list[str]:
    """Names of the files that hold all that was trained up to a stage, sorted; without
    ``.safetensors``. A part of which a stage trains only some parameters is saved whole.

    Args:
        model, recipe: Of the run.
        stage: The last one that was trained.
        started: Names of the files of the saved model that the stage started from.
    """
    names = {"bridge", *model.heads, *(name for name in started if name != LORA)}
    for done in recipe.stages[: recipe.stages.index(stage) + 1]:
        names |= {part for part, mode in done.modes.items() if mode == "full"}
    if has_lora(model.backbone):
        names.add(LORA)
    return sorted(names)


def save_model(
    model: TpoModel,
    recipe: Recipe,
    folder: Path,
    stage: StageEntry,
    base: Mapping[str, str],
    state: Mapping[str, Tensor] | None = None,
    kept: Callable[[], str] = lambda: "what was saved before is untouched",
    started: Collection[str] = (),
) -> None:
    """Write a saved model, whole or not at all.

    Args:
        model: With its task tokens.
        recipe: Written as resolved.
        folder: Must not exist.
        stage: The last stage that was trained.
        base: What the backbone's ``identity`` said before training.
        state: Whole tensors by name, gathered by `trained_state`; default: those of the model
            itself.
        kept: Says what is there to go on from if this fails.
        started: See `files_of`.

    Raises:
        CheckpointError: It cannot be written, or a tensor is not whole.
    """
    about = {
        "base": dict(base),
        "stage": stage.name,
        "modes": stage.modes,
    }
    files = files_of(model, recipe, stage, started)
    with whole_folder(folder, kept) as partial:
        fill_model(model, partial, recipe.dump(), files, about, state)


def fill_model(
    model: TpoModel,
    folder: Path,
    recipe_text: str,
    files: Sequence[str],
    about: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write ``recipe.yaml``, ``model.json`` and the named files of tensors into a folder."""
    (folder / RECIPE_FILE).write_text(recipe_text, encoding="utf-8")
    content = {
        "format": FORMAT,
        **about,
        "tokens": list(model.tokens.ids),
        "files": list(files),
        "versions": _versions(model),
    }
    (folder / MODEL_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in files:
        wanted = file_tensors(model, name)
        found = {key: (state or {}).get(key, tensor) for key, tensor in wanted.items()}
        path = folder / f"{name}.safetensors"
        save_file({key: tensor.detach().contiguous() for key, tensor in found.items()}, path)
        read_tensors(path, wanted)  # what is on the disk must fit before anything relies on it


def _versions(model: TpoModel) -> dict[str, str]:
    """Versions of what a saved model depends on: tpokit, its plugins, the libraries under it."""
    owners = _owners()
    modules = {type(part).__module__ for part in (model.backbone, *model.heads.values())}
    plugins = {name for module in modules for name in owners.get(module.partition(".")[0], ())}
    names = sorted({"tpokit", "torch", "transformers", "peft", *plugins})
    return {name: importlib.metadata.version(name) for name in names}


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    """Top-level module to the distributions that have it; looking through all of them takes half a
    second.
    """
    return importlib.metadata.packages_distributions()


# ---- reading ----


def load_model(folder: Path | str, plugins: Plugins | None = None) -> TpoModel:
    """Load a saved model in evaluation mode.

    Args:
        folder: Of a run (its last finished stage is loaded), of one stage, or of a merged model.
        plugins: Where names are looked up; default: what is installed and the recipe's registry.

    Raises:
        CheckpointError: It is no saved model, is not whole, or does not fit the base model; names
            the tensor and both shapes, or both hashes.
    """
    from tpokit.plugins import Plugins

    folder = saved_folder(Path(folder))
    recipe = saved_recipe(folder, plugins=plugins)
    plugins = plugins or Plugins.load(recipe.registry_path)
    model = build_model(recipe, plugins)
    load_weights(model, recipe, folder)
    model.requires_grad_(False)
    return model.eval()


def saved_recipe(
    folder: Path, overrides: Sequence[str] = (), plugins: Plugins | None = None
) -> Recipe:
    """The recipe of a saved model or run; it need not say how the model was trained."""
    path = saved_folder(Path(folder)) / RECIPE_FILE
    return load_recipe(path, overrides, plugins, model_only=True)


def saved_folder(folder: Path) -> Path:
    """The folder of the model itself: that of the last finished stage of a run.

    Raises:
        CheckpointError: There is none.
    """
    if (folder / MODEL_FILE).is_file():
        return folder
    if not (folder / RUN_FILE).is_file():
        raise CheckpointError(
            f"{folder} is no saved model: it has neither {MODEL_FILE} (a stage, a merged model) "
            f"nor {RUN_FILE} (a run)"
        )
    done = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["done"]
    if not done:
        raise CheckpointError(f"{folder}: no stage of this run is finished; go on with --resume")
    return saved_folder(folder / str(done[-1]))


def load_weights(
    model: TpoModel, recipe: Recipe, folder: Path, base: Mapping[str, str] | None = None
) -> None:
    """Put the weights of a saved model into one that was built from the same base, in place.

    Args:
        model: Just built.
        recipe: For its adapters.
        folder: Of the saved model itself.
        base: What the backbone's ``identity`` says; default: it is asked.

    Raises:
        CheckpointError: Something does not fit; the model is unchanged but for empty adapters.
    """
    about = described(folder)
    check_base(about, folder, base or model.backbone.identity())
    _check_tokens(about, folder, model)
    if LORA in about["files"]:
        lora = recipe.lora
        targets = model.backbone.lora_targets()
        add_lora(model.backbone, targets, lora.rank, lora.alpha, lora.dropout, recipe.seed)
    pairs: list[tuple[Tensor, Tensor]] = []
    for name in about["files"]:
        wanted = file_tensors(model, name)
        found = read_tensors(folder / f"{name}.safetensors", wanted)
        pairs += [(wanted[key], tensor) for key, tensor in found.items()]
    with torch.no_grad():
        for parameter, tensor in pairs:
            parameter.copy_(tensor)


def described(folder: Path) -> dict[str, Any]:
    """What ``model.json`` of a saved model says.

    Raises:
        CheckpointError: It is of another format.
    """
    about: dict[str, Any] = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
    if about["format"] != FORMAT:
        raise CheckpointError(
            f"{folder}: format {about['format']} of saved models; this tpokit reads {FORMAT}"
        )
    return about


def check_base(about: Mapping[str, Any], folder: Path, base: Mapping[str, str]) -> None:
    """See that a saved model was made from a base.

    Raises:
        CheckpointError: It was made from another one.
    """
    saved = about["base"]
    if saved["hash"] != base["hash"]:
        at = f" at revision {saved['revision']}" if "revision" in saved else ""
        raise CheckpointError(
            f"{folder} was trained from the base model {saved['name']!r}{at} with hash "
            f"{saved['hash']}, but {base['name']!r} has hash {base['hash']}; give the base it was "
            "trained from"
        )


def _check_tokens(about: Mapping[str, Any], folder: Path, model: TpoModel) -> None:
    if about["tokens"] != list(model.tokens.ids):
        raise CheckpointError(
            f"{folder} has the task tokens {' '.join(about['tokens'])}, but the model "
            f"{' '.join(model.tokens.ids)}"
        )


def read_tensors(path: Path, wanted: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Read a file and compare it with what is wanted, if that is given, by name and shape.

    Raises:
        CheckpointError: It is missing, cut short, or does not fit.
    """
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
            if wanted is not None:
                _compare(path, shapes, wanted)
            return {name: file.get_tensor(name) for name in shapes}
    except FileNotFoundError as cause:
        raise CheckpointError(f"{path} is missing") from cause
    except (SafetensorError, OSError) as cause:
        raise CheckpointError(
            f"{path} is not whole ({cause}); it was cut short or changed after it was saved"
        ) from cause


def _compare(
    path: Path, shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Tensor]
) -> None:
    problems = []
    for name in sorted({*shapes, *wanted}):
        if name not in shapes:
            problems.append(
                f"{name} is missing; the model's has shape {declared_shape(wanted[name])}"
            )
        elif name not in wanted:
            problems.append(f"{name} {list(shapes[name])} is in the file, but not in the model")
        elif list(shapes[name]) != declared_shape(wanted[name]):
            problems.append(
                f"{name} has shape {list(shapes[name])}, but the model's has "
                f"{declared_shape(wanted[name])}: weights of another width; build the model with "
                "the options it was trained with"
            )
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{path} does not fit: {'; '.join(problems[:3])}{more}")
