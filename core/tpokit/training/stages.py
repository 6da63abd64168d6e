"""Training a recipe: its stages one after another, each from what the one before has saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import TrainerCallback

from tpokit.atomic import write_json
from tpokit.checkpoints.start import Start, load_start, save_start, taken
from tpokit.checkpoints.store import (
    LORA,
    described,
    files_of,
    load_model,
    load_weights,
    save_model,
)
from tpokit.checkpoints.tensors import file_tensors, trained_state
from tpokit.data.arrangement import packing_of
from tpokit.data.bad_samples import BadSample, BadSampleLimit
from tpokit.data.conversation_check import check_conversation
from tpokit.data.dataset import MixedDataset, open_sources
from tpokit.data.mixing import with_lengths
from tpokit.data.sample_reader import reader_of
from tpokit.errors import UsageError
from tpokit.evaluation.runner import evaluate_model
from tpokit.evaluation.sharing import Sharing
from tpokit.interfaces import DataSource
from tpokit.model import TpoModel, build_model
from tpokit.parts import part_table, set_modes
from tpokit.plugins import Plugins
from tpokit.recipe import Recipe, StageEntry
from tpokit.reporting import console
from tpokit.reporting.canvas import loss_curves
from tpokit.reporting.progress import TrainingProgress
from tpokit.training.arguments import (
    ZERO_STAGES,
    Split,
    check_engine,
    forget_engine,
    gather,
    training_arguments,
)
from tpokit.training.audit import GradientAudit
from tpokit.training.bad_samples import BadSampleList, forget_bad_samples
from tpokit.training.callbacks import StageLog, forget_rows, read_rows
from tpokit.training.evaluation import stage_evaluations
from tpokit.training.interruption import Interruption, StopWhenAsked
from tpokit.training.memory import keep_freed_memory
from tpokit.training.rank_guard import RankGuard
from tpokit.training.ranks import Ranks, naming_lost_ranks
from tpokit.training.resume import ResumePoint, StageCheckpoints, goes_on
from tpokit.training.run_folder import RunFolder
from tpokit.training.seeing import compared_tasks, measurements
from tpokit.training.trackers import check_trackers, tracker_callbacks
from tpokit.training.trainer import TpoTrainer
from tpokit.training.watching import StepWatcher


@dataclass(frozen=True)
class _Job:
    """What all stages of a run share."""

    recipe: Recipe
    plugins: Plugins
    folder: RunFolder
    ranks: Ranks
    sources: Mapping[str, DataSource]
    interruption: Interruption
    check_ranks: bool


def train(
    recipe: Recipe,
    plugins: Plugins,
    stage: str | None = None,
    resume: bool | Path | Literal["auto"] = False,
    overwrite: bool = False,
    curves: bool = True,
    check_ranks: bool = False,
) -> Path:
    """Train a recipe, or one stage of it.

    Args:
        recipe: Resolved with ``plugins``.
        plugins: Where its names are looked up.
        stage: Only this one, from what the stage before has saved.
        resume: Go on with the run in the recipe's output: finished stages are left alone, an
            unfinished one goes on from its newest whole checkpoint. ``"auto"``: start if there is
            no run yet. A path names another run's folder, or the checkpoint from which its stage
            goes on; what came after that is done again.
        overwrite: Take away what is in the output first.
        curves: Draw the losses at the end.
        check_ranks: Compare the gradients of ranks in every step, not in the first ones alone.

    Returns:
        The folder of the run; `tpokit.load_model` takes it.

    Raises:
        UsageError: The output, the recipe or the processes do not fit; nothing was touched.
        DataError: A sample is wrong.
        TrainingError: Too many losses are not finite, or another process was lost.
        CheckpointError: Something cannot be saved.
        Stopped: A signal asked for it.
    """
    ranks = Ranks.here()
    point = ResumePoint.at(resume) if isinstance(resume, Path) else None
    if point is not None:
        recipe = recipe.model_copy(update={"output": point.output})
    recipe, sources = _ready_recipe(recipe, plugins, stage, ranks)
    only = None if stage is None else recipe.stage(stage)
    wanted = list(recipe.stages) if only is None else [only]
    if recipe.run.threads is not None:
        torch.set_num_threads(recipe.run.threads)
    if not torch.cuda.is_available():
        keep_freed_memory()
    ranks.join(recipe.run.timeout_s)
    sizes = {name: len(source) for name, source in sources.items()}
    _refuse_different_data(ranks.shared(sizes))
    interruption = Interruption(ranks)
    folder = RunFolder(recipe, sizes)
    job = _Job(recipe, plugins, folder, ranks, sources, interruption, check_ranks)
    going_on = ranks.once(job.folder.is_run) if resume == "auto" else bool(resume)
    ranks.once(lambda: job.folder.check(only, going_on, overwrite))
    if overwrite or (only is None and not going_on):
        job.folder.plan_anew(only)
    if going_on and ranks.first:
        for line in job.folder.rearranged():
            console.say(f"{line}: the same steps up to rounding and dropout")
    if point is not None:
        _go_back(job, point, only)
    with naming_lost_ranks(ranks), job.interruption:
        _train_stages(job, wanted, curves)
    return job.folder.path


def _ready_recipe(
    recipe: Recipe, plugins: Plugins, stage: str | None, ranks: Ranks
) -> tuple[Recipe, dict[str, DataSource]]:
    """The recipe with the length of every stage that is trained, and the sources of their data.

    What is missing for the last stage shows here, before the first; and large files are indexed
    before the processes wait for each other.
    """
    check_engine(recipe, ranks)
    check_trackers(recipe.run.report_to)
    wanted = recipe.stages if stage is None else (recipe.stage(stage),)
    for entry in wanted:
        Split.in_recipe(recipe, entry, ranks.world)
    sources = open_sources(recipe, plugins, {n for entry in wanted for n in entry.plan.entries})
    check_conversation(recipe, wanted, sources)
    return with_lengths(recipe, {name: len(source) for name, source in sources.items()}), sources


def _go_back(job: _Job, point: ResumePoint, only: StageEntry | None) -> None:
    """Plan to go on from a given checkpoint, and say what is lost by that."""
    if only is not None and point.stage not in (None, only.name):
        raise UsageError(
            f"--resume names a checkpoint of stage {point.stage!r}, but --stage is {only.name!r}"
        )
    again = job.folder.plan_back(point)
    if again:
        lost = ", ".join(again)
        _say(job, f"going back to step {point.step} of stage {point.stage}; done again: {lost}")


def _train_stages(job: _Job, wanted: Sequence[StageEntry], curves: bool) -> None:
    recipe, ranks = job.recipe, job.ranks
    if wanted[0] is recipe.stages[0]:
        _evaluate(job, "before")
    for entry in wanted:
        if job.folder.done(entry):
            _say(job, f"stage {entry.name} is done already")
        else:
            _train_stage(job, entry)
        if number := job.interruption.agreed():
            raise job.interruption.stopped(number, f"stage {entry.name} is saved")
    if ranks.first and curves:
        _draw_curves(job)
    if wanted[-1] is recipe.stages[-1]:
        _evaluate(job, "after")


def _refuse_different_data(sizes: Sequence[Mapping[str, int]]) -> None:
    """See that all processes have the same data: otherwise each would follow an order of its own.

    Raises:
        UsageError: Sizes differ; on all processes alike.
    """
    for rank, found in enumerate(sizes):
        for name, size in found.items():
            if size != sizes[0][name]:
                raise UsageError(
                    f"data.{name} has {sizes[0][name]} samples for rank 0 and {size} for rank "
                    f"{rank}; all processes must read the same data"
                )


def _train_stage(job: _Job, stage: StageEntry) -> None:
    """Train one stage and save it."""
    recipe, ranks = job.recipe, job.ranks
    model, base = _ready_model(job, stage)
    limit = BadSampleLimit(recipe.run.bad_samples, stage.length * stage.samples_per_step)
    split = Split.in_recipe(recipe, stage, ranks.world)
    dataset = _dataset(job, stage, model, limit, split)
    ranks.once(job.folder.start)  # not before the model is built: a wrong option leaves no trace
    ranks.once(job.folder.forget_scores)
    apart = recipe.run.engine not in ZERO_STAGES
    checkpoints = StageCheckpoints(job.folder.path, stage.name, ranks, base, apart)
    newest = checkpoints.newest()
    done = 0 if newest is None else newest.step
    if newest is not None and newest.world != ranks.world:
        _refuse_other_order(recipe, newest.world, ranks.world)
    kept = ranks.once(lambda: _forget_unfinished(job, stage, checkpoints, done))
    bad_samples = BadSampleList(job.folder.bad_samples, stage.name, limit, ranks.first)
    bad_samples.go_on(kept)
    if newest is not None:
        told = goes_on(newest, sorted(recipe.rates(stage)), ranks.world)
        _say(job, f"stage {stage.name} {told}")
    arguments = training_arguments(recipe, stage, split, checkpoints.folder)
    if ranks.first:
        console.part_table(part_table(model, stage.modes, recipe.rates(stage)), stage.name)
    stop = StopWhenAsked(job.interruption)
    job.interruption.postponed = True
    with TrainingProgress(
        stage.name, stage.length, stage.samples_per_step, done, ranks.first
    ) as progress:
        trainer = TpoTrainer(
            model,
            arguments,
            dataset,
            recipe,
            stage,
            checkpoints,
            bad_samples,
            [*_watchers(job, stage, model, progress), stop],
        )
        log = StageLog(stage.name, job.folder.log, progress.update)
        for callback in (log, *_trackers(job, stage, done)):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest.folder))
    if (steps := trainer.state.global_step) < stage.length and stop.number:
        saved = f"stopped after step {steps} of stage {stage.name}, {checkpoints.folder} has it"
        raise job.interruption.stopped(stop.number, saved)
    if ranks.first:
        compared = compared_tasks(read_rows(job.folder.log), stage.name)
        console.task_table(compared, f"stage {stage.name}: gradients of tasks")
    if bad_samples.count:
        _say(job, f"{bad_samples.count} bad samples were replaced: {job.folder.bad_samples}")
    _save(job, stage, model, base, checkpoints)
    job.interruption.postponed = False
    trainer.release()
    forget_engine()


def _watchers(
    job: _Job, stage: StageEntry, model: TpoModel, progress: TrainingProgress
) -> list[StepWatcher]:
    """What looks at the steps of a stage, in this order."""
    shown = progress.scores
    measuring, lines = measurements(job.recipe, stage, model, job.ranks)
    for line in lines:
        _say(job, line)
    recipe, weights = job.recipe, job.recipe.loss_weights(stage)
    return [
        RankGuard(model, recipe.run.engine, stage.name, job.ranks, job.check_ranks),
        GradientAudit(model, weights, recipe.run.without_gradient, stage.name, job.ranks),
        *measuring,
        *stage_evaluations(job.recipe, job.plugins, stage, model, job.ranks, job.folder, shown),
    ]


def _trackers(job: _Job, stage: StageEntry, done: int) -> list[TrainerCallback]:
    """What tells trackers of the lines of the log; on the first rank only."""
    names = job.recipe.run.report_to if job.ranks.first else ()
    return tracker_callbacks(names, job.folder.tensorboard / stage.name, done)


def _ready_model(job: _Job, stage: StageEntry) -> tuple[TpoModel, dict[str, str]]:
    """The model of a stage, from the base and what the stage before has saved, and what its base
    is.
    """
    recipe = job.recipe
    model = build_model(recipe, job.plugins)
    packing_of(recipe.run, model.backbone)  # an error, if it cannot be had, before a folder is made
    base = model.backbone.identity()
    before = job.folder.before(stage)
    if before is not None:
        load_weights(model, recipe, before, base)
        _say(job, f"stage {stage.name} starts from {before}: {_stage_start(stage, before)}")
    elif recipe.init_path is not None:
        start = _start(job, model, base, recipe.init_path)
        if start is not None:
            _keep_start(job, model, base, start)
    set_modes(model, stage.modes, recipe.lora, recipe.seed, stage.patterns)
    if recipe.run.gradient_checkpointing:
        model.backbone.gradient_checkpointing_enable()
    return model, base


def _stage_start(stage: StageEntry, before: Path) -> str:
    """What a stage takes from the one before; never its optimizer and schedule."""
    files: list[str] = described(before)["files"]
    adapters = [LORA] if "lora" in stage.modes.values() and LORA not in files else []
    return taken(files, [*adapters, "optimizer"])


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


def _dataset(
    job: _Job, stage: StageEntry, model: TpoModel, limit: BadSampleLimit, split: Split
) -> MixedDataset:
    sources = {name: job.sources[name] for name in stage.plan.entries}
    reader = reader_of(job.recipe, stage.name, sources, model)
    block = split.block(job.recipe)
    return MixedDataset(sources, stage.mix, reader.seed, reader.encoder, limit, block)


def _refuse_other_order(recipe: Recipe, before: int, now: int) -> None:
    """See that a run may go on with another number of processes.

    Raises:
        UsageError: Its data would come in another order.
    """
    if recipe.run.schedule == "same_task":
        raise UsageError(
            f"with run.schedule: same_task the order of the data follows from the number of "
            f"processes, which was {before} and is {now}; go on with {before}"
        )


def _forget_unfinished(
    job: _Job, stage: StageEntry, checkpoints: StageCheckpoints, done: int
) -> list[BadSample]:
    """Take away what an interrupted run left behind its newest whole checkpoint; gives the bad
    samples before it.
    """
    checkpoints.clean()
    forget_rows(job.folder.log, stage.name, done)
    forget_rows(job.folder.evaluations, stage.name, done)
    forget_rows(job.folder.skipped_steps, stage.name, done)
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
    reports = job.ranks.once(job.folder.reports)
    if moment not in reports:
        if moment == "before":
            model = _first_model(job)
        else:
            model = load_model(job.folder.path, job.plugins)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        sharing = Sharing(job.ranks.rank, job.ranks.world)
        report = evaluate_model(model, job.recipe, job.plugins, None, None, sharing)
        reports[moment] = report.to_json()
        job.ranks.once(job.folder.start)
        job.ranks.once(lambda: write_json(job.folder.evaluation, reports))
    if moment == "after" and job.ranks.first:
        columns = {when: report["scores"] for when, report in reports.items()}
        columns["best constant"] = reports[moment]["constant"]
        console.score_table(columns)


def _first_model(job: _Job) -> TpoModel:
    """What the run starts from; nothing is written."""
    recipe = job.recipe
    model = build_model(recipe, job.plugins)
    packing_of(recipe.run, model.backbone)  # as for the first stage, but before minutes of scoring
    if recipe.init_path is not None:
        _start(job, model, model.backbone.identity(), recipe.init_path)
    return model


def _draw_curves(job: _Job) -> None:
    """Loss curves of all stages; without matplotlib one line says how to get them."""
    logged = read_rows(job.folder.log)
    last = {row["stage"]: row["step"] for row in logged}
    first: dict[str, int] = {}
    steps = 0
    for stage in job.recipe.stages:
        first[stage.name], steps = steps, steps + last.get(stage.name, 0)
    rows = [{**row, "step": first[row["stage"]] + row["step"]} for row in logged]
    try:
        loss_curves(rows, job.folder.curves, list(first.items()))
    except UsageError as cause:
        _say(job, str(cause))


def _say(job: _Job, line: str) -> None:
    if job.ranks.first:
        console.say(line)
