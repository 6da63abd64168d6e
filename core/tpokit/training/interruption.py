"""Signals that ask a run to stop: from a scheduler that takes the machine away, or from a person.

In the steps of a stage a signal is noted, the ranks agree on it at the end of the step, all of them
save a checkpoint together and stop. Elsewhere (a model is built, answers are scored) nothing would
be lost, and the run stops at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from tpokit.errors import Stopped
from tpokit.training.ranks import Ranks
from tpokit.training.watching import StepWatcher, Wish

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_AGAIN_S = 3.0
"""A launcher hands on a signal that the ranks have got themselves; so close, it is the same one."""


class Interruption:
    """Takes `SIGNALS` while a run goes on; a context manager.

    Data workers are copies of their rank and take them, too: a signal to the whole group of
    processes must not end the reading of the step that is to be finished. A second signal ends any
    process at once.

    Attributes:
        asked: Number of the signal that came; 0: none.
        postponed: Whether a signal is only noted, because something goes on that must be finished.
    """

    def __init__(self, ranks: Ranks) -> None:
        """Nothing is taken yet.

        Args:
            ranks: All of them stop together.
        """
        self.asked = 0
        self.postponed = False
        self._ranks = ranks
        self._asked_s = 0.0
        self._owner = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        """Python runs handlers in the main thread only; elsewhere signals do what they did."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def agreed(self) -> int:
        """Number of the signal that came on any rank; all ranks must call this."""
        return self._ranks.largest(self.asked)

    def stopped(self, number: int, what: str) -> Stopped:
        """The error of a run that stops; only the first rank's has a message.

        Args:
            number: Of the signal.
            what: Was done until then.
        """
        message = f"{signal.Signals(number).name}: {what}; go on with --resume auto"
        return Stopped(message if self._ranks.first else "", number)

    def _take(self, number: int, frame: FrameType | None) -> None:
        again = self.asked and time.monotonic() - self._asked_s > _AGAIN_S
        if again:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self.asked:
            return
        self.asked, self._asked_s = number, time.monotonic()
        if not self.postponed and os.getpid() == self._owner:
            raise self.stopped(number, "nothing that is done was lost")


def take_in_worker(begin: Callable[[int], None], worker: int) -> None:
    """Begin a data worker, and let it take signals as its rank does: torch has just put a handler
    of its own in front, which ends the worker, and the rank with it.

    Args:
        begin: What a worker begins with otherwise.
        worker: Its number.
    """
    begin(worker)
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler):
            signal.signal(number, handler)


class StopWhenAsked(StepWatcher):
    """Saves and stops at the end of the step in which a signal came to any rank.

    Attributes:
        number: Of the signal, once the run stops for it; otherwise 0.
    """

    def __init__(self, interruption: Interruption) -> None:
        """Nothing was asked yet.

        Args:
            interruption: Notes signals.
        """
        self._interruption = interruption
        self.number = 0

    def step_ended(self, number: int) -> Wish:
        """One number over all ranks: a millisecond between two processes that share busy CPUs."""
        self.number = self._interruption.agreed()
        return Wish.SAVE | Wish.STOP if self.number else Wish.NOTHING
