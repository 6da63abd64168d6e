"""Finds trained weights that do not learn: without a gradient, or with one of exactly zero.

A weight that no loss depends on is found before the first backward pass. A gradient of zero is held
against a weight only when it was so in each of the first steps that could have given it another
one: behind a matrix that starts at zero (as LoRA's second does) everything learns one step later,
and the first step of a warm-up has a rate of zero. A step could have, if it called the task of a
head, had a given value for what encodes these, media for the vision tower and the connector, and a
call for the bridge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tpokit.batch import Batch, tensors_in
from tpokit.errors import TrainingError
from tpokit.losses import ASSIGN
from tpokit.model import TpoModel
from tpokit.parts import part_of_parameters
from tpokit.training.arguments import gradient_of
from tpokit.training.gradient_order import weights_of
from tpokit.training.ranks import Ranks
from tpokit.training.watching import Step, StepWatcher
from tpokit.types import LossTerm

AUDITED_STEPS = 3
"""A gradient of zero in so many steps is no accident."""
_SEEING = ("vision", "connector")
_GIVEN = "given "
_SHOWN = 8


class GradientAudit(StepWatcher):
    """Stops a stage that trains weights which cannot learn."""

    def __init__(
        self,
        model: TpoModel,
        weights: Mapping[str, float],
        allowed: Sequence[str],
        stage: str,
        ranks: Ranks,
    ) -> None:
        """Find what is to be audited.

        Args:
            model: With its modes set, before an engine wraps it.
            weights: Loss term to its weight in the combined loss.
            allowed: Regular expressions for full names of weights that need no gradient, besides
                those that backbone, connector and heads name themselves.
            stage: Its name, for messages.
            ranks: Processes of the run.
        """
        self._model = model
        self._ranks = ranks
        self._stage = stage
        parts = part_of_parameters(model)
        excused = set(_excused(model, weights, allowed))
        self._open = {
            name: weight
            for name, weight in model.named_parameters()
            if weight.requires_grad and name not in excused
        }
        giving = _encoding_given(model)
        self._parts = {name: parts[name] for name in self._open}
        self._kinds = {
            name: f"{_GIVEN}{parts[name]}" if id(weight) in giving else parts[name]
            for name, weight in self._open.items()
        }
        self._chances = dict.fromkeys(self._open, 0)
        self._reached = not self._open
        self._where = ""
        self._kinds_due: set[str] = set()

    def step_begins(self, step: Step) -> None:
        """Find which kinds of weights this step can teach, on any rank."""
        self._where = f"stage {self._stage}, step {step.number}"
        if not self._open:
            return
        kinds = sorted(set(self._kinds.values()))
        due = torch.tensor([float(self._can_learn(kind, step)) for kind in kinds])
        if self._ranks.world > 1:
            due = due.to("cuda" if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(due, op=dist.ReduceOp.MAX)
        self._kinds_due = {kind for kind, one in zip(kinds, due.tolist(), strict=True) if one}

    def loss_known(self, terms: Mapping[str, LossTerm], loss: Tensor, batch: Batch) -> None:
        """See that the loss depends on every weight, in the first micro-batch that runs all parts.

        Raises:
            TrainingError: It does not.
        """
        if self._reached or batch.called is not None:
            return
        self._reached = True
        found = {id(weight) for weight in weights_of(loss)}
        lost = [name for name, weight in self._open.items() if id(weight) not in found]
        if lost:
            raise TrainingError(self._message("no loss depends on", lost))

    def gradients_ready(self) -> None:
        """Look at the gradients of weights that had none besides zero yet.

        Raises:
            TrainingError: Some had none in all of the first steps that could have given one; on all
                ranks alike.
        """
        due = {name: w for name, w in self._open.items() if self._kinds[name] in self._kinds_due}
        if not due:
            return
        largest = torch.stack([_largest(weight) for weight in due.values()]).tolist()
        if not all(value < float("inf") for value in largest):
            return  # the step is skipped
        for name, value in zip(due, largest, strict=True):
            self._chances[name] += 1
            if value:
                del self._open[name]
        idle = [name for name in self._open if self._chances[name] >= AUDITED_STEPS]
        if idle:
            often = f"the gradient was exactly zero in {AUDITED_STEPS} steps that ran"
            raise TrainingError(self._message(often, idle))

    def _can_learn(self, kind: str, step: Step) -> bool:
        if kind.startswith(_GIVEN):
            task = kind.removeprefix(_GIVEN)
            return any(len(batch.given[task].rows) for batch in step.batches)
        if kind in _SEEING:
            return any(t.numel() for batch in step.batches for t in tensors_in(batch.media))
        if kind == "bridge":
            return bool(step.counts.get(ASSIGN))
        if kind in self._model.heads:
            return any(n for term, n in step.counts.items() if term.partition(".")[0] == kind)
        return any(step.counts.values())

    def _message(self, fault: str, names: Sequence[str]) -> str:
        by_part: dict[str, list[str]] = {}
        for name in names:
            by_part.setdefault(self._parts[name], []).append(name)
        told = "; ".join(f"{part}: {_some(of_part)}" for part, of_part in by_part.items())
        patterns = ", ".join(f"'{_pattern(of_part)}'" for of_part in by_part.values())
        return (
            f"{self._where}: {fault} {len(names)} of the trained weights, which so learn nothing "
            f"({told}); train them no longer (train: of the stage), give their loss a weight, or, "
            f"if that is right, write run.without_gradient: [{patterns}]"
        )


def _excused(
    model: TpoModel, weights: Mapping[str, float], allowed: Sequence[str]
) -> Iterator[str]:
    """Full names of weights that need no gradient, as the recipe, backbone and heads say."""
    patterns = {"": tuple(allowed), "backbone.": model.backbone.without_gradient()}
    for task in model.heads:
        terms = model.head(task).terms
        learnt = frozenset(term for term in terms if weights.get(f"{task}.{term}", 0.0) > 0.0)
        patterns[f"heads.{task}."] = model.head(task).without_gradient(learnt)
    for start, own in patterns.items():
        for name, _ in model.named_parameters():
            short = name.removeprefix(start)
            if name.startswith(start) and any(re.search(pattern, short) for pattern in own):
                yield name


def _encoding_given(model: TpoModel) -> set[int]:
    """Ids of the weights that encode given values of trained heads."""
    found: set[int] = set()
    for task in sorted(model.trained_tasks):
        head = model.head(task)
        if head.tokens.given is not None:
            encoded = head.encode_given(head.idle_inputs()["given"])
            if encoded.requires_grad:
                found |= {id(weight) for weight in weights_of(encoded.sum())}
    return found


def _largest(weight: nn.Parameter) -> Tensor:
    """Largest number in the gradient, as a float32 scalar; all ranks must call it."""
    gradient = gradient_of(weight)
    if gradient is None or not gradient.numel():
        return torch.zeros((), device=weight.device)
    return gradient.detach().abs().max().float()


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _pattern(names: Iterable[str]) -> str:
    """One regular expression that fits some names: what they have in common, numbers left open."""
    forms = {re.sub(r"\d+", "0", name) for name in names}
    if len(forms) == 1:
        return re.sub(r"\\?\d+", r"\\d+", re.escape(next(iter(names))))
    pieces = [name.split(".") for name in names]
    common = []
    for column in zip(*pieces, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return re.escape(".".join(common)) + r"\."
