"""Stops a run whose ranks do not have the same gradients in the same order.

Engines add gradients of ranks up without looking at names. What they rely on, and what happens
where a head breaks it (measured with two processes):

- DDP, ZeRO-0: every rank has a gradient for every trained weight. Otherwise they wait for ever.
- ZeRO-1, ZeRO-2: the gradients also come in the same order. Otherwise gradients of one weight are
  added to those of another, without an error; or, if sizes differ, ranks crash or wait for ever.
- ZeRO-3: every rank runs the same modules in the same order, forward and backward, because it
  gathers the weights of each as it comes. Otherwise ranks crash or wait for ever.

So ranks compare, before any of that can happen: under ZeRO-3 the module that is about to run, with
every call; under all engines the weights that the backward pass is going to reach, read from the
graph before it begins (`tpokit.training.gradient_order`), under ZeRO-3 together with the modules
whose weights it will gather. Under ZeRO-1 and 2 the gradients that really came are compared behind
the backward pass as well. An order that only some engines rely on is only compared there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tpokit.batch import Batch
from tpokit.errors import TrainingError
from tpokit.model import TpoModel
from tpokit.parts import part_of_parameters
from tpokit.training.arguments import IN_ORDER, gathers_for
from tpokit.training.gradient_order import visited
from tpokit.training.ranks import Ranks
from tpokit.training.watching import Step, StepWatcher
from tpokit.types import LossTerm

GUARDED_STEPS = 2
"""So many steps at the beginning, and so many with each task, are compared."""
_SHOWN = 6


class RankGuard(StepWatcher):
    """Compares ranks in the first steps, and in the first ones in which any rank calls a task."""

    def __init__(
        self, model: TpoModel, engine: str, stage: str, ranks: Ranks, always: bool = False
    ) -> None:
        """Get ready; nothing is compared on one rank.

        Args:
            model: With its modes set, before an engine wraps it.
            engine: As in a recipe; what is compared depends on it.
            stage: Its name, for messages.
            ranks: Processes of the run.
            always: In every step.
        """
        self._model = model
        self._ranks = ranks
        self._stage = stage
        self._always = always
        self._in_order = engine in IN_ORDER
        self._in_pieces = engine == "zero3"
        self._parts = part_of_parameters(model)
        named = model.named_parameters()
        self._names = {id(weight): name for name, weight in named if weight.requires_grad}
        self._modules = {module: name for name, module in model.named_modules()}
        self._begun = 0
        self._with_task = dict.fromkeys(model.trained_tasks, 0)
        self._where = ""
        self._hooks: list[Any] = []
        self._forward = False
        self._arrived: list[str] = []

    def step_begins(self, step: Step) -> None:
        """Whether to compare in this step; the same on all ranks, as counts are those of all."""
        self._where = f"stage {self._stage}, step {step.number}"
        tasks = {name.partition(".")[0] for name, count in step.counts.items() if count}
        due = self._always or self._begun < GUARDED_STEPS
        self._begun += 1
        for task in tasks & set(self._with_task):
            due = due or self._with_task[task] < GUARDED_STEPS
            self._with_task[task] += 1
        if due and self._ranks.world > 1:
            self._look()

    def loss_known(self, terms: Mapping[str, LossTerm], loss: Tensor, batch: Batch) -> None:
        """Compare what the backward pass will do.

        Raises:
            TrainingError: Ranks differ; on all ranks alike.
        """
        if not self._hooks:
            return
        if self._in_pieces:
            self._forward = False
            self._compare(["the end of the forward pass"], self._explain_calls)
        coming = [name for name in map(self._name, visited(loss)) if name is not None]
        in_order = self._in_order or self._in_pieces
        self._compare(coming if in_order else sorted(coming), self._explain_gradients)
        self._arrived = []

    def backward_done(self, batch: Batch) -> None:
        """Compare what the backward pass did.

        Raises:
            TrainingError: Ranks differ; on all ranks alike.
        """
        if self._hooks and self._in_order:
            self._compare(self._arrived, self._explain_gradients)
        self._forward = True

    def gradients_ready(self) -> None:
        """What runs between two steps, such as an evaluation, is not compared."""
        self._let_go()

    # ---- looking ----

    def _look(self) -> None:
        """Hang on what has to be seen in this step."""
        self._forward = True
        if self._in_pieces:
            for module in self._modules:
                if any(True for _ in module.parameters(recurse=False)):
                    # before DeepSpeed's own, which gathers
                    hook = module.register_forward_pre_hook(self._about_to_run, prepend=True)
                    self._hooks.append(hook)
            return
        for weight in self._model.parameters():
            if weight.requires_grad:
                hang: Any = weight.register_post_accumulate_grad_hook  # torch has not typed it
                self._hooks.append(hang(self._came))

    def _let_go(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _about_to_run(self, module: nn.Module, inputs: Any) -> None:
        if self._forward and self._model.training:  # evaluation keeps ranks in step by itself
            self._compare([self._modules[module]], self._explain_calls)

    def _came(self, weight: Tensor) -> None:
        self._arrived.append(self._names[id(weight)])

    def _name(self, node: Any) -> str | None:
        """A node of autograd, if ranks must agree on it."""
        if hasattr(node, "variable"):
            return self._names.get(id(node.variable))
        module = gathers_for(node) if self._in_pieces else None
        return None if module is None else f"weights of {self._modules.get(module, 'the model')}"

    # ---- comparing ----

    def _compare(
        self, own: Sequence[str], explain: Callable[[int, Sequence[Sequence[str]]], str]
    ) -> None:
        """See that all ranks have the same list; one number is exchanged unless they differ."""
        digest = hashlib.blake2b("\n".join(own).encode(), digest_size=7).digest()  # fits an int64
        number = int.from_bytes(digest, "little")
        place = "cuda" if dist.get_backend() == "nccl" else "cpu"
        extremes = torch.tensor([number, -number], device=place)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        most, least = extremes.tolist()
        if most == -least:
            return
        self._let_go()
        lists = self._ranks.shared(list(own))
        other = next(rank for rank, names in enumerate(lists) if names != lists[0])
        raise TrainingError(f"{self._where}: {explain(other, lists)}")

    def _explain_calls(self, other: int, lists: Sequence[Sequence[str]]) -> str:
        here, there = lists[0][0], lists[other][0]
        parts = sorted({self._part_of_module(name) for name in (here, there)} - {""})
        return (
            f"ranks do not run the same modules ({_parts(parts)}): rank 0 comes to {here}, rank "
            f"{other} to {there}; {_ADVICE}"
        )

    def _explain_gradients(self, other: int, lists: Sequence[Sequence[str]]) -> str:
        here, there = lists[0], lists[other]
        only = [name for name in here if name not in set(there)]
        only_there = [name for name in there if name not in set(here)]
        if only or only_there:
            lacking = [(other, only), (0, only_there)]
            told = [f"rank {rank} has none for {_some(names)}" for rank, names in lacking if names]
            parts = sorted({self._part(name) for name in (*only, *only_there)} - {""})
            what = "do not have gradients for the same weights"
        else:
            pairs = zip_longest(here, there, fillvalue="")
            first = next(place for place, (a, b) in enumerate(pairs) if a != b)
            shown = slice(first, first + _SHOWN)
            ranks = ((0, here), (other, there))
            told = [f"rank {rank} has {_some(names[shown])}" for rank, names in ranks]
            ends = (*here[first : first + 1], *there[first : first + 1])
            parts = sorted({self._part(name) for name in ends} - {""})
            what = "get their gradients in different orders"
        return f"ranks {what} ({_parts(parts)}): {'; '.join(told)}; {_ADVICE}"

    def _part(self, name: str) -> str:
        return self._parts.get(name) or self._part_of_module(name.removeprefix("weights of "))

    def _part_of_module(self, name: str) -> str:
        within = (part for weight, part in self._parts.items() if weight.startswith(f"{name}."))
        return next(within, "")


_ADVICE = (
    "every rank must run every trained part in every micro-batch, in one order: see "
    "TaskHead.idle_inputs, or let all ranks have the same task with run.schedule: same_task"
)


def _parts(names: Sequence[str]) -> str:
    return f"part{'' if len(names) == 1 else 's'} {', '.join(names)}" if names else "no part"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
