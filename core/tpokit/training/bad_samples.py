"""The list of bad samples of a run, and the end of a run that has too many.

What data workers replaced is taken in when the step of its batch is due. So the list follows from
recipe and data alone: not from workers, ranks, or where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tpokit.data.bad_samples import BadSample, BadSampleLimit
from tpokit.errors import DataError
from tpokit.training.json_lines import append_rows, read_rows, replace_rows

BAD_SAMPLES_FILE = "bad_samples.jsonl"
"""In the folder of a run: one line for each sample that was replaced."""


class BadSampleList:
    """The bad samples of one stage so far; keeps the list of the run and stops it.

    Attributes:
        count: How many there are.
    """

    def __init__(self, path: Path, stage: str, limit: BadSampleLimit, writes: bool) -> None:
        """Start empty; no file is made before there is something to write.

        Args:
            path: The list of the run.
            stage: Name of the stage.
            limit: How many there may be.
            writes: Whether this process writes the list.
        """
        self._path = path
        self._stage = stage
        self._limit = limit
        self._writes = writes
        self._first = ""
        self.count = 0

    def go_on(self, kept: Sequence[BadSample]) -> None:
        """Count those before a resumed run, as `forget_bad_samples` gives them."""
        self.count = len(kept)
        self._first = kept[0].message if kept else ""

    def take(self, found: Sequence[BadSample], whole: bool = True) -> None:
        """Take in those of one step.

        Args:
            found: Of all processes.
            whole: Whether every place of the step could be filled.

        Raises:
            DataError: There are too many now, or a place is empty; says why the first was bad.
        """
        found = sorted(found, key=lambda sample: sample.position)  # stable: tries stay in order
        if self._writes and found:
            rows = [{"stage": self._stage, **asdict(sample)} for sample in found]
            append_rows(self._path, rows)
        for sample in found:
            self._first = self._first or sample.message
            self.count += 1
            allowed = self._limit.allowed(sample.position)
            if self.count > allowed:
                judged = self._limit.judged(sample.position)
                rule = f"run.bad_samples = {self._limit.share:g} allows {allowed} of {judged}"
                raise DataError(self._report(sample.position, rule))
        if not whole:
            last = found[-1]
            reason = f"no other sample of data.{last.source} can be read instead"
            raise DataError(self._report(last.position, reason))

    def _report(self, position: int, reason: str) -> str:
        seen = position + 1
        return (
            f"{self._first} (stage {self._stage}: {self.count} bad in the first {seen}, "
            f"{100 * self.count / seen:.3g} %; {reason}; all bad samples: {self._path})"
        )


def read_bad_samples(path: Path) -> list[tuple[str, BadSample]]:
    """Stage and sample of each line of a list, oldest first; a torn last line is left out."""
    return [(row.pop("stage"), BadSample(**row)) for row in read_rows(path)]


def forget_bad_samples(path: Path, stage: str, position: int) -> list[BadSample]:
    """Take the samples of a stage from a position on out of a list: they are about to come again.

    Returns:
        Those of the stage that are kept.
    """
    rows = read_bad_samples(path)
    kept = [(name, bad) for name, bad in rows if name != stage or bad.position < position]
    replace_rows(path, [{"stage": name, **asdict(bad)} for name, bad in kept])
    return [bad for name, bad in kept if name == stage]
