"""Training a recipe: its stages one after another, each from what the one before has saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpokit.atomic import write_json
from tpokit.checkpoints.start import Start, load_start, save_start
from tpokit.checkpoints.store import files_of, load_model, load_weights, save_model
from tpokit.checkpoints.tensors import file_tensors, trained_state
from tpokit.data.bad_samples import BadSample, BadSampleLimit
from tpokit.data.conversation import Encoder
from tpokit.data.dataset import MixedDataset, open_sources
from tpokit.data.mixing import number
from tpokit.errors import UsageError
from tpokit.evaluation.runner import evaluate_model
from tpokit.model import TpoModel, build_model
from tpokit.parts import part_table, set_modes
from tpokit.plugins import Plugins
from tpokit.recipe import Recipe, StageEntry
from tpokit.reporting import console
from tpokit.reporting.canvas import loss_curves
from tpokit.training.arguments import (
    ZERO_STAGES,
    Split,
    check_engine,
    forget_engine,
    gather,
    training_arguments,
)
from tpokit.training.bad_samples import BadSampleList, forget_bad_samples
from tpokit.training.callbacks import BAD_SAMPLES, RATE, SPEED, StageLog, forget_rows, read_rows
from tpokit.training.memory import keep_freed_memory
from tpokit.training.ranks import Ranks
from tpokit.training.resume import StageCheckpoints, step_of
from tpokit.training.run_folder import RunFolder
from tpokit.training.trainer import TpoTrainer
from tpokit.training.watching import StepWatcher

_NO_TERM = ("stage", "step", "grad_norm", SPEED, BAD_SAMPLES)


@dataclass(frozen=True)
class _Job:
    """What all stages of a run share."""

    recipe: Recipe
    plugins: Plugins
    folder: RunFolder
    ranks: Ranks


def train(
    recipe: Recipe,
    plugins: Plugins,
    stage: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train a recipe, or one stage of it.

    Args:
        recipe: Resolved with ``plugins``.
        plugins: Where its names are looked up.
        stage: Only this one, from what the stage before has saved.
        resume: Go on with the run in the recipe's output: finished stages are left alone, an
            unfinished one goes on from its newest whole checkpoint.
        overwrite: Take away what is in the output first.

    Returns:
        The folder of the run; `tpokit.load_model` takes it.

    Raises:
        UsageError: The output, the recipe or the processes do not fit; nothing was touched.
        DataError: A sample is wrong.
        TrainingError: A loss is not finite.
        CheckpointError: Something cannot be saved.
    """
    ranks = Ranks.here()
    check_engine(recipe, ranks)
    only = None if stage is None else recipe.stage(stage)
    wanted = list(recipe.stages) if only is None else [only]
    for entry in wanted:
        Split.in_recipe(recipe, entry, ranks.world)
    mixed = {name for entry in wanted for name in entry.mix}
    open_sources(
        recipe, plugins, mixed
    )  # what is missing for the last stage shows before the first
    if recipe.run.threads is not None:
        torch.set_num_threads(recipe.run.threads)
    if not torch.cuda.is_available():
        keep_freed_memory()
    ranks.join(recipe.run.timeout_s)
    job = _Job(recipe, plugins, RunFolder(recipe), ranks)
    ranks.once(lambda: job.folder.check(only, resume, overwrite))
    if overwrite or (only is None and not resume):
        job.folder.plan_anew(only)
    if wanted[0] is recipe.stages[0]:
        _evaluate(job, "before")
    for entry in wanted:
        if job.folder.done(entry):
            _say(job, f"stage {entry.name} is done already")
        else:
            _train_stage(job, entry)
        ranks.wait()
    if ranks.first:
        _draw_curves(job)
    if wanted[-1] is recipe.stages[-1]:
        _evaluate(job, "after")
    return job.folder.path


def _train_stage(job: _Job, stage: StageEntry) -> None:
    """Train one stage and save it."""
    recipe, ranks = job.recipe, job.ranks
    model, base = _ready_model(job, stage)
    limit = BadSampleLimit(recipe.run.bad_samples, stage.steps * stage.samples_per_step)
    dataset = _dataset(job, stage, model, limit)
    ranks.once(job.folder.start)  # not before the model is built: a wrong option leaves no trace
    ranks.once(job.folder.forget_scores)
    checkpoints = StageCheckpoints(job.folder.path, stage.name, ranks)
    newest = checkpoints.newest()
    done = 0 if newest is None else step_of(newest)
    kept = ranks.once(lambda: _forget_unfinished(job, stage, checkpoints, done))
    bad_samples = BadSampleList(job.folder.bad_samples, stage.name, limit, ranks.first)
    bad_samples.go_on(kept)
    if newest is not None:
        _say(job, f"going on from {newest}")
    split = Split.in_recipe(recipe, stage, ranks.world)
    arguments = training_arguments(recipe, stage, split, checkpoints.folder)
    if ranks.first:
        console.part_table(part_table(model, stage.modes, recipe.rates(stage)), stage.name)
    with console.TrainingProgress(
        stage.name, stage.steps, stage.samples_per_step, done, ranks.first
    ) as progress:
        trainer = TpoTrainer(
            model,
            arguments,
            dataset,
            recipe,
            stage,
            checkpoints,
            [StageLog(stage.name, job.folder.log, progress.update)],
            bad_samples,
            _watchers(job, stage, model),
        )
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    if bad_samples.count:
        _say(job, f"{bad_samples.count} bad samples were replaced: {job.folder.bad_samples}")
    _save(job, stage, model, base, checkpoints)
    trainer.release()
    forget_engine()


