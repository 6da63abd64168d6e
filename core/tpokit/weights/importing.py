"""``tpokit weights import``: published weights become a saved model of ours.

The model is built empty and compared with the files by name and shape; only if all of it fits are
numbers read, one tensor at a time. So memory holds the model and the largest tensor.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tpokit.atomic import whole_folder, write_json
from tpokit.checkpoints.merge import float_dtype
from tpokit.checkpoints.store import LORA, fill_model, load_weights
from tpokit.checkpoints.tensors import file_tensors, saved_name
from tpokit.errors import CheckpointError, UsageError
from tpokit.interfaces import AddedProduct, Published
from tpokit.lora import has_lora, merge_lora, remove_lora
from tpokit.model import TpoModel, build_model
from tpokit.plugins import Plugins
from tpokit.recipe import Recipe, parse_recipe
from tpokit.recipe_schema import SCHEMA
from tpokit.weights.comparing import compare
from tpokit.weights.filling import NumberFormats, fill, write_files, write_unused
from tpokit.weights.model_tensors import ModelTensors, add_recipe_lora, empty_model
from tpokit.weights.reading import open_source
from tpokit.weights.report import WeightsReport
from tpokit.weights.rules import FormatRules, rules_of_files
from tpokit.weights.sources import Source, WithLlm

REPORT_FILE = "import.json"
_BACKBONE = "backbone"
_PREPARED = "prepared"
_SECTIONS = ("recipe", "name", "seed", "backbone", "heads", "loss", "lora", "decoding")
"""Sections of the recipe of a model that was not trained here."""


@dataclass(frozen=True)
class ImportOptions:
    """How published weights are taken in.

    Attributes:
        llm: Folder of the base LLM, for files that hold trained tensors only.
        format: Name of the format; default: it is found out.
        merge_lora: Add adapters to their layers, instead of keeping them.
        weights_only: Read pickles, tensors only.
        without: Tasks whose heads are left out of the model.
        dtype: Number format of the backbone, such as ``bfloat16``; default: as published.
        registry: A registry file with further plugins; the model's recipe will name it.
        report: A JSON file for the report; it is written although something does not fit.
    """

    llm: Path | None = None
    format: str | None = None
    merge_lora: bool = False
    weights_only: bool = False
    without: tuple[str, ...] = ()
    dtype: str | None = None
    registry: Path | None = None
    report: Path | None = None


@dataclass(frozen=True)
class _Plan:
    """All that is known before a number is read."""

    source: Source
    rules: FormatRules
    recipe: Recipe
    model: TpoModel
    ours: ModelTensors
    published: Mapping[str, Published]
    added: Sequence[AddedProduct]
    report: WeightsReport


def import_weights(
    source: Path | str,
    output: Path | str,
    options: ImportOptions | None = None,
    plugins: Plugins | None = None,
) -> WeightsReport:
    """Write a saved model of published weights, whole or not at all.

    Args:
        source: A folder or file (see `tpokit.weights.reading.open_source`).
        output: Must not exist, or be empty. Gets what `tpokit.load_model` takes: ``backbone/`` in
            the backbone's own format, bridge, heads, adapters and a recipe; beside them
            ``unused.safetensors`` and ``import.json``, the report.
        options: How.
        plugins: Where rules are looked up; default: what is installed and the registry.

    Returns:
        What became of every tensor.

    Raises:
        UsageError: ``output`` is not empty, the files are of no known format, or they are pickles
            and that was not allowed.
        CheckpointError: The files are not whole, something in them does not fit, or the disk is
            full; nothing is left behind.
    """
    source, output, options = Path(source), Path(output), options or ImportOptions()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is not empty; name another folder")
    dtype = None if options.dtype is None else float_dtype(options.dtype)
    opened = _open(source, options)
    plugins = plugins or Plugins.load(options.registry)
    if output.exists():
        output.rmdir()  # empty; it gets its name when it is whole
    with whole_folder(output, kept=lambda: f"{source} is untouched") as partial:
        plan = _plan(opened, options, plugins, partial)
        formats = NumberFormats(opened, plan.published, dtype)
        write_files(opened, plan.published, formats, partial)
        write_unused(opened, plan.published, plan.added, formats, partial)
        fill(opened, plan.published, plan.added, plan.ours, formats)
        if options.merge_lora:
            merge_lora(plan.model.backbone)
        _write(plan, options, plugins, partial)
    return plan.report


def check_weights(
    source: Path | str, options: ImportOptions | None = None, plugins: Plugins | None = None
) -> WeightsReport:
    """See whether published weights could be taken in, without reading their numbers.

    Args:
        source: As for `import_weights`, or a listing (`tpokit.weights.sources.Listing`).
        options, plugins: As for `import_weights`.

    Raises:
        UsageError, CheckpointError: As `import_weights`.
    """
    options = options or ImportOptions()
    opened = _open(Path(source), options, listing=True)
    plugins = plugins or Plugins.load(options.registry)
    with tempfile.TemporaryDirectory() as folder:
        return _plan(opened, options, plugins, Path(folder)).report


# ---- before numbers are read ----


def _open(path: Path, options: ImportOptions, listing: bool = False) -> Source:
    source = open_source(path, options.weights_only, listing)
    if options.llm is None:
        return source
    return WithLlm(source, open_source(options.llm, options.weights_only, listing))


def _plan(source: Source, options: ImportOptions, plugins: Plugins, folder: Path) -> _Plan:
    """Find the rules, build the empty model, and compare.

    Raises:
        CheckpointError: Something does not fit.
    """
    rules = rules_of_files(source.shapes, plugins, options.format, options.without)
    (folder / _PREPARED).mkdir()
    rules.backbone.prepare(source.folder, folder / _PREPARED, options.llm)
    recipe = _recipe(rules, options, plugins, folder, empty=True)
    model = empty_model(recipe, plugins, lora=rules.backbone.lora() is not None)
    ours = ModelTensors(model)
    published = rules.tensors(model.tokens, model.backbone.processor.tokenizer)
    added = rules.added(model.tokens)
    rows, faults = compare(source, published, added, ours)
    heads = {task: head.plugin for task, head in rules.heads.items()}
    report = WeightsReport(
        rules.format, str(source.origin), rules.plugin, heads, tuple(rows), faults
    )
    if options.report is not None:
        write_json(options.report, report.to_json())
    report.check(f"{source.origin}, of the format {rules.format!r},")
    return _Plan(source, rules, recipe, model, ours, published, added, report)


def _recipe(
    rules: FormatRules, options: ImportOptions, plugins: Plugins, folder: Path, empty: bool
) -> Recipe:
    """The recipe of the model: how to build it, not how it was trained.

    Args:
        rules: Of the files.
        options: Names the registry.
        plugins: With which the recipe is checked and resolved.
        folder: In which the model lies.
        empty: Build it without weights and files.
    """

    def of(part: Any) -> dict[str, Any]:
        found: dict[str, Any] = part.empty_options() if empty else part.options()
        return found

    backbone = {**of(rules.backbone), "model": _BACKBONE}
    if empty:
        backbone |= {"model": _PREPARED, "weights": "random"}
    plain: dict[str, Any] = {
        "recipe": SCHEMA,
        "name": rules.format,
        "registry": None if options.registry is None else str(options.registry.resolve()),
        "backbone": {"plugin": rules.plugin, "options": backbone},
        "heads": {
            task: {"plugin": head.plugin, "options": of(head.rules)}
            for task, head in rules.heads.items()
        },
        "lora": rules.backbone.lora() or {},
    }
    return parse_recipe(
        plain, f"recipe of {rules.format}", folder, plugins=plugins, model_only=True
    )


# ---- writing ----


def _write(plan: _Plan, options: ImportOptions, plugins: Plugins, folder: Path) -> None:
    """Write the filled model, and see that it loads as it was."""
    model = plan.model
    files = ["bridge", *model.heads] + ([LORA] if has_lora(model.backbone) else [])
    state = {
        name: tensor.detach()
        for file in files
        for name, tensor in file_tensors(model, file).items()
    }
    digests = _digests(model)
    remove_lora(model.backbone)
    model.backbone.save(folder / _BACKBONE)
    model.backbone.to("meta")  # lets go of its numbers: the check reads them from the disk
    shutil.rmtree(folder / _PREPARED)
    recipe = _recipe(plan.rules, options, plugins, folder, empty=False)
    saved = build_model(recipe, plugins)
    if LORA in files:
        add_recipe_lora(saved, recipe)
    about = {"base": saved.backbone.identity(), "stage": "import", "modes": {}}
    fill_model(saved, folder, _text(recipe), files, about, state)
    load_weights(saved, recipe, folder)
    _compare(digests, saved, folder)
    write_json(folder / REPORT_FILE, plan.report.to_json())


def _text(recipe: Recipe) -> str:
    """The recipe as YAML; it means the same wherever the folder is moved."""
    resolved = recipe.resolved()
    plain = {section: resolved[section] for section in _SECTIONS} | {"folder": "."}
    if recipe.registry is not None:
        plain["registry"] = str(recipe.registry)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def _digests(model: TpoModel) -> dict[str, tuple[torch.dtype, str]]:
    """Number format and SHA-256 of every saved tensor."""
    return {
        saved_name(name): (tensor.dtype, _digest(tensor))
        for name, tensor in model.state_dict().items()
    }


def _digest(tensor: Tensor) -> str:
    numbers = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(numbers.data).hexdigest()


def _compare(digests: Mapping[str, tuple[torch.dtype, str]], saved: TpoModel, folder: Path) -> None:
    """See that what was loaded has the numbers that were saved."""
    found = {saved_name(name): tensor for name, tensor in saved.state_dict().items()}
    for name, (dtype, digest) in digests.items():
        if name not in found or _digest(found[name].to(dtype)) != digest:
            raise CheckpointError(f"{folder}: {name} does not load as it was saved")
