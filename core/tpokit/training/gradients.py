"""Gradients as a line of the log shows them: their norm by part, and what each task asks of the
weights that all tasks share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tpokit.batch import Batch
from tpokit.losses import ASSIGN, LANGUAGE
from tpokit.model import TpoModel
from tpokit.parts import part_of_parameters
from tpokit.reporting.log_columns import PART_NORM, TASK_COSINE, TASK_NORM
from tpokit.training.arguments import gradient_of
from tpokit.training.watching import Step, StepWatcher
from tpokit.types import LossTerm

LARGEST_SHARED = 50_000_000
"""So many numbers at most are kept of the gradient of a task: 200 MB."""
_TOGETHER = 50_000_000
_SHARED_PARTS = ("llm", "bridge", "connector", "vision")


class PartGradients(StepWatcher):
    """The norm of the gradient of each part in the steps that have a line of the log, summed over
    ranks and before clipping.
    """

    def __init__(self, model: TpoModel, log_every: int, steps: int) -> None:
        """Find the parts.

        Args:
            model: With its modes set.
            log_every: Steps between two lines of the log.
            steps: Of the stage; the first and the last one have a line too.
        """
        self._log_every = log_every
        self._steps = steps
        self._parts: dict[str, list[nn.Parameter]] = {}
        owners = part_of_parameters(model)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._parts.setdefault(owners[name], []).append(parameter)
        self._due = False
        self._norms: dict[str, float] = {}

    def step_begins(self, step: Step) -> None:
        """Whether the step has a line."""
        self._due = step.number in (1, self._steps) or not step.number % self._log_every

    def gradients_ready(self) -> None:
        """Take the norms; one number for each part is read back."""
        if self._due:
            norms = torch.stack([_norm(parameters) for parameters in self._parts.values()])
            self._norms = dict(zip(self._parts, norms.tolist(), strict=True))

    def row(self) -> dict[str, float]:
        """``gradient_norm.llm`` and so on; a norm that is not finite is left out."""
        found, self._norms = self._norms, {}
        return {f"{PART_NORM}{part}": norm for part, norm in found.items() if norm < float("inf")}


def _norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Norm of the gradient of some parameters, as a float32 scalar on their device."""
    norms = [parameters[0].new_zeros((), dtype=torch.float32)]
    for some in _together(parameters):
        # in their own format the norms of bfloat16 gradients would have three digits
        norms += torch._foreach_norm(some, 2, dtype=torch.float32)
    whole: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return whole


