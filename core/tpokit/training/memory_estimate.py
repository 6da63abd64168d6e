"""How much memory a stage takes on a device, estimated before a GPU is touched.

What of it grows with the model: weights, gradients and states of the optimizer. Source: ZeRO, arXiv
1910.02054, section 3. With P parameters, T of them trained, on N devices, in bytes of one device:

====== ========= ========= =========
engine weights   gradients optimizer
====== ========= ========= =========
zero0  p P       p T       k T
zero1  p P       p T       k T / N
zero2  p P       p T / N   k T / N
zero3  p P / N   p T / N   k T / N
====== ========= ========= =========

In bfloat16 p is 2 and k is 12 (a copy of the weights, momentum and variance of AdamW, all in
float32); in float32 p is 4 and k is 8. The engines ``plain`` and ``ddp`` are as zero0, but cast
nothing: there p is that of the weights as they were loaded.

What grows with a batch: activations that are kept for the backward pass. Source: arXiv 2205.05198,
sections 4.1 and 4.3. A transformer layer keeps for each token the outputs of its two norms, the
queries, keys and values, the outputs of the attention and of each matrix, and what the activation
function gives. With w, k and i for the width of the states, of the keys and inside the feed-forward
layer, these are 6 w + 2 k + 2 i numbers, or 6 w + 2 k + 4 i where it is gated. For k = w and
i = 4 w that is 16 w, the paper's 34 w bytes without the masks of its two dropouts. Its second
summand, for scores of the attention, falls away: attention by blocks (SDPA, flash attention) keeps
none. Where activations are computed again, each layer keeps its input alone (section 5), and one
layer at a time has all. Labels keep their logits in float32.

Not counted: what heads keep (a frozen network that lies beside a head's parameters, too), buffers
of communication, the fragments between blocks of memory, and the libraries themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tpokit.interfaces import LayerStack
from tpokit.recipe import Mode

Engine = Literal["zero0", "zero1", "zero2", "zero3"]

ENGINES: tuple[Engine, ...] = ("zero0", "zero1", "zero2", "zero3")
_LOGIT_BYTES = 4


@dataclass(frozen=True)
class NumberFormat:
    """Bytes of a number.

    Attributes:
        weight: Of a weight, of its gradient and of an activation.
        optimizer: Of what the optimizer keeps for a trained weight.
    """

    weight: int
    optimizer: int

    @classmethod
    def of(cls, precision: str) -> NumberFormat:
        """For ``run.precision``."""
        return cls(2, 12) if precision == "bfloat16" else cls(4, 8)


@dataclass(frozen=True)
class StateMemory:
    """What a device holds of the model itself, in bytes.

    Attributes:
        engine: How the model is spread.
        devices: How many there are.
        weights: Of all parameters.
        gradients: Of the trained ones.
        optimizer: Its states.
    """

    engine: Engine
    devices: int
    weights: float
    gradients: float
    optimizer: float

    @property
    def bytes(self) -> float:
        """All together."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class ActivationMemory:
    """What a device keeps of a micro-batch for the backward pass, in bytes.

    Attributes:
        kept: As it is.
        recomputed: With ``run.gradient_checkpointing``.
    """

    kept: float
    recomputed: float


def state_memory(
    parameters: int, trained: int, numbers: NumberFormat, engine: Engine, devices: int
) -> StateMemory:
    """Weights, gradients and states of the optimizer; see the head of this file.

    Args:
        parameters: P, of the whole model.
        trained: T.
        numbers: Their format.
        engine: How the model is spread.
        devices: N.
    """
    stage = ENGINES.index(engine)
    return StateMemory(
        engine=engine,
        devices=devices,
        weights=numbers.weight * parameters / (devices if stage >= 3 else 1),
        gradients=numbers.weight * trained / (devices if stage >= 2 else 1),
        optimizer=numbers.optimizer * trained / (devices if stage >= 1 else 1),
    )


def activation_memory(
    stacks: Sequence[LayerStack],
    modes: Mapping[str, Mode],
    numbers: NumberFormat,
    labels: int,
    rows: int,
) -> ActivationMemory:
    """Activations of a micro-batch; see the head of this file.

    Args:
        stacks: From `tpokit.Backbone.layer_stacks`.
        modes: Part to what the stage does with it. A part keeps nothing where neither it nor what
            stands before it learns.
        numbers: Their format.
        labels: Tokens that are learnt.
        rows: Of the table of words.
    """
    graph = [stack for stack in stacks if _has_gradient(stack.part, modes)]
    inputs = sum(numbers.weight * stack.tokens * stack.width * stack.layers for stack in graph)
    layers = [numbers.weight * stack.tokens * _numbers_of_token(stack) for stack in graph]
    kept = sum(layer * stack.layers for layer, stack in zip(layers, graph, strict=True))
    logits = _LOGIT_BYTES * labels * rows
    return ActivationMemory(kept + logits, inputs + max(layers, default=0) + logits)


def _numbers_of_token(stack: LayerStack) -> int:
    """That a layer keeps for one token."""
    return 6 * stack.width + 2 * stack.keys + (4 if stack.gated else 2) * stack.inner


def _has_gradient(part: str, modes: Mapping[str, Mode]) -> bool:
    """Whether a gradient goes through a part of the backbone."""
    before = {"vision": ("vision",), "connector": ("vision", "connector")}
    learning = before.get(part, ("vision", "connector", "llm", "bridge"))
    return any(modes.get(name, "frozen") != "frozen" for name in learning)
