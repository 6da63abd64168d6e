"""What looks at training steps from outside: guards, audits, measurements.

Each concern is one watcher in a file of its own, and the trainer knows none of them by name.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tpokit.batch import Batch
from tpokit.types import LossTerm


@dataclass(frozen=True)
class Step:
    """An optimizer step that is about to begin.

    Attributes:
        number: From 1, within the stage.
        batches: The micro-batches of this rank; as many as on every other rank.
        counts: Loss term to the number of items that it sums over in the whole step, over all
            ranks.
        waited_s: How long this rank waited for its data, in seconds.
        shortened: How many samples of the step were too long and lost turns or frames, over all
            ranks.
    """

    number: int
    batches: Sequence[Batch]
    counts: Mapping[str, float]
    waited_s: float
    shortened: int = 0


class Wish(enum.Flag):
    """What a watcher wants to happen behind a step; the same on every rank.

    ``SAVE``: a checkpoint. ``STOP``: no further step now. ``FINISH``: no further step ever, the
    stage is done; its last step needs no checkpoint.
    """

    NOTHING = 0
    SAVE = enum.auto()
    STOP = enum.auto()
    FINISH = enum.auto()


class StepWatcher:
    """Looks at each step; does nothing by default.

    All ranks have the same watchers in the same order and call them at the same places, so every
    method may use collectives. For each micro-batch of a step come `loss_known` and
    `backward_done`, between `step_begins` and `gradients_ready`.
    """

    def step_begins(self, step: Step) -> None:
        """The data of a step are there, and nothing is computed yet."""

    def loss_known(self, terms: Mapping[str, LossTerm], loss: Tensor, batch: Batch) -> None:
        """A micro-batch went forward.

        Args:
            terms: Its loss terms, not yet divided.
            loss: Its share of the combined loss of the step, before the backward pass.
            batch: The micro-batch, on the device.
        """

    def backward_done(self, batch: Batch) -> None:
        """A micro-batch went backward."""

    def gradients_ready(self) -> None:
        """All micro-batches went backward; the gradients are summed over ranks but not clipped, and
        no weight has changed.
        """

    def step_ended(self, number: int) -> Wish:
        """Weights have changed and a line of the log was written if one was due; a checkpoint
        follows if one is.

        Args:
            number: Of the step, from 1.

        Returns:
            Whether to save a checkpoint now, and whether this was the last step.
        """
        return Wish.NOTHING

    def row(self) -> dict[str, float]:
        """What a line of the log gets; called once for each line, on every rank."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, of this rank: tensors, numbers, text and containers of them."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
