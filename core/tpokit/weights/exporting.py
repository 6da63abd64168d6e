"""``tpokit weights export``: a saved model of ours goes back to published names.

Besides the model one shard is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from tpokit.atomic import whole_folder, write_json
from tpokit.checkpoints.merge import float_dtype
from tpokit.checkpoints.store import load_model, saved_folder, saved_recipe
from tpokit.errors import CheckpointError, UsageError
from tpokit.interfaces import Published
from tpokit.model import TpoModel
from tpokit.plugins import Plugins
from tpokit.recipe import Recipe
from tpokit.weights.comparing import EMPTY, place_faults
from tpokit.weights.composing import Composer
from tpokit.weights.filling import UNUSED_FILE, files_of
from tpokit.weights.importing import REPORT_FILE
from tpokit.weights.model_tensors import ModelTensors
from tpokit.weights.reading import open_source
from tpokit.weights.report import TensorRow, WeightsReport
from tpokit.weights.rules import FormatRules, rules_of_model, spec_of
from tpokit.weights.sources import Source

_INDEX = "model.safetensors.index.json"
_NO_PLACE = "of our model without a place in the format"


@dataclass(frozen=True)
class ExportOptions:
    """How a model is given back.

    Attributes:
        format: Name of the format.
        dtype: Number format of all weights, such as ``bfloat16``; default: as the model has them;
            a tensor of rows in several formats gets the widest.
        max_shard: Size of the files, such as ``5GB``.
        unused: Folder of the imported model that has ``unused.safetensors``; default: the one that
            the model comes from, as far as its recipe says.
        registry: A registry file with further plugins, instead of the one that the recipe names.
        report: A JSON file for the report.
    """

    format: str
    dtype: str | None = None
    max_shard: str = "5GB"
    unused: Path | None = None
    registry: Path | None = None
    report: Path | None = None


def export_weights(
    run: Path | str, output: Path | str, options: ExportOptions, plugins: Plugins | None = None
) -> WeightsReport:
    """Write a model in a published format, whole or not at all.

    Args:
        run: A run, the folder of one stage, or a merged or imported model.
        output: Must not exist, or be empty. Gets ``model.safetensors``, or shards and their index,
            named as Hugging Face does, and what the backbone's rules write beside them.
        options: How.
        plugins: Where rules are looked up; default: what is installed and the registry.

    Returns:
        Where the numbers of every tensor are from.

    Raises:
        UsageError: ``output`` is not empty, an option is wrong, or the format cannot hold the
            model.
        CheckpointError: The model does not load, does not fit the format, or the disk is full;
            nothing is left behind.
    """
    run, output = Path(run), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is not empty; name another folder")
    asked = None if options.dtype is None else float_dtype(options.dtype)
    folder = saved_folder(run)
    plugins = plugins or Plugins.load(options.registry or saved_recipe(folder).registry_path)
    recipe = saved_recipe(folder, plugins=plugins)
    _see_that_it_has_rules(recipe, plugins, options.format)
    unused = _unused(options, folder, recipe)
    model = load_model(folder, plugins)
    rules = _rules(model, recipe, plugins, options.format)
    published = rules.tensors(model.tokens, model.backbone.processor.tokenizer)
    ours = ModelTensors(model)
    files = _files(rules, model)
    composer = Composer(published, rules.added(model.tokens), ours, files, unused, asked)
    report = WeightsReport(
        format=options.format,
        folder=str(output),
        backbone=rules.plugin,
        heads={task: head.plugin for task, head in rules.heads.items()},
        tensors=tuple(composer.rows()),
        faults=_faults(published, ours),
    )
    if options.report is not None:
        write_json(options.report, report.to_json())
    report.check(f"{run} in the format {options.format!r}")
    if output.exists():
        output.rmdir()  # empty; it gets its name when it is whole
    with whole_folder(output, kept=lambda: f"{run} is untouched") as partial:
        _write(report, composer, options.max_shard, partial)
        rules.backbone.write_files(partial)
    return report


def _see_that_it_has_rules(recipe: Recipe, plugins: Plugins, format_name: str) -> None:
    """Look all rules up before anything large is loaded."""
    spec_of(plugins, format_name, "backbone", recipe.backbone.plugin)
    for entry in recipe.heads.values():
        spec_of(plugins, format_name, "head", entry.plugin)


def _rules(model: TpoModel, recipe: Recipe, plugins: Plugins, format_name: str) -> FormatRules:
    heads = {task: entry.plugin for task, entry in recipe.heads.items()}
    return rules_of_model(model, recipe.backbone.plugin, heads, plugins, format_name)


def _files(rules: FormatRules, model: TpoModel) -> dict[str, Mapping[str, Tensor]]:
    """Tensors of the files that heads read their weights from."""
    return {
        file: part.file_tensors(file)
        for part in (rules.backbone, *(head.rules for head in rules.heads.values()))
        for file in files_of(part.tensors(model.tokens))
    }


def _faults(published: Mapping[str, Published], ours: ModelTensors) -> dict[str, tuple[str, ...]]:
    """What of the model would be lost."""
    found: dict[str, list[str]] = {}
    for kind, name in place_faults(list(published.values()), ours):
        found.setdefault(_NO_PLACE if kind == EMPTY else kind, []).append(name)
    return {kind: tuple(names) for kind, names in found.items()}


# ---- what was not used when the model was taken in ----


def _unused(options: ExportOptions, folder: Path, recipe: Recipe) -> Source | None:
    if options.unused is not None:
        if not (options.unused / UNUSED_FILE).is_file():
            raise UsageError(f"--unused {options.unused}: there is no {UNUSED_FILE} in it")
        return open_source(options.unused / UNUSED_FILE)
    for place in _origins(folder, recipe):
        if (place / UNUSED_FILE).is_file() and _format_of(place) == options.format:
            return open_source(place / UNUSED_FILE)
    return None


def _origins(folder: Path, recipe: Recipe) -> Iterator[Path]:
    """Folders of imported models from which a model may come."""
    yield folder
    base = recipe.backbone.options.get("model")
    if isinstance(base, str):
        yield (recipe.folder / base).parent
    if recipe.init_path is not None:
        yield recipe.init_path


def _format_of(folder: Path) -> str | None:
    try:
        said: str = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return said


# ---- writing ----


def _write(report: WeightsReport, composer: Composer, max_shard: str, folder: Path) -> None:
    """Write the shards and their index, and see that they hold what the report says."""
    rows = {row.name: row for row in report.tensors if row.state != "left out"}
    empty = {
        name: torch.empty(row.shape, dtype=getattr(torch, row.dtype), device="meta")
        for name, row in rows.items()
    }
    try:
        split = split_torch_state_dict_into_shards(empty, max_shard_size=max_shard)
    except ValueError as cause:
        raise UsageError(f"--max-shard {max_shard}: {cause}") from cause
    for file, names in split.filename_to_tensors.items():
        shard = {name: composer.compose(name) for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        write_json(
            folder / _INDEX,
            {"metadata": split.metadata, "weight_map": split.tensor_to_filename},
        )
    _compare(rows, open_source(folder))


def _compare(rows: dict[str, TensorRow], written: Source) -> None:
    for name, row in rows.items():
        info = written.tensors.get(name)
        if info is None or (info.shape, info.bytes) != (row.shape, row.bytes):
            raise CheckpointError(f"{written.origin}: {name} is not there as it was written")
