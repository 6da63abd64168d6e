"""The recipe: the file that says what is trained, on what, and how.

Reading one does not import torch. All problems are reported at once: of single fields, between
sections, and those that the plugins find in their own options.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpokit.errors import Problem, RecipeError, UsageError
from tpokit.plugins import Plugins
from tpokit.problems import check, valid_parts
from tpokit.recipe_checks import (
    cross_problems,
    plugin_problems,
    resolve,
    training_problems,
)
from tpokit.recipe_files import apply_overrides
from tpokit.recipe_schema import (
    SCHEMA,
    BackboneEntry,
    DataEntry,
    DecodingEntry,
    EvaluateEntry,
    HeadEntry,
    LoraEntry,
    Mode,
    ProbeEntry,
    Recipe,
    RunEntry,
    SlotOrder,
    StageEntry,
    StopEntry,
    TaskLoss,
    TrainEntry,
)
from tpokit.strict_yaml import as_mapping, read_yaml, read_yaml_mapping

__all__ = [
    "BackboneEntry",
    "DataEntry",
    "DecodingEntry",
    "EvaluateEntry",
    "HeadEntry",
    "LoraEntry",
    "Mode",
    "ProbeEntry",
    "Recipe",
    "RunEntry",
    "SlotOrder",
    "StageEntry",
    "StopEntry",
    "TaskLoss",
    "TrainEntry",
    "difference",
    "evaluation_recipe",
    "load_recipe",
    "open_recipe",
    "parse_recipe",
]

_FREE = (
    "run.workers",
    "run.log_every",
    "run.save_every",
    "run.skipped_steps",
    "run.gradients_every",
    "run.report_to",
    "run.threads",
    "run.bad_samples",
    "run.timeout_s",
    "run.without_gradient",
)
"""What may differ between a run and its resumption: none of it changes a result."""
_EVALUATION_SECTIONS = ("data", "evaluate")


def load_recipe(
    path: Path | str,
    overrides: Sequence[str] = (),
    plugins: Plugins | None = None,
    model_only: bool = False,
) -> Recipe:
    """Read a recipe.

    Args:
        path: The file.
        overrides: ``path=value`` each, as for ``--set``.
        plugins: With them plugins and their options are checked too, and the recipe comes back
            resolved: every option and loss weight written out.
        model_only: Take the recipe of a saved model, which need not say how to train.

    Raises:
        RecipeError: It has problems; all of them are named.
        UsageError: There is no such file, or it is not YAML.
    """
    path = Path(path)
    plain = read_yaml_mapping(path, "recipe")
    return parse_recipe(plain, str(path), path.parent, overrides, plugins, model_only)


def open_recipe(
    path: Path | str, overrides: Sequence[str] = (), registry: Path | None = None
) -> tuple[Recipe, Plugins]:
    """Read a recipe together with the plugins it wants.

    Args:
        path: The file.
        overrides: ``path=value`` each, as for ``--set``.
        registry: A registry file that is used instead of the one the recipe names.

    Returns:
        The recipe, resolved, and the plugins that it was checked with.

    Raises:
        RecipeError: It has problems; all of them are named.
        UsageError: A file is missing or is not YAML, or the registry is wrong.
    """
    path = Path(path)
    plain = read_yaml_mapping(path, "recipe")
    if registry is not None:
        plain["registry"] = str(registry.resolve())
    trial = copy.deepcopy(plain)
    apply_overrides(trial, overrides)  # an override may name another registry
    named, folder = trial.get("registry"), _folder(trial, path.parent)
    plugins = Plugins.load(folder / named if isinstance(named, str) else None)
    return parse_recipe(plain, str(path), path.parent, overrides, plugins), plugins


def parse_recipe(
    content: str | Mapping[str, Any],
    origin: str = "recipe",
    folder: Path = Path(),
    overrides: Sequence[str] = (),
    plugins: Plugins | None = None,
    model_only: bool = False,
) -> Recipe:
    """A recipe from a YAML text or from plain data.

    Args:
        content: YAML or a mapping.
        origin: Where it comes from, for messages.
        folder: Relative paths start here, unless the recipe has a ``folder:`` of its own (then that
            is relative to this one).
        overrides, plugins, model_only: As for `load_recipe`.

    Raises:
        RecipeError: It has problems; all of them are named.
        UsageError: The text is not YAML.
    """
    if isinstance(content, str):
        plain = as_mapping(read_yaml(content, origin), origin, "recipe")
    else:
        plain = copy.deepcopy(dict(content))
    if plain.get("recipe") != SCHEMA:
        raise RecipeError(origin, [_wrong_schema(plain.get("recipe"))])
    problems = apply_overrides(plain, overrides)
    folder = _folder(plain, folder)
    plain.pop("folder", None)
    plain = {key: value for key, value in plain.items() if value is not None}  # an empty section
    problems += [] if model_only else training_problems(plain)
    problems += check(Recipe, plain)
    draft = valid_parts(Recipe, plain)
    problems += cross_problems(draft)
    if plugins is not None:
        problems += plugin_problems(draft, plugins)
    if problems:
        raise RecipeError(origin, sorted(problems, key=_section))
    recipe = Recipe.model_validate(plain)
    if plugins is not None:
        recipe = resolve(recipe, plugins)
    recipe._folder = folder
    return recipe


def evaluation_recipe(
    model: Recipe, path: Path, overrides: Sequence[str], plugins: Plugins
) -> Recipe:
    """The recipe of a saved model with the data and the ``evaluate:`` section of another recipe.

    Args:
        model: Of the saved model.
        path: The other recipe; relative paths of its data start where it lies. All its other
            sections are ignored.
        overrides: ``path=value`` each, as for ``--set``; they change the outcome.
        plugins: With which both are checked.

    Raises:
        RecipeError: The two sections have problems; all of them are named.
        UsageError: There is no such file, it is not YAML, or lacks one of the sections.
    """
    plain = read_yaml_mapping(path, "recipe")
    for section in _EVALUATION_SECTIONS:
        if not plain.get(section):
            raise UsageError(f"{path} has no {section}: section, on which a model could be scored")
    taken = {key: plain.get(key) for key in ("recipe", "folder", *_EVALUATION_SECTIONS)}
    registry = model.registry_path
    own = {
        **model.resolved(),
        "registry": None if registry is None else str(registry.resolve()),
        "init_from": None,
        "stages": None,
    }
    return parse_recipe({**own, **taken}, str(path), path.parent, overrides, plugins, True)


def _wrong_schema(found: Any) -> Problem:
    if found is None:
        return Problem("recipe", f"must be given: the version of the schema, recipe: {SCHEMA}")
    if isinstance(found, int) and found > SCHEMA:
        return Problem("recipe", f"schema {found} needs a newer tpokit; this one reads {SCHEMA}")
    return Problem("recipe", f"schema {found!r} is not known; this tpokit reads recipe: {SCHEMA}")


def _folder(plain: Mapping[str, Any], beside: Path) -> Path:
    return beside / str(plain.get("folder") or ".")


def _section(problem: Problem) -> tuple[int, int]:
    """Place of a problem in a recipe as a user reads it; the order inside an entry stays."""
    section, _, rest = problem.path.partition(".")[0].partition("[")
    order = list(Recipe.model_fields)
    place = order.index(section) if section in order else -1
    index = rest.rstrip("]")
    return place, int(index) if index.isdigit() else 0


def difference(before: Recipe, after: Recipe) -> list[str]:
    """What two recipes would not train alike: lines ``path: old -> new``.

    What changes no result (workers, threads, how often is logged) and where the file lies is left
    out.
    """
    old, new = dict(_leaves(before.resolved(), "")), dict(_leaves(after.resolved(), ""))
    missing = "(not given)"
    return [
        f"{path}: {old.get(path, missing)} -> {new.get(path, missing)}"
        for path in dict.fromkeys([*old, *new])
        if path.partition("[")[0] not in _FREE and old.get(path, missing) != new.get(path, missing)
    ]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value
