"""Checkpoints inside a stage, from which an interrupted run goes on.

They hold what is trained, the optimizer, the schedule, the generators of every rank and the
unfinished line of the log. The place in the data is the number of steps.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tpokit.atomic import finish, is_partial, partial_name, writing
from tpokit.errors import UsageError
from tpokit.training.ranks import Ranks

_MARKER = "complete.json"
_KEPT = 2


class StageCheckpoints:
    """The checkpoints of one stage.

    Attributes:
        folder: ``<output>/<stage>.checkpoints``.
    """

    def __init__(self, output: Path, stage: str, ranks: Ranks) -> None:
        """Name the folder; nothing is written yet.

        Args:
            output: Folder of the run.
            stage: Name of the stage.
            ranks: Processes that write together.
        """
        self.folder = output / f"{stage}.checkpoints"
        self._ranks = ranks

    def whole(self) -> list[Path]:
        """Checkpoints with their marker, oldest first."""
        found = [path for path in self.folder.glob("step-*") if (path / _MARKER).is_file()]
        return sorted(found, key=step_of)

    def newest(self) -> Path | None:
        """The newest whole checkpoint, or ``None``.

        Raises:
            UsageError: It was written by another number of processes.
        """
        found = self.whole()
        if not found:
            return None
        world = json.loads((found[-1] / _MARKER).read_text(encoding="utf-8"))["world"]
        if world != self._ranks.world:
            raise UsageError(
                f"{found[-1]} was written by {world} processes, this run has {self._ranks.world}; "
                "an exact resume needs as many as before"
            )
        return found[-1]

    def kept(self) -> str:
        """What is there to go on from, for messages."""
        found = self.whole()
        if not found:
            return "no checkpoint of this stage is whole; earlier stages are untouched"
        return f"the newest whole checkpoint is {found[-1]}, go on from it with --resume"

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Write a checkpoint together with the other ranks.

        Args:
            step: Steps done.

        Yields:
            A folder into which every rank writes its files.

        Raises:
            CheckpointError: It cannot be written; names what is still whole.
        """
        folder = self.folder / f"step-{step}"
        partial = partial_name(folder)
        with writing(folder, partial, self.kept):
            if self._ranks.first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self._ranks.wait()
            yield partial
            self._ranks.wait()
            if self._ranks.first:
                marker = {"step": step, "world": self._ranks.world}
                (partial / _MARKER).write_text(json.dumps(marker), encoding="utf-8")
                shutil.rmtree(folder, ignore_errors=True)  # of a step that is done again
                finish(partial, folder)
                for old in self.whole()[:-_KEPT]:
                    shutil.rmtree(old)
            self._ranks.wait()

    def clean(self) -> None:
        """Take away what was never finished."""
        if not self.folder.is_dir():
            return
        whole = set(self.whole())
        for path in self.folder.iterdir():
            if path not in whole and (is_partial(path) or path.name.startswith("step-")):
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Take all of them away: the stage is saved."""
        shutil.rmtree(self.folder, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """How many steps were done when a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))
