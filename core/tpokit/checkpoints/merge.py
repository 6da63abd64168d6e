"""One self-contained model out of a run: adapters added into the base, everything in one folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from tpokit.atomic import whole_folder
from tpokit.checkpoints.store import fill_model, load_weights, saved_folder, saved_recipe
from tpokit.errors import CheckpointError, UsageError
from tpokit.lora import merge_lora
from tpokit.model import TpoModel, build_backbone, build_model
from tpokit.plugins import Plugins
from tpokit.recipe import Recipe

_BACKBONE = "backbone"
_ORIGIN = ("model", "revision", "weights")
"""Options of a backbone that say where its weights come from; the others are kept."""


def merge(
    run: Path | str, output: Path | str, dtype: str | None = None, plugins: Plugins | None = None
) -> Path:
    """Write a model that needs neither the run nor the base it was trained from.

    Args:
        run: A run, or the folder of one stage.
        output: Must not exist, or be empty. Gets ``backbone/`` in the backbone's own format, the
            bridge and the heads, and a recipe that names them. A run without heads gives the
            backbone alone.
        dtype: Of the written weights, such as ``bfloat16``; default: as they are.
        plugins: Where names are looked up; default: what is installed and the recipe's registry.

    Returns:
        ``output``; `tpokit.load_model` takes it if there are heads.

    Raises:
        UsageError: ``output`` is not empty, ``dtype`` is unknown, or the backbone cannot be named
            by a folder.
        CheckpointError: The run does not load, or the disk is full; nothing is left behind.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is not empty; name another folder")
    folder = saved_folder(Path(run))
    recipe = saved_recipe(folder, plugins=plugins)
    plugins = plugins or Plugins.load(recipe.registry_path)
    model = build_model(recipe, plugins)
    load_weights(model, recipe, folder)
    merge_lora(model.backbone)
    if dtype is not None:
        model.to(float_dtype(dtype))
    text = _recipe_text(recipe, plugins, model)
    if output.exists():
        output.rmdir()  # empty; it gets its name when it is whole
    with whole_folder(output, kept=lambda: f"{run} is untouched") as partial:
        if model.heads:
            _write(model, recipe, plugins, partial, text, folder.name)
        else:
            model.backbone.save(partial)
    return output


def _write(
    model: TpoModel, recipe: Recipe, plugins: Plugins, folder: Path, text: str, stage: str
) -> None:
    model.backbone.save(folder / _BACKBONE)
    entry = recipe.backbone.model_copy(update={"options": _merged_options(recipe)})
    again = build_backbone(recipe.model_copy(update={"backbone": entry}), plugins, folder)
    for (name, kept), found in zip(
        model.backbone.named_parameters(), again.parameters(), strict=True
    ):
        if not torch.equal(kept.to(found.dtype), found):
            raise CheckpointError(f"{folder / _BACKBONE}: {name} does not load as it was saved")
    about = {"base": again.identity(), "stage": stage, "modes": {}}
    for task in model.heads:
        for option, path in model.head(task).model_files().items():
            shutil.copyfile(path, folder / _file_name(task, option, path))
    fill_model(model, folder, text, ["bridge", *model.heads], about)


def _file_name(task: str, option: str, path: Path) -> str:
    """Name, in the folder of a merged model, of a file that a head reads."""
    return f"{task}.{option}{path.suffix}"


def _recipe_text(recipe: Recipe, plugins: Plugins, model: TpoModel) -> str:
    """The recipe with the merged backbone in place of its base, and files of heads beside it.

    Raises:
        UsageError: The backbone has no option ``model``.
    """
    spec = plugins.spec("backbone", recipe.backbone.plugin)
    if "model" not in plugins.options_model(spec).model_fields:
        raise UsageError(
            f"backbone {spec.name!r} has no option 'model' and so cannot be loaded from a folder"
        )
    plain = recipe.resolved()
    plain["backbone"]["options"] = _merged_options(recipe)
    plain["folder"] = "."
    plain.pop("init_from", None)  # what it was is in the weights
    for task in model.heads:
        for option, path in model.head(task).model_files().items():
            *sections, last = option.split(".")
            options = plain["heads"][task]["options"]
            for section in sections:
                options = options[section]
            options[last] = _file_name(task, option, path)
    if recipe.registry_path is not None:
        plain["registry"] = str(recipe.registry_path.resolve())
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def _merged_options(recipe: Recipe) -> dict[str, Any]:
    kept = {name: v for name, v in recipe.backbone.options.items() if name not in _ORIGIN}
    return {**kept, "model": _BACKBONE}


def float_dtype(name: str) -> torch.dtype:
    """The number format of that name.

    Raises:
        UsageError: There is none, or it is one of whole numbers.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(
            f"{name!r} is no floating-point type; bfloat16, float16 or float32 would do"
        )
    return found
