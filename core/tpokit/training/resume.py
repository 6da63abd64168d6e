"""Checkpoints inside a stage, from which an interrupted run goes on.

They hold what is trained, the optimizer, the schedule, the generators of every rank and the
unfinished line of the log; of the base its name and hash. The place in the data is the number of
steps.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tpokit.atomic import WRITE_ERRORS, finish, is_partial, partial_name, writing
from tpokit.checkpoints.start import taken
from tpokit.checkpoints.store import MODEL_FILE, RUN_FILE, check_base
from tpokit.errors import UsageError
from tpokit.training.ranks import Ranks

_MARKER = "complete.json"
_STEP = re.compile(r"step-(\d+)")
_CHECKPOINTS = ".checkpoints"
_ZIPPED = (".pt", ".pth")
_KEPT = 2


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on that was asked to by a path.

    Attributes:
        output: Folder of the run.
        stage: Its stage with the checkpoint; ``None``: the newest of the run.
        step: Steps of that stage that the checkpoint has.
    """

    output: Path
    stage: str | None = None
    step: int = 0

    @classmethod
    def at(cls, place: Path) -> ResumePoint:
        """Look what stands there.

        Args:
            place: The folder of a run, or ``<output>/<stage>.checkpoints/step-<number>``.

        Raises:
            UsageError: It is neither, or not whole.
        """
        step, beside = _STEP.fullmatch(place.name), place.parent
        if (place / RUN_FILE).is_file():
            return cls(place)
        if (place / MODEL_FILE).is_file():
            raise UsageError(
                f"--resume {place}: this is a saved model, without optimizer and schedule; to "
                "start from its weights, write init_from into the recipe"
            )
        if step is None or not beside.name.endswith(_CHECKPOINTS):
            what = "is no run and no checkpoint of one" if place.is_dir() else "does not exist"
            raise UsageError(
                f"--resume {place}: this folder {what}; name a run (it has {RUN_FILE}) or a "
                f"checkpoint in it, such as heads{_CHECKPOINTS}/step-100"
            )
        if not (place / _MARKER).is_file():
            whole = ", ".join(path.name for path in _whole(beside)) or "none"
            raise UsageError(
                f"--resume {place}: this checkpoint does not exist or is not whole; whole ones in "
                f"{beside}: {whole}"
            )
        return cls(beside.parent, beside.name.removesuffix(_CHECKPOINTS), int(step[1]))


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint inside a stage.

    Attributes:
        folder: Where it is.
        step: Steps that were done.
        world: Number of processes that wrote it.
    """

    folder: Path
    step: int
    world: int


class StageCheckpoints:
    """The checkpoints of one stage.

    Attributes:
        folder: ``<output>/<stage>.checkpoints``.
    """

    def __init__(
        self,
        output: Path,
        stage: str,
        ranks: Ranks,
        base: Mapping[str, str] | None = None,
        apart: bool = True,
    ) -> None:
        """Name the folder; nothing is written yet.

        Args:
            output: Folder of the run.
            stage: Name of the stage.
            ranks: Processes that write together.
            base: What the backbone's ``identity`` said before training.
            apart: Whether the processes write without waiting for each other; an engine that has
                cut up the optimizer lets them wait.
        """
        self.folder = output / f"{stage}{_CHECKPOINTS}"
        self._ranks = ranks
        self._base = dict(base or {})
        self._apart = apart

    def whole(self) -> list[Path]:
        """Checkpoints with their marker, oldest first."""
        return _whole(self.folder)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or ``None``.

        Raises:
            CheckpointError: It was made from another base.
        """
        found = self.whole()
        if not found:
            return None
        if self._base:
            about = json.loads((found[-1] / _MARKER).read_text(encoding="utf-8"))
            check_base(about, found[-1], self._base)
        return Checkpoint(found[-1], step_of(found[-1]), world_of(found[-1]))

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
            CheckpointError: It cannot be written; names what is still whole. Ranks that write
                ``apart`` all raise it.
        """
        folder = self.folder / f"step-{step}"
        partial = partial_name(folder)
        with writing(folder, partial, self.kept):
            self._once(folder, partial, lambda: self._empty(partial))
            failure = ""
            try:
                yield partial
            except WRITE_ERRORS as cause:
                if not self._apart:
                    raise
                failure = str(cause)
            if failed := [found for found in self._ranks.shared(failure) if found]:
                raise OSError(failed[0])
            self._once(folder, partial, lambda: self._finish(partial, folder, step))

    def _once(self, folder: Path, partial: Path, work: Callable[[], None]) -> None:
        """Let the first rank do something; if it fails, all ranks raise what it raises."""

        def told() -> None:
            with writing(folder, partial, self.kept):
                work()

        self._ranks.once(told)

    def _empty(self, partial: Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def _finish(self, partial: Path, folder: Path, step: int) -> None:
        for path in partial.rglob("*"):
            if path.suffix in _ZIPPED and not zipfile.is_zipfile(path):
                raise OSError(f"{path.name} was cut short")
        about = {"step": step, "world": self._ranks.world, "base": self._base}
        (partial / _MARKER).write_text(json.dumps(about), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # of a step that is done again
        finish(partial, folder)
        for old in self.whole()[:-_KEPT]:
            shutil.rmtree(old)

    def clean(self) -> None:
        """Take away what was never finished."""
        if not self.folder.is_dir():
            return
        whole = set(self.whole())
        for path in self.folder.iterdir():
            if path not in whole and (is_partial(path) or path.name.startswith("step-")):
                shutil.rmtree(path, ignore_errors=True)

    def behind(self, step: int) -> list[Path]:
        """Checkpoints of later steps, whole or not."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted((path for path in found if step_of(path) > step), key=step_of)

    def remove(self) -> None:
        """Take all of them away: the stage is saved."""
        shutil.rmtree(self.folder, ignore_errors=True)


def goes_on(checkpoint: Checkpoint, trained: Sequence[str], world: int) -> str:
    """What a stage takes from a checkpoint, in words.

    Args:
        checkpoint: From which it goes on.
        trained: Parts that the stage trains.
        world: Number of processes now.
    """
    loaded, fresh = [*trained, "optimizer", "schedule", "generators"], []
    if checkpoint.world != world:
        were = f"{checkpoint.world} {'rank' if checkpoint.world == 1 else 'ranks'}"
        fresh = [f"{loaded.pop()} (dropout differs: {were} before, {world} now)"]
    return f"goes on from {checkpoint.folder}: {taken(loaded, fresh)}"


def step_of(checkpoint: Path) -> int:
    """How many steps were done when a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def world_of(checkpoint: Path) -> int:
    """How many processes wrote a whole checkpoint."""
    world: int = json.loads((checkpoint / _MARKER).read_text(encoding="utf-8"))["world"]
    return world


def _whole(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step-*") if (path / _MARKER).is_file()]
    return sorted(found, key=step_of)
