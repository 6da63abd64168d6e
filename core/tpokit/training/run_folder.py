"""The folder of a run: what is in it, whether a new one may start there, what is finished.

::

    <output>/
      recipe.yaml  run.json       what is trained here, and which stages are done
      0-start/                    the saved model that it starts from, with init_from
      assign/ heads/ joint/       saved models, one for each stage
      heads.checkpoints/          while that stage runs
      log.jsonl  loss.png  evaluation.json
      evaluations.jsonl           scores during stages, with evaluate.every
      probe/                      what the conversation probe compares with, with evaluate.probe
      tensorboard/                a folder for each stage, with run.report_to
      bad_samples.jsonl           samples that could not be read and were replaced, if any
      skipped_steps.jsonl         micro-batches for which a step changed no weight, if any
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpokit.atomic import is_partial, write_json, write_text
from tpokit.checkpoints.store import MODEL_FILE, RECIPE_FILE, RUN_FILE, described, saved_folder
from tpokit.errors import UsageError
from tpokit.recipe import Recipe, StageEntry, difference, load_recipe
from tpokit.training.bad_samples import BAD_SAMPLES_FILE
from tpokit.training.callbacks import LOG_FILE
from tpokit.training.ranks import Ranks
from tpokit.training.resume import ResumePoint, StageCheckpoints
from tpokit.training.skipped import SKIPPED_STEPS_FILE

_FORMAT = 1
_START_FOLDER = "0-start"  # no stage can have that name
_CURVES_FILE = "loss.png"
_ARRANGEMENT = (
    "run.engine: plain -> ddp",  # both keep the whole optimizer on every rank
    "run.engine: ddp -> plain",
    "run.device_batch:",
    "run.group:",
    "run.packing:",
    "run.gradient_checkpointing:",
    "run.logit_chunks:",
)
"""Beginnings of differences that a resumed run may have: they change no step but by rounding."""
_EVALUATION_FILE = "evaluation.json"
_EVALUATIONS_FILE = "evaluations.jsonl"
_PROBE_FOLDER = "probe"
_TENSORBOARD_FOLDER = "tensorboard"


class RunFolder:
    """The folder of one run.

    Attributes:
        path: The recipe's ``output``.
        start_model: What the first stage starts from, if the recipe names a saved model.
        log, curves, evaluation, evaluations, bad_samples, skipped_steps: Files in it.
        tensorboard: Folder in it.
    """

    def __init__(self, recipe: Recipe, sizes: Mapping[str, int] = {}) -> None:
        """Name the folder; nothing is read or written yet.

        Args:
            recipe: What is trained.
            sizes: Data entry to its number of samples, from which the order of samples follows.
        """
        self._recipe = recipe
        self._sizes = sizes
        self._doomed: list[str] = []
        self._all_doomed = False
        self._back: ResumePoint | None = None
        self._started = False
        self.path = recipe.output
        self.start_model = self.path / _START_FOLDER
        self.log = self.path / LOG_FILE
        self.curves = self.path / _CURVES_FILE
        self.evaluation = self.path / _EVALUATION_FILE
        self.evaluations = self.path / _EVALUATIONS_FILE
        self.bad_samples = self.path / BAD_SAMPLES_FILE
        self.skipped_steps = self.path / SKIPPED_STEPS_FILE
        self.tensorboard = self.path / _TENSORBOARD_FOLDER

    def check(self, stage: StageEntry | None, resume: bool, overwrite: bool) -> None:
        """See whether a run may start here, or go on; nothing is touched before `start`.

        Args:
            stage: The only stage that is wanted; ``None``: all of them.
            resume: Go on with the run that is there.
            overwrite: Take away what is there.

        Raises:
            UsageError: There is something in the folder that would be lost, nothing to go on with,
                another recipe, other data, or the stage before is missing.
            CheckpointError: There is no saved model where ``init_from`` points.
        """
        if resume and overwrite:
            raise UsageError(
                "--resume keeps what is there and --overwrite takes it away; choose one"
            )
        if not self.is_run():
            self._refuse_foreign()
            if resume:
                raise UsageError(
                    f"there is no run in {self.path} to go on with; leave out --resume"
                )
        elif resume:
            self._refuse_other_recipe()
            self._refuse_other_data()
        elif not overwrite and self._would_lose(stage):
            raise UsageError(
                f"{self.path} already holds {'this stage' if stage else 'a run'}; go on with it by "
                "--resume, start again and lose it by --overwrite, or name another folder by "
                "--set output=FOLDER"
            )
        self._refuse_gap(stage)
        if stage in (None, self._recipe.stages[0]) and not (resume and self.has_start()):
            self._refuse_start()

    def plan_anew(self, stage: StageEntry | None) -> None:
        """Let `start` take away what is there: a stage and what was built on it, or the run.

        Without ``overwrite`` that is at most a log and scores: `check` has seen that no step is
        lost.
        """
        names = [entry.name for entry in self._recipe.stages]
        self._doomed = names if stage is None else names[names.index(stage.name) :]
        self._all_doomed = stage is None

    def plan_back(self, point: ResumePoint) -> list[str]:
        """Let `start` go back to a given checkpoint.

        Returns:
            What was made after it, which is taken away and done again: names in the folder.

        Raises:
            UsageError: The recipe has no such stage.
        """
        if point.stage is None:
            return []
        names = [entry.name for entry in self._recipe.stages]
        later = names[names.index(self._recipe.stage(point.stage).name) + 1 :]
        found = [*self._checkpoints(point.stage).behind(point.step), self.path / point.stage]
        for name in later:
            found += [self.path / name, self._checkpoints(name).folder]
        self._back = point
        self._doomed = later
        return [str(path.relative_to(self.path)) for path in found if path.exists()]

    def start(self) -> None:
        """Take away what is in the way and write down what is trained here; once."""
        if self._started:
            return
        self._remove()
        self._clean()
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / RECIPE_FILE, self._recipe.dump())
        self._started = True
        self.note_done()

    def done(self, stage: StageEntry) -> bool:
        """Whether a stage is saved; its folder appears only when it is whole."""
        again = self._back is not None and self._back.stage == stage.name
        lost = again or stage.name in self._doomed
        return not lost and (self.path / stage.name / MODEL_FILE).is_file()

    def before(self, stage: StageEntry) -> Path | None:
        """Saved stage that a stage starts from; ``None`` for the first."""
        place = self._recipe.stages.index(stage)
        return None if place == 0 else self.path / self._recipe.stages[place - 1].name

    def probe_reference(self, stage: StageEntry) -> Path:
        """What the conversation probe compares a stage with: the end of the first stage, or for
        that one what the run starts from.
        """
        first = self._recipe.stages[0]
        name = _START_FOLDER if stage == first else first.name
        return self.path / _PROBE_FOLDER / f"{name}.safetensors"

    def has_start(self) -> bool:
        """Whether the model that the first stage starts from is kept here."""
        doomed = self._recipe.stages[0].name in self._doomed
        return not doomed and (self.start_model / MODEL_FILE).is_file()

    def started(self, stage: StageEntry) -> list[str]:
        """Names of the files of the saved model that a stage starts from."""
        before = self.before(stage)
        if before is None and self.has_start():
            before = self.start_model
        files: list[str] = [] if before is None else described(before)["files"]
        return files

    def note_done(self) -> None:
        """Write down which stages are done."""
        names = [stage.name for stage in self._recipe.stages]
        done = [stage.name for stage in self._recipe.stages if self.done(stage)]
        run = {
            "format": _FORMAT,
            "name": self._recipe.name,
            "stages": names,
            "done": done,
            "samples": {**self._known_sizes(), **self._sizes},
        }
        write_json(self.path / RUN_FILE, run)

    def reports(self) -> dict[str, Any]:
        """Scores ``before`` and ``after`` training, as far as they are known."""
        if self._doomed or not self.evaluation.is_file():
            return {}
        found: dict[str, Any] = json.loads(self.evaluation.read_text(encoding="utf-8"))
        return found

    def forget_scores(self) -> None:
        """Take away the scores of the finished run: a stage is about to change it."""
        known = self.reports()
        if known.pop("after", None) is not None:
            write_json(self.evaluation, known)

    def is_run(self) -> bool:
        """Whether a run was started here."""
        return (self.path / RUN_FILE).is_file()

    def _would_lose(self, stage: StageEntry | None) -> bool:
        """Whether starting would throw away steps that were done."""
        return any(
            self.done(entry) or any((self.path / f"{entry.name}.checkpoints").glob("step-*"))
            for entry in (self._recipe.stages if stage is None else [stage])
        )

    def _refuse_foreign(self) -> None:
        """A folder that holds anything but a run is never written into, nor emptied."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UsageError(f"{self.path} is a file; name a folder by --set output=FOLDER")
        own = {RECIPE_FILE}  # written just before the run's own file
        foreign = [p.name for p in self.path.iterdir() if p.name not in own and not is_partial(p)]
        if foreign:
            named = ", ".join(sorted(foreign)[:3])
            raise UsageError(
                f"{self.path} is not empty ({named}) and holds no run that "
                "could be resumed or overwritten; name another folder by --set output=FOLDER"
            )

    def rearranged(self) -> list[str]:
        """What a resumed run computes in another way, as lines ``path: old -> new``: every step has
        the same samples, but losses differ by rounding and dropout.
        """
        return [line for line in self._differences() if line.startswith(_ARRANGEMENT)]

    def _differences(self) -> list[str]:
        return difference(load_recipe(self.path / RECIPE_FILE), self._recipe)

    def _refuse_other_recipe(self) -> None:
        ignored = ("output:", *_ARRANGEMENT)
        lines = [line for line in self._differences() if not line.startswith(ignored)]
        if lines:
            raise UsageError(
                f"the run in {self.path} was started with another recipe, nothing was changed:\n  "
                + "\n  ".join(lines)
                + "\ntake these back, or start again with --overwrite or another output"
            )

    def _refuse_other_data(self) -> None:
        known = self._known_sizes()
        entries = {
            name
            for stage in self._recipe.stages
            if not self.done(stage)
            for name in stage.plan.entries
        }
        lines = [
            f"data.{name}: {known[name]} samples -> {self._sizes[name]}"
            for name in sorted(entries & set(known) & set(self._sizes))
            if known[name] != self._sizes[name]
        ]
        if lines:
            raise UsageError(
                f"the run in {self.path} was started with other data, nothing was changed:\n  "
                + "\n  ".join(lines)
                + "\ntake these back (the order of samples follows from their number), or start "
                "again with --overwrite or another output"
            )

    def _known_sizes(self) -> dict[str, int]:
        """Data entry of the recipe to its number of samples when its stage was started last."""
        if not self.is_run():
            return {}
        run = json.loads((self.path / RUN_FILE).read_text(encoding="utf-8"))
        return {n: size for n, size in run.get("samples", {}).items() if n in self._recipe.data}

    def _refuse_gap(self, stage: StageEntry | None) -> None:
        before = None if stage is None else self.before(stage)
        if stage is not None and before is not None and not (before / MODEL_FILE).is_file():
            raise UsageError(
                f"stage {stage.name!r} starts from stage {before.name!r}, which is not in "
                f"{self.path}; train that first with --stage {before.name}, or all of them without "
                "--stage"
            )

    def _refuse_start(self) -> None:
        """See that there is a saved model to start from, and that the run will not remove it."""
        source = self._recipe.init_path
        if source is None:
            return
        saved_folder(source)
        if source.resolve().is_relative_to(self.path.resolve()):
            raise UsageError(
                f"init_from: {source} lies in the output {self.path}; name another folder by "
                "--set output=FOLDER"
            )

    def _remove(self) -> None:
        """Take away what is in the way; never a file that is not the run's."""
        names = list(self._doomed)
        if self._all_doomed and self.is_run():
            run = json.loads((self.path / RUN_FILE).read_text(encoding="utf-8"))
            names += run["stages"]
            self.log.unlink(missing_ok=True)
            self.evaluations.unlink(missing_ok=True)
            self.bad_samples.unlink(missing_ok=True)
            self.skipped_steps.unlink(missing_ok=True)
        if names:
            self.curves.unlink(missing_ok=True)
            self.evaluation.unlink(missing_ok=True)
        if self._recipe.stages[0].name in names:
            shutil.rmtree(self.start_model, ignore_errors=True)
            shutil.rmtree(self.path / _PROBE_FOLDER, ignore_errors=True)
        for name in names:
            shutil.rmtree(self.path / name, ignore_errors=True)
            shutil.rmtree(self.path / f"{name}.checkpoints", ignore_errors=True)
            shutil.rmtree(self.tensorboard / name, ignore_errors=True)
        self._doomed = []
        self._go_back()

    def _go_back(self) -> None:
        """Take away what the stage of a given checkpoint did after it."""
        if self._back is None or self._back.stage is None:
            return
        shutil.rmtree(self.path / self._back.stage, ignore_errors=True)
        for path in self._checkpoints(self._back.stage).behind(self._back.step):
            shutil.rmtree(path)
        self._back = None

    def _checkpoints(self, stage: str) -> StageCheckpoints:
        return StageCheckpoints(self.path, stage, Ranks(0, 1, False))

    def _clean(self) -> None:
        """Take away what an interrupted run had not finished writing."""
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if is_partial(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
