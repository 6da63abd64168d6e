"""Every error that tpokit raises on purpose.

::

    TpokitError                 something a user can act on; one message, no traceback
    ├── UsageError              asked wrongly (exit code 2)
    │   ├── RecipeError         a recipe has problems; all of them at once
    │   └── PluginError         a plugin is unknown, broken, or made for another core
    ├── DataError               an annotation or a medium is wrong; names the sample (exit code 1)
    ├── CheckpointError         a model cannot be written, is incomplete or does not fit (1)
    ├── TrainingError           a run cannot go on: a loss that is not finite (exit code 1)
    └── Stopped                 a run was asked to stop by a signal (128 + number of the signal)

A message says what is wrong, where it was read, and what would be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class TpokitError(Exception):
    """Base of all errors that carry a message for the user."""

    exit_code: int = 1


class UsageError(TpokitError):
    """What was asked for cannot be meant: a wrong option, a file that is not there."""

    exit_code: int = 2


@dataclass(frozen=True)
class Problem:
    """One finding in a recipe.

    Attributes:
        path: Where, as the user wrote it, such as ``stages[1].learning_rate``.
        message: What is wrong and what would be right.
    """

    path: str
    message: str


def problem_report(origin: str, problems: Sequence[Problem]) -> str:
    """One line with the number of problems, then a line for each, paths aligned."""
    count = len(problems)
    width = max((len(problem.path) for problem in problems), default=0)
    lines = [f"{origin} has {count} problem{'' if count == 1 else 's'}"]
    lines += [f"  {problem.path:<{width}}  {problem.message}" for problem in problems]
    return "\n".join(lines)


class RecipeError(UsageError):
    """A recipe that cannot be run; carries every problem that was found, not the first one."""

    def __init__(self, origin: str, problems: Sequence[Problem]) -> None:
        """Remember the problems.

        Args:
            origin: File or description of where the recipe came from.
            problems: At least one.
        """
        self.origin = origin
        self.problems = tuple(problems)
        super().__init__(problem_report(origin, self.problems))


class PluginError(UsageError):
    """A plugin is unknown, cannot be loaded, or does not keep its contract."""


class DataError(TpokitError):
    """An annotation, a picture or a video is wrong; the message names the sample."""


class CheckpointError(TpokitError):
    """A saved model cannot be written or read; nothing that was whole before has been touched."""


class TrainingError(TpokitError):
    """A run cannot go on."""


class Stopped(TpokitError):
    """A run was asked to stop by a signal, and did; what is needed to go on is saved."""

    def __init__(self, message: str, signal: int) -> None:
        """Remember the signal.

        Args:
            message: What was done and how to go on.
            signal: Number of the signal; the exit code is 128 more, as a shell has it.
        """
        super().__init__(message)
        self.signal = signal
        self.exit_code = 128 + signal