def _watchers(job: _Job, stage: StageEntry, model: TpoModel) -> list[StepWatcher]:
    """What looks at the steps of a stage."""
    return []


def _ready_model(job: _Job, stage: StageEntry) -> tuple[TpoModel, dict[str, str]]:
    """The model of a stage, from the base and what the stage before has saved, and what its base
    is.
    """
    recipe = job.recipe
    model = build_model(recipe, job.plugins)
    base = model.backbone.identity()
    before = job.folder.before(stage)
    if before is not None:
        load_weights(model, recipe, before, base)
        _say(job, f"stage {stage.name} starts from {before}")
    elif recipe.init_path is not None:
        start = _start(job, model, base, recipe.init_path)
        if start is not None:
            _keep_start(job, model, base, start)
    set_modes(model, stage.modes, recipe.lora, recipe.seed, stage.patterns)
    if recipe.run.gradient_checkpointing:
        model.backbone.gradient_checkpointing_enable()
    return model, base


def _start(job: _Job, model: TpoModel, base: Mapping[str, str], source: Path) -> Start | None:
    """Give a fresh model the weights of ``init_from``: those that the run's folder keeps (then
    ``None``), otherwise those of the saved model itself.
    """
    if job.ranks.once(job.folder.has_start):
        load_weights(model, job.recipe, job.folder.start_model, base)
        return None
    return load_start(model, job.recipe, source, base)


def _keep_start(job: _Job, model: TpoModel, base: Mapping[str, str], start: Start) -> None:
    """Write what the run starts from into its folder, from where a resumed run takes it."""

    def write() -> None:
        job.folder.start()
        save_start(model, job.recipe, job.folder.start_model, start, base)

    job.ranks.once(write)
    _say(job, str(start))


def _dataset(job: _Job, stage: StageEntry, model: TpoModel, limit: BadSampleLimit) -> MixedDataset:
    recipe, processor = job.recipe, model.backbone.processor
    heads = {task: model.head(task) for task in model.heads}
    length = recipe.run.max_length or processor.max_length
    return MixedDataset(
        open_sources(recipe, job.plugins, stage.mix),
        stage.mix,
        number("stage", recipe.seed, stage.name),
        Encoder(processor, heads, model.tokens, length),
        limit,
    )


def _forget_unfinished(
    job: _Job, stage: StageEntry, checkpoints: StageCheckpoints, done: int
) -> list[BadSample]:
    """Take away what an interrupted run left behind its newest whole checkpoint; gives the bad
    samples before it.
    """
    checkpoints.clean()
    forget_rows(job.folder.log, stage.name, done)
    samples = done * stage.samples_per_step
    return forget_bad_samples(job.folder.bad_samples, stage.name, samples)


def _save(
    job: _Job,
    stage: StageEntry,
    model: TpoModel,
    base: Mapping[str, str],
    checkpoints: StageCheckpoints,
) -> None:
    wanted: dict[str, Tensor] = {}
    started = job.ranks.once(lambda: job.folder.started(stage))
    for name in files_of(model, job.recipe, stage, started):
        wanted.update(file_tensors(model, name))
    state = trained_state(wanted, gather if job.recipe.run.engine in ZERO_STAGES else None)
    folder = job.folder.path / stage.name

    def write() -> None:
        save_model(model, job.recipe, folder, stage, base, state, checkpoints.kept, started)
        job.folder.note_done()
        checkpoints.remove()

    job.ranks.once(write)


def _evaluate(job: _Job, moment: str) -> None:
    """Score what the run starts from (the base with fresh heads, or ``init_from``), or the finished
    run, if the recipe wants it and nobody has yet.
    """
    wanted = job.recipe.evaluate
    if wanted is None or (moment == "before" and not wanted.before):
        return
    if job.ranks.world > 1:
        if moment == "after":
            _say(job, f"scores: tpokit evaluate {job.folder.path}")
        return
    reports = job.folder.reports()
    if moment not in reports:
        if moment == "before":
            model = _first_model(job)
        else:
            model = load_model(job.folder.path, job.plugins)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        reports[moment] = evaluate_model(model, job.recipe, job.plugins).to_json()
        job.folder.start()
        write_json(job.folder.evaluation, reports)
    if moment == "after":
        columns = {when: report["scores"] for when, report in reports.items()}
        columns["best constant"] = reports[moment]["constant"]
        console.score_table(columns)


def _first_model(job: _Job) -> TpoModel:
    """What the run starts from; nothing is written."""
    recipe = job.recipe
    model = build_model(recipe, job.plugins)
    if recipe.init_path is not None:
        _start(job, model, model.backbone.identity(), recipe.init_path)
    return model


def _draw_curves(job: _Job) -> None:
    """Loss curves of all stages; without matplotlib one line says how to get them."""
    first: dict[str, int] = {}
    steps = 0
    for stage in job.recipe.stages:
        first[stage.name], steps = steps, steps + stage.steps
    rows = [_terms(row, first[row["stage"]]) for row in read_rows(job.folder.log)]
    try:
        loss_curves(rows, job.folder.curves, list(first.items()))
    except UsageError as cause:
        _say(job, str(cause))


def _terms(row: Mapping[str, Any], before: int) -> dict[str, float]:
    terms = {
        name: value
        for name, value in row.items()
        if name not in _NO_TERM and not name.startswith(RATE)
    }
    return {"step": before + row["step"], **terms}


def _say(job: _Job, line: str) -> None:
    if job.ranks.first:
        console.say(line)
