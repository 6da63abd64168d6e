"""Ranks that answer side by side, each its own questions, with one model.

A model that lies in pieces over the ranks (ZeRO-3) is put together layer by layer, by all of them
at once. So all must run the same layers equally often, whatever they are asked: who has written its
answers goes on idly, who has no question asks an idle one, and who found an error keeps it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn

from tpokit.errors import TpokitError


class Lockstep:
    """What keeps ranks in step; this one is for a model that every rank has whole: nothing does.

    Attributes:
        together: Whether all ranks must run the same layers equally often.
    """

    together = False

    def __init__(self) -> None:
        """Start without an error."""
        self._held: TpokitError | None = None

    def anyone(self, wants: bool) -> bool:
        """Whether any rank wants something; all of them ask at the same places."""
        return wants

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        """Have a part of the model whole on every rank, so that each may run it as often as it
        likes; all ranks enter together.
        """
        return nullcontext()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep an expected error back where other ranks need this one to go on."""
        try:
            yield
        except TpokitError as cause:
            if not self.together:
                raise
            self._held = self._held or cause

    def let_go(self) -> None:
        """Raise what was kept back first, if anything was."""
        held, self._held = self._held, None
        if held is not None:
            raise held