def _together(parameters: Iterable[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Their gradients, in lists for one kernel each: where an engine has cut the gradients up, they
    must not all be whole at the same time.
    """
    some: list[Tensor] = []
    for parameter in parameters:
        gradient = gradient_of(parameter)
        if gradient is not None:
            some.append(gradient)
        if sum(gradient.numel() for gradient in some) > _TOGETHER:
            yield some
            some = []
    if some:
        yield some


def shared_parameters(
    model: TpoModel, limit: int = LARGEST_SHARED
) -> tuple[str, dict[str, nn.Parameter]]:
    """The weights on which the gradients of tasks are compared.

    Args:
        model: With its modes set.
        limit: So many numbers at most. If there are more, every second, third, ... weight is
            taken; one that is larger than the limit is left out.

    Returns:
        The part, the first of llm, bridge, connector and vision that is trained, and its trained
        weights by name; ``""`` and none if nothing is trained that tasks share.
    """
    owners = part_of_parameters(model)
    for part in _SHARED_PARTS:
        sizes = {
            name: parameter
            for name, parameter in model.named_parameters()
            if owners[name] == part and parameter.requires_grad
        }
        if not sizes:
            continue
        sizes = {name: p for name, p in sizes.items() if p.numel() <= limit}
        every = 1
        while sum(p.numel() for p in list(sizes.values())[::every]) > limit:
            every += 1
        return part, dict(list(sizes.items())[::every])
    return "", {}


class TaskGradients(StepWatcher):
    """What each task asks of the shared weights: the norm of the gradient of its share of the loss,
    and the cosine between any two of these gradients. Above 0 two tasks help each other, below 0
    what helps one of them harms the other.

    Tasks are those of the heads, ``assign`` and ``language``, each with its weights. A backward
    pass of its own is taken for each task before the usual one, over the same graph: dropout is the
    same, and training is not changed by a bit. Takes the memory of one gradient of the shared
    weights in float32 for each task, in the steps in which it looks.
    """

    def __init__(
        self,
        model: TpoModel,
        shared: Sequence[nn.Parameter],
        weights: Mapping[str, float],
        every: int,
        world: int,
    ) -> None:
        """Get ready.

        Args:
            model: Before an engine wraps it.
            shared: Weights on which gradients are compared; none: nothing is looked at.
            weights: Loss term to its weight in the combined loss.
            every: Steps between two that are looked at; 0: none is.
            world: Number of ranks.
        """
        self._shared = tuple(shared)
        self._weights = dict(weights)
        self._tasks = (*(t for t in model.heads if t in model.trained_tasks), ASSIGN, LANGUAGE)
        self._every = every if shared else 0
        self._world = world
        self._factors: dict[str, float] = {}
        self._found: dict[str, Tensor] = {}
        self._terms: dict[str, LossTerm] = {}
        self._sums: dict[str, float] = {}
        self._looks: dict[str, int] = {}
        if self._every:
            model.register_forward_hook(self._keep_terms)

    def step_begins(self, step: Step) -> None:
        """Whether to look at the step, and which of its terms count."""
        self._factors.clear()
        self._found = {}  # of a step that was skipped
        if not self._every or step.number % self._every:
            return
        for name, count in step.counts.items():
            if count and self._weights.get(name, 0.0):
                self._factors[name] = self._weights[name] / count
        size = sum(parameter.numel() for parameter in self._shared)
        present = {name.partition(".")[0] for name in self._factors}
        self._found = {
            task: torch.zeros(size, device=self._shared[0].device)
            for task in self._tasks
            if task in present
        }

    def loss_known(self, terms: Mapping[str, LossTerm], loss: Tensor, batch: Batch) -> None:
        """Add the gradients of a micro-batch, before the backward pass takes the graph away."""
        for task, total in self._found.items():
            shares = [
                term.sum * self._factors[name]
                for name, term in self._terms.items()
                if name in self._factors and name.partition(".")[0] == task
            ]
            if not shares:
                continue  # its head is not called in this micro-batch
            share = torch.stack(shares).sum()
            if share.requires_grad:
                gradients = torch.autograd.grad(
                    share, self._shared, retain_graph=True, allow_unused=True
                )
                _add(total, gradients, self._shared)
        self._terms = {}

    def _keep_terms(
        self, module: nn.Module, inputs: Any, terms: dict[str, LossTerm]
    ) -> dict[str, LossTerm]:
        """Keep the terms as the model gives them, and hand on others that are equal.

        DeepSpeed hangs hooks on what a model gives, which take any backward pass for that of the
        step.
        """
        if not self._found:
            return terms
        self._terms = terms
        return {n: LossTerm(term.sum.view_as(term.sum), term.count) for n, term in terms.items()}

    def gradients_ready(self) -> None:
        """Add up over ranks and compare."""
        if not self._found:
            return
        tasks, gradients = list(self._found), list(self._found.values())
        if self._world > 1:
            for gradient in gradients:
                dist.all_reduce(gradient)
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        pairs = list(combinations(range(len(tasks)), 2))
        products = [gradients[a] @ gradients[b] / (norms[a] * norms[b]) for a, b in pairs]
        self._found = {}
        values = torch.stack([*norms, *products]).tolist()
        names = [f"{TASK_NORM}{task}" for task in tasks]
        names += [f"{TASK_COSINE}{tasks[a]}.{tasks[b]}" for a, b in pairs]
        for name, value in zip(names, values, strict=True):
            if abs(value) < float("inf"):  # no cosine where one of them is 0
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._looks[name] = self._looks.get(name, 0) + 1

    def row(self) -> dict[str, float]:
        """``task_gradient.region``, ``task_cosine.region.language`` and so on: means over the steps
        that were looked at since the line before; nothing if there were none.
        """
        names = [f"{TASK_NORM}{task}" for task in self._tasks]
        names += [f"{TASK_COSINE}{one}.{other}" for one, other in combinations(self._tasks, 2)]
        means = {name: self._sums[name] / self._looks[name] for name in names if name in self._sums}
        self._sums, self._looks = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """What was found since the last line."""
        return {"sums": dict(self._sums), "looks": dict(self._looks)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._sums, self._looks = dict(state["sums"]), dict(state["looks"])


def _add(total: Tensor, gradients: Iterable[Tensor | None], shared: Iterable[nn.Parameter]) -> None:
    """Add the gradients of parameters, one after another, to a flat vector; one that is not there
    is 0.
    """
    start = 0
    for gradient, parameter in zip(gradients, shared, strict=True):
        if gradient is not None:
            total[start : start + parameter.numel()] += gradient.flatten()
        start += parameter.numel()
