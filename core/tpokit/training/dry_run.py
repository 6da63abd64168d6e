"""What a recipe would do, found out on a laptop in a minute.

Three looks: at the model at its full size, without numbers; at the first samples of each data entry
in the order of training; and two real steps of each stage, on the recipe's own data, with a model
of the same kind that is small (`tpokit.variants`). Nothing is written into the recipe's output.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from statistics import median

from accelerate import init_empty_weights

from tpokit.data.dataset import open_sources
from tpokit.data.mixing import Mixture
from tpokit.data.sample_reader import SampleReader, reader_of
from tpokit.errors import UsageError
from tpokit.model import TpoModel
from tpokit.parts import PartRow, part_table, set_modes
from tpokit.plugins import Plugins
from tpokit.recipe import Recipe, StageEntry
from tpokit.recipe_mix import GroupEntry
from tpokit.recipe_schema import RunEntry
from tpokit.training.callbacks import LOG_FILE, read_rows
from tpokit.training.memory_estimate import (
    ENGINES,
    ActivationMemory,
    NumberFormat,
    StateMemory,
    activation_memory,
    state_memory,
)
from tpokit.training.ranks import Ranks
from tpokit.types import IGNORED
from tpokit.variants import VariantPlugins, empty_model

DEVICES = (1, 8, 64)
"""Numbers of devices for which memory is estimated."""
_STEPS = 2
_SAMPLES = 8
"""Samples of each data entry that are looked at, and most samples of a step that is tried."""


@dataclass(frozen=True)
class LookedAt:
    """A sample, as large as it is for the model.

    Attributes:
        entry: Name of its data entry.
        sample: Its id.
        tokens: Of the prompt.
        learnt: How many of them are learnt.
        pixels: That go through the vision tower.
    """

    entry: str
    sample: str
    tokens: int
    learnt: int
    pixels: int


@dataclass(frozen=True)
class EntryLengths:
    """Lengths of the samples of a data entry that were looked at.

    Attributes:
        entry: Its name.
        samples: How many it has.
        looked_at: How many were looked at.
        shortest, median, longest: In tokens.
        pixels: Most that one of them has.
    """

    entry: str
    samples: int
    looked_at: int
    shortest: int
    median: int
    longest: int
    pixels: int


@dataclass(frozen=True)
class WorstSample:
    """The largest sample that was looked at, by tokens or pixels.

    Attributes:
        by: ``tokens`` or ``pixels``.
        looked_at: The sample.
        memory: What it keeps alone, in the stage where that is most; ``None``: unknown.
    """

    by: str
    looked_at: LookedAt
    memory: ActivationMemory | None


@dataclass(frozen=True)
class StageEstimate:
    """A stage at full size.

    Attributes:
        stage: Its name.
        parts: What it does with each part.
        states: Memory of the model itself, for each engine and number of devices.
        activations: Memory of a micro-batch; ``None``: the backbone does not say what its layers
            are.
        load: That micro-batch: as many samples as a device takes at once, each as large as the
            largest that was looked at.
    """

    stage: str
    parts: tuple[PartRow, ...]
    states: tuple[StateMemory, ...]
    activations: ActivationMemory | None
    load: Load


@dataclass(frozen=True)
class TriedStage:
    """Steps that a stage has done at small size.

    Attributes:
        stage: Its name.
        rows: A line of the log for each step.
    """

    stage: str
    rows: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class DryRun:
    """All that was found out.

    Attributes:
        lengths: By data entry.
        worst: The largest samples.
        stages: At full size.
    """

    lengths: tuple[EntryLengths, ...]
    worst: tuple[WorstSample, ...]
    stages: tuple[StageEstimate, ...]


def look_ahead(recipe: Recipe, plugins: Plugins) -> DryRun:
    """Look at the model at its full size and at the first samples of its data.

    Args:
        recipe: Resolved with ``plugins``.
        plugins: Where its names are looked up.

    Raises:
        UsageError: There are several processes, or what the recipe names is not there.
        DataError: A sample is wrong, as in training.
    """
    if Ranks.here().world > 1:
        raise UsageError("--dry-run is one process; start it without torchrun")
    model = empty_model(recipe, plugins).train()
    names = {name for stage in recipe.stages for name in stage.plan.entries}
    sources = open_sources(recipe, plugins, names)
    seen: dict[str, list[LookedAt]] = {}
    for stage in recipe.stages:
        reader = reader_of(recipe, stage.name, sources, model)
        for name in stage.plan.entries:
            if name not in seen:
                seen[name] = list(_first_samples(reader, stage, name))
    found = list(chain.from_iterable(seen.values()))
    largest = {by: max(found, key=attrgetter(by)) for by in ("tokens", "pixels")}
    alone: dict[str, list[ActivationMemory]] = {by: [] for by in largest}
    stages = []
    for stage in recipe.stages:
        _set_modes(model, recipe, stage)
        stages.append(_estimate(recipe, model, stage, seen))
        for by, one in largest.items():
            alone[by] += _activations(recipe, model, stage, Load.of(one))
    return DryRun(
        lengths=tuple(_lengths(name, len(sources[name]), seen[name]) for name in sorted(seen)),
        worst=tuple(
            WorstSample(by, one, max(alone[by], key=attrgetter("kept"), default=None))
            for by, one in largest.items()
        ),
        stages=tuple(stages),
    )


def try_stages(recipe: Recipe, plugins: Plugins) -> Iterator[TriedStage]:
    """Do two steps of each stage with a small model, in a folder that is taken away again.

    A step has about as many samples as the stage mixes entries, one of each, at most eight: those
    that training reads first of each entry.

    Raises:
        DataError: A sample is wrong; here the first one stops, whatever ``run.bad_samples`` says.
        TpokitError: Whatever else would stop the run.
    """
    from tpokit.training.stages import train  # here: `stages` may import this file

    with tempfile.TemporaryDirectory() as folder:
        small = _small_recipe(recipe, Path(folder) / "run")
        with contextlib.redirect_stdout(io.StringIO()):
            path = train(small, VariantPlugins(plugins, "small"), curves=False)
        rows = read_rows(path / LOG_FILE)
    for stage in recipe.stages:
        yield TriedStage(stage.name, tuple(row for row in rows if row["stage"] == stage.name))


def _small_recipe(recipe: Recipe, output: Path) -> Recipe:
    """The same with two steps in each stage, in one process, for a small model."""
    run = recipe.run.model_copy(
        update={
            "device_batch": min(recipe.run.device_batch, _SAMPLES),
            "group": None,
            "engine": "plain",
            "offload": "none",
            "schedule": "any_task",
            "workers": 0,
            "log_every": 1,
            "gradients_every": 0,
            "report_to": (),
            "save_every": 0,
            "bad_samples": 0.0,
            "skipped_steps": 0,
        }
    )
    stages = tuple(_short(stage, run.device_batch) for stage in recipe.stages)
    update = {"output": output, "init_from": None, "evaluate": None, "stages": stages, "run": run}
    return recipe.model_copy(update=update)


def _short(stage: StageEntry, device_batch: int) -> StageEntry:
    """Two steps over all entries alike, of whole micro-batches."""
    entries = len(stage.plan.entries)
    samples = device_batch * math.ceil(min(entries, _SAMPLES) / device_batch)
    update = {
        "steps": _STEPS,
        "epochs": None,
        "samples_per_step": min(samples, _SAMPLES // device_batch * device_batch),
        "mix": _evenly(stage),
    }
    return stage.model_copy(update=update)


def _evenly(stage: StageEntry) -> dict[str, GroupEntry]:
    """The mix of a stage with equal shares; of each entry the same samples come first."""
    names = stage.plan.entries
    caps = {name: cap for group in stage.plan.groups for name, cap in group.caps.items()}
    return {
        name: GroupEntry(
            share=1 / len(names), of=(name,), caps={name: caps[name]} if name in caps else {}
        )
        for name in names
    }


# ---- samples ----


def _first_samples(reader: SampleReader, stage: StageEntry, name: str) -> Iterator[LookedAt]:
    """The samples of an entry that training reads first."""
    sizes = {entry: len(reader.sources[entry]) for entry in stage.plan.entries}
    mixture = Mixture(_evenly(stage), sizes, reader.seed)
    processor = reader.encoder.processor
    found, position = 0, 0
    while found < min(_SAMPLES, sizes[name]):
        draw = mixture.draw(position)
        position += 1
        if draw.source != name:
            continue
        found += 1
        sample = reader.read(name, draw.index, draw.epoch)
        example = reader.encode(sample, name, draw.index, draw.epoch)
        learnt = sum(label != IGNORED for label in example.labels)
        pixels = processor.pixels(example.views)
        yield LookedAt(name, sample.id, len(example.ids), learnt, pixels)


def _lengths(entry: str, samples: int, seen: list[LookedAt]) -> EntryLengths:
    tokens = [looked_at.tokens for looked_at in seen]
    return EntryLengths(
        entry=entry,
        samples=samples,
        looked_at=len(seen),
        shortest=min(tokens),
        median=round(median(tokens)),
        longest=max(tokens),
        pixels=max(looked_at.pixels for looked_at in seen),
    )


# ---- memory ----


@dataclass(frozen=True)
class Load:
    """How much a micro-batch is.

    Attributes:
        samples: In it.
        tokens: With padding.
        learnt: Labels.
        pixels: Through the vision tower.
    """

    samples: int
    tokens: int
    learnt: int
    pixels: int

    @classmethod
    def of(cls, one: LookedAt) -> Load:
        """A single sample."""
        return cls(1, one.tokens, one.learnt, one.pixels)

    @classmethod
    def largest(cls, run: RunEntry, samples_per_step: int, found: Sequence[LookedAt]) -> Load:
        """As many as a device takes at once, each as large as the largest."""
        longest = max(one.tokens for one in found)
        pixels = max(one.pixels for one in found)
        samples = min(run.device_batch, samples_per_step)
        if run.device_tokens is not None:
            samples = min(samples, max(run.device_tokens // longest, 1))
        if run.device_pixels is not None and pixels:
            samples = min(samples, max(run.device_pixels // pixels, 1))
        learnt = max(one.learnt for one in found)
        return cls(samples, samples * longest, samples * learnt, samples * pixels)


def _set_modes(model: TpoModel, recipe: Recipe, stage: StageEntry) -> None:
    """Make the empty model ready for a stage; adapters are empty, too."""
    with init_empty_weights(include_buffers=False):
        set_modes(model, stage.modes, recipe.lora, recipe.seed, stage.patterns)


def _estimate(
    recipe: Recipe, model: TpoModel, stage: StageEntry, seen: Mapping[str, list[LookedAt]]
) -> StageEstimate:
    """What a stage takes; the model is ready for it."""
    parts = tuple(part_table(model, stage.modes, recipe.rates(stage)))
    parameters = sum(row.parameters for row in parts)
    trained = sum(row.trained for row in parts)
    numbers = NumberFormat.of(recipe.run.precision)
    states = [
        state_memory(parameters, trained, numbers, engine, devices)
        for engine in ENGINES
        for devices in DEVICES
    ]
    found = list(chain.from_iterable(seen[name] for name in stage.plan.entries))
    load = Load.largest(recipe.run, stage.samples_per_step, found)
    activations = _activations(recipe, model, stage, load)
    return StageEstimate(
        stage.name, parts, tuple(states), activations[0] if activations else None, load
    )


def _activations(
    recipe: Recipe, model: TpoModel, stage: StageEntry, load: Load
) -> list[ActivationMemory]:
    """What a micro-batch keeps; nothing if the backbone does not say what its layers are."""
    stacks = model.backbone.layer_stacks(load.tokens, load.pixels)
    numbers = NumberFormat.of(recipe.run.precision)
    rows = model.backbone.rows
    labels = math.ceil(load.learnt / recipe.run.logit_chunks)
    return [activation_memory(stacks, stage.modes, numbers, labels, rows)] if stacks else []
