"""What one section of a recipe says about another, and what its plugins say about it.

All functions take a recipe that may be wrong in parts (``None`` there), so that every problem is
found at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from tpokit.errors import PluginError, Problem
from tpokit.near_misses import did_you_mean, listed
from tpokit.offers import RESERVED_TASKS
from tpokit.plugins import Plugins
from tpokit.problems import check
from tpokit.recipe_mix import mix_entries, mix_problems
from tpokit.recipe_schema import (
    PARTS,
    TRAINING_SECTIONS,
    WORD_TERMS,
    BackboneEntry,
    ConnectorEntry,
    DataEntry,
    EvaluateEntry,
    HeadEntry,
    LossSection,
    Recipe,
    StageEntry,
    TaskLoss,
)
from tpokit.specs import HeadSpec, Spec

_Named = TypeVar("_Named", BackboneEntry, ConnectorEntry, HeadEntry, DataEntry)


def training_problems(plain: Mapping[str, Any]) -> Iterator[Problem]:
    """What a recipe lacks that is to be trained; ``plain`` is the recipe as it was read."""
    for section in TRAINING_SECTIONS:
        if section not in plain:
            yield Problem(section, "must be given")
        elif plain[section] in ({}, []):
            yield Problem(section, "must not be empty")


def cross_problems(draft: Recipe) -> Iterator[Problem]:
    """What sections say about each other."""
    tasks = list(draft.heads or {})
    for task in tasks:
        if task in RESERVED_TASKS:
            yield Problem(f"heads.{task}", f"a task cannot be called {task!r}")
    yield from _loss_problems(draft.loss, tasks, "loss")
    for index, stage in enumerate(draft.stages or ()):
        if stage is not None:
            yield from _stage_problems(draft, index, stage)
    names = [stage.name for stage in draft.stages or () if stage is not None and stage.name]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem("stages", f"two stages have the name {name!r}")
    yield from _offload_problems(draft)
    if draft.evaluate is not None:
        for index, name in enumerate(draft.evaluate.data or ()):
            yield from _known(f"evaluate.data[{index}]", "data entry", name, draft.data)
        yield from _probe_problems(draft.evaluate, draft.data)


def _offload_problems(draft: Recipe) -> Iterator[Problem]:
    """What is kept in the memory of the host.

    With ZeRO-2, DeepSpeed 0.19.8 then took wrong gradients for a parameter that two ranks share, in
    the second micro-batch of a step, without a word (two processes on CPUs); with ZeRO-3 they were
    right.
    """
    run = draft.run
    if run and run.offload not in (None, "none") and run.engine not in (None, "zero3"):
        yield Problem("run.offload", f"goes with run.engine 'zero3', not with {run.engine!r}")


def _known(
    path: str, what: str, name: str, known: Mapping[str, Any] | list[str]
) -> Iterator[Problem]:
    if name is not None and name not in (known or ()):
        near = did_you_mean(name, known or ())
        yield Problem(path, f"no {what} {name!r}{near} (there are: {listed(known or ())})")


def _probe_problems(evaluate: EvaluateEntry, data: Mapping[str, Any]) -> Iterator[Problem]:
    probe, path = evaluate.probe, "evaluate.probe"
    if probe is None:
        return
    yield from _known(f"{path}.prompts", "data entry", probe.prompts, data)
    if evaluate.every == 0:
        yield Problem(
            path, "is measured at evaluations during a stage; say how often with evaluate.every"
        )
    if probe.stop is not None and probe.stop.accuracy_drop is None and probe.stop.kl is None:
        yield Problem(f"{path}.stop", "needs a limit: accuracy_drop, kl or both")


def _loss_problems(loss: LossSection, tasks: list[str], path: str) -> Iterator[Problem]:
    for name, entry in (loss or {}).items():
        here = f"{path}.{name}"
        if name in WORD_TERMS:
            if isinstance(entry, TaskLoss):
                yield Problem(here, "is a single weight, such as 1.0")
        elif name not in tasks:
            yield from _known(here, "task", name, [*WORD_TERMS, *tasks])
        elif isinstance(entry, float):
            yield Problem(here, f"{entry:g} must be a mapping such as {{weight: {entry:g}}}")


def _stage_problems(draft: Recipe, index: int, stage: StageEntry) -> Iterator[Problem]:
    path, tasks = f"stages[{index}]", list(draft.heads or {})
    if stage.mix is not None:
        for place, name in mix_entries(stage.mix, f"{path}.mix"):
            yield from _known(place, "data entry", name, draft.data)
        yield from mix_problems(stage.mix, f"{path}.mix")
    yield from _loss_problems(stage.loss, tasks, f"{path}.loss")
    if stage.train is None:
        return
    for part, mode in stage.modes.items():
        yield from _known(f"{path}.train.{part}", "part", part, [*PARTS, *tasks])
        if mode == "lora" and part != "llm":
            yield Problem(
                f"{path}.train.{part}", "only llm can be trained with lora; full or frozen"
            )
        if mode != "full" and part in stage.patterns:
            yield Problem(f"{path}.train.{part}.only", f"goes with mode full, not with {mode}")
    trained = {part for part, mode in stage.modes.items() if mode != "frozen"}
    if stage.train and not trained:
        yield Problem(f"{path}.train", "every part is frozen, so the stage trains nothing")
    yield from _rate_problems(stage, trained, f"{path}.learning_rate")
    yield from _bridge_problems(draft, index, trained & set(tasks), f"{path}.train")


def _rate_problems(stage: StageEntry, trained: set[str], path: str) -> Iterator[Problem]:
    if not isinstance(stage.learning_rate, dict):
        return
    for part in sorted(trained - set(stage.learning_rate)):
        yield Problem(path, f"no rate for {part!r}, which this stage trains")
    for part in stage.learning_rate:
        if part not in trained:
            near = did_you_mean(part, trained)
            yield Problem(f"{path}.{part}", f"this stage does not train {part!r}{near}")


def _bridge_problems(draft: Recipe, index: int, heads: set[str], path: str) -> Iterator[Problem]:
    """A head learns from slots; while nothing has trained those, it would learn from noise."""
    if draft.init_from is not None:
        return
    so_far = (draft.stages or ())[: index + 1]
    unknown = any(stage is None or stage.train is None for stage in so_far)
    if unknown or any((stage.modes.get("bridge") or "frozen") != "frozen" for stage in so_far):
        return
    for task in sorted(heads):
        yield Problem(
            f"{path}.{task}",
            "reads slots of the bridge, which no stage up to here trains; add bridge: full",
        )


# ---- what plugins say


def plugin_problems(draft: Recipe, plugins: Plugins) -> Iterator[Problem]:
    """Names that are not there, options that are wrong, weights of terms that a head has not."""
    if draft.backbone is not None:
        yield from _entry_problems(plugins, "backbone", draft.backbone, "backbone")
        yield from _connector_problems(plugins, draft.backbone)
    for task, head in (draft.heads or {}).items():
        if head is not None:
            yield from _entry_problems(plugins, "head", head, f"heads.{task}", task)
    for name, source in (draft.data or {}).items():
        if source is not None:
            yield from _entry_problems(plugins, "source", source, f"data.{name}")
    specs = head_specs(draft, plugins)
    losses = {"loss": draft.loss}
    for index, stage in enumerate(draft.stages or ()):
        losses[f"stages[{index}].loss"] = {} if stage is None else stage.loss
    for path, loss in losses.items():
        for task, entry in (loss or {}).items():
            if task in specs and isinstance(entry, TaskLoss):
                yield from _term_problems(specs[task], entry, f"{path}.{task}")


def _connector_problems(plugins: Plugins, backbone: BackboneEntry) -> Iterator[Problem]:
    if backbone.connector is None:
        return
    yield from _entry_problems(plugins, "connector", backbone.connector, "backbone.connector")
    if backbone.plugin in plugins.names("backbone"):
        spec = plugins.spec("backbone", backbone.plugin)
        if not getattr(spec, "connectors", False):
            yield Problem(
                "backbone.connector",
                f"backbone {backbone.plugin!r} takes no other connector than its own",
            )


def _entry_problems(
    plugins: Plugins,
    kind: str,
    entry: BackboneEntry | ConnectorEntry | HeadEntry | DataEntry,
    path: str,
    task: str | None = None,
) -> Iterator[Problem]:
    name = entry.source if isinstance(entry, DataEntry) else entry.plugin
    if name is None:
        return
    where = f"{path}.source" if isinstance(entry, DataEntry) else f"{path}.plugin"
    try:
        spec = plugins.spec(kind, name)
        model = plugins.options_model(spec)
    except PluginError as cause:
        yield Problem(where, str(cause))
        return
    if isinstance(spec, HeadSpec) and spec.task != task:
        yield Problem(where, f"head {name!r} does the task {spec.task!r}; write it as that key")
    yield from check(model, entry.options or {}, f"{path}.options")


def _term_problems(spec: HeadSpec, entry: TaskLoss, path: str) -> Iterator[Problem]:
    if entry.preset is not None and entry.preset not in spec.losses:
        near = did_you_mean(entry.preset, spec.losses)
        yield Problem(
            f"{path}.preset",
            f"head {spec.name!r} has no set of weights {entry.preset!r}{near} "
            f"(there are: {listed(spec.losses)})",
        )
    for term in entry.terms:
        if term not in spec.terms:
            near = did_you_mean(term, ["weight", "preset", *spec.terms])
            yield Problem(
                f"{path}.{term}",
                f"head {spec.name!r} has no loss term {term!r}{near} (terms: {listed(spec.terms)})",
            )


def head_specs(draft: Recipe, plugins: Plugins) -> dict[str, HeadSpec]:
    """Specs of the heads that can be used, by task."""
    found = {}
    for task, entry in (draft.heads or {}).items():
        if entry is not None and entry.plugin in plugins.names("head"):
            spec = plugins.spec("head", entry.plugin)
            if isinstance(spec, HeadSpec):
                found[task] = spec
    return found


# ---- filling in what plugins know


def resolve(recipe: Recipe, plugins: Plugins) -> Recipe:
    """The recipe with every option of its plugins and every loss weight written out.

    Args:
        recipe: Without problems.
        plugins: Where its names are looked up.
    """
    specs = head_specs(recipe, plugins)
    loss: LossSection = {**dict.fromkeys(WORD_TERMS, 1.0), **recipe.loss}
    for task, spec in specs.items():
        loss[task] = _resolved_loss(spec, recipe.loss.get(task), None)
    stages = []
    for stage in recipe.stages:
        changed = {
            name: _resolved_loss(specs[name], entry, loss[name]) if name in specs else entry
            for name, entry in stage.loss.items()
        }
        stages.append(stage.model_copy(update={"loss": changed}))
    backbone = _with_options(
        recipe.backbone, plugins.spec("backbone", recipe.backbone.plugin), plugins
    )
    if recipe.backbone.connector is not None:
        chosen = plugins.spec("connector", recipe.backbone.connector.plugin)
        connector = _with_options(recipe.backbone.connector, chosen, plugins)
        backbone = backbone.model_copy(update={"connector": connector})
    heads = {task: _with_options(recipe.heads[task], spec, plugins) for task, spec in specs.items()}
    data = {
        name: _with_options(entry, plugins.spec("source", entry.source), plugins)
        for name, entry in recipe.data.items()
    }
    update = {
        "backbone": backbone,
        "heads": heads,
        "data": data,
        "loss": loss,
        "stages": tuple(stages),
    }
    return recipe.model_copy(update=update)


def _with_options(entry: _Named, spec: Spec, plugins: Plugins) -> _Named:
    options = plugins.options(spec, entry.options).model_dump(mode="json")
    return entry.model_copy(update={"options": options})


def _resolved_loss(spec: HeadSpec, entry: Any, before: Any) -> TaskLoss:
    """Weight of a task and of all its terms; a stage starts from the recipe's (``before``)."""
    entry = entry if isinstance(entry, TaskLoss) else TaskLoss()
    terms = dict.fromkeys(spec.terms, 0.0)
    if entry.preset is not None:
        terms.update(spec.losses[entry.preset])
    elif isinstance(before, TaskLoss):
        terms.update(before.terms)
    elif not entry.terms:
        default = next(iter(spec.losses.values()), dict.fromkeys(spec.terms, 1.0))
        terms.update(default)
    terms.update(entry.terms)
    weight = entry.weight
    if weight is None:
        weight = before.weight if isinstance(before, TaskLoss) else 1.0
    return TaskLoss.model_validate({"weight": weight, **terms})
