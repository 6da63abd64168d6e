"""Evaluation in the middle of a stage, of the model that is being trained.

Training does not notice: weights, generators and what the engine knows of the model are as before.
A row of the file is written before the checkpoint of its step, and a resumed run forgets the rows
behind its checkpoint; so each evaluation stands there once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from tpokit.evaluation.runner import Evaluation
from tpokit.evaluation.sharing import Sharing
from tpokit.inference.lockstep import Lockstep
from tpokit.model import TpoModel
from tpokit.plugins import Plugins
from tpokit.recipe import Recipe, StageEntry
from tpokit.training.arguments import ZERO_STAGES, forget_order, gathered, lies_in_pieces
from tpokit.training.json_lines import append_rows
from tpokit.training.probe import ConversationProbe, StopRule
from tpokit.training.ranks import Ranks
from tpokit.training.run_folder import RunFolder
from tpokit.training.watching import Step, StepWatcher, Wish


class StageEvaluation(StepWatcher):
    """Scores the model every so many steps of a stage and after its last one."""

    def __init__(
        self,
        model: TpoModel,
        recipe: Recipe,
        stage: StageEntry,
        evaluation: Evaluation,
        probe: ConversationProbe | None,
        path: Path,
        shown: Callable[[int, Mapping[str, float], str], None],
    ) -> None:
        """Get ready.

        Args:
            model: That is trained.
            recipe: With ``evaluate.every``.
            stage: That is trained.
            evaluation: Scores a model.
            probe: The conversation probe, if the recipe has one.
            path: ``evaluations.jsonl`` of the run.
            shown: Called on the first rank with the step, the scores, and why the stage ends, if it
                does.
        """
        assert recipe.evaluate is not None
        self._model = model
        self._stage = stage
        self._every = recipe.evaluate.every
        self._evaluation = evaluation
        self._probe = probe
        self._remembers = stage in recipe.stages[:2]  # they begin with the probe's references
        if probe is not None and not self._remembers:
            probe.find_reference()
        limits = None if recipe.evaluate.probe is None else recipe.evaluate.probe.stop
        self._rule = None if limits is None else StopRule(limits)
        zero = recipe.run.engine in ZERO_STAGES  # the engine has changed the weights themselves
        self._autocast = recipe.run.precision == "bfloat16" and not zero
        self._path = path
        self._shown = shown

    def step_begins(self, step: Step) -> None:
        """In front of the first step of the first two stages: what the probe compares with."""
        if step.number == 1 and self._probe is not None and self._remembers:
            with _undisturbed(self._model, self._autocast) as lockstep:
                self._probe.remember(lockstep)

    def step_ended(self, number: int) -> Wish:
        """Evaluate where it is due; the probe may end the stage."""
        if number % self._every and number != self._stage.length:
            return Wish.NOTHING
        reason = None
        with _undisturbed(self._model, self._autocast) as lockstep:
            scores = dict(self._evaluation(self._model, lockstep=lockstep).scores)
            if self._probe is not None:
                found = self._probe.scores(lockstep)
                scores |= {f"probe.{name}": value for name, value in found._asdict().items()}
                reason = None if self._rule is None else self._rule.reason(found)
        if number == self._stage.length:
            reason = None  # it ends anyway
        if self._evaluation.sharing.first:
            self._write(number, scores, reason)
        return Wish.NOTHING if reason is None else Wish.FINISH

    def state(self) -> dict[str, Any]:
        """How often the probe was beyond its limits."""
        return {"bad": 0 if self._rule is None else self._rule.bad}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        if self._rule is not None:
            self._rule.bad = state["bad"]

    def _write(self, step: int, scores: Mapping[str, float], reason: str | None) -> None:
        row: dict[str, Any] = {"stage": self._stage.name, "step": step, "scores": scores}
        if reason is not None:
            row["ended"] = reason
        append_rows(self._path, [row])
        self._shown(step, scores, reason or "")


def stage_evaluations(
    recipe: Recipe,
    plugins: Plugins,
    stage: StageEntry,
    model: TpoModel,
    ranks: Ranks,
    folder: RunFolder,
    shown: Callable[[int, Mapping[str, float], str], None],
) -> list[StageEvaluation]:
    """What a recipe wants to be evaluated during a stage, with its conversation probe; mostly
    nothing.

    Args:
        recipe: That is trained.
        plugins: Where its names are looked up.
        stage: That is trained.
        model: That is trained.
        ranks: Processes that evaluate together.
        folder: Of the run.
        shown: See `StageEvaluation`.

    Raises:
        UsageError: The probe has no conversation, or no reference.
        DataError: Data to evaluate on are missing.
    """
    wanted = recipe.evaluate
    if wanted is None or not wanted.every:
        return []
    sharing = Sharing(ranks.rank, ranks.world)
    probe = None
    if wanted.probe is not None:
        reference = folder.probe_reference(stage)
        probe = ConversationProbe(recipe, plugins, model, sharing, reference)
    evaluation = Evaluation(recipe, plugins, sharing)
    return [StageEvaluation(model, recipe, stage, evaluation, probe, folder.evaluations, shown)]


class _EngineLockstep(Lockstep):
    """Keeps ranks in step whose model lies in pieces."""

    together = True

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def anyone(self, wants: bool) -> bool:
        """One number over all ranks."""
        found = torch.tensor(int(wants), device=self._device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found.item())

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        """Gathered once."""
        return gathered(module)


@contextmanager
def _undisturbed(model: TpoModel, autocast: bool) -> Iterator[Lockstep]:
    """Evaluation mode inside; afterwards training goes on as if nothing had been.

    Args:
        model: That is trained.
        autocast: Compute in bfloat16 as training does.

    Yields:
        What keeps ranks in step.
    """
    device = next(model.parameters()).device
    states = random.getstate(), np.random.get_state()
    modes = {module: module.training for module in model.modules()}
    pieces = lies_in_pieces(model)
    if pieces:
        forget_order(model)
    devices = [device] if device.type == "cuda" else []
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=autocast),
        ):
            model.eval()
            yield _EngineLockstep(device) if pieces else Lockstep()
    finally:
        for module, mode in modes.items():
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])
