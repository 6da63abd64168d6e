"""What is wrong with the data of a recipe, found before training is.

Every annotation is read and encoded as training does it; media are looked at but, unless it is
asked for, not decoded.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from tpokit.data.dataset import open_sources
from tpokit.data.sample_reader import SampleReader, reader_of
from tpokit.errors import DataError
from tpokit.interfaces import DataSource
from tpokit.plugins import Plugins
from tpokit.recipe import Recipe
from tpokit.types import Sample
from tpokit.variants import empty_model

_CHUNK = 256
"""Samples that a worker looks at before it tells what it has found."""
_FIRST = 5
"""Samples that are named of each kind of problem."""
_LENGTHS = {"p50": 0.5, "p95": 0.95, "max": 1.0}
"""Lengths that are told, and the share of samples that does not exceed each."""
_PARTICULARS = (
    (re.compile(r"'[^']*'|\"[^\"]*\""), "'...'"),
    (re.compile(r"\S*/\S*"), ".../..."),
    (re.compile(r"-?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?"), "0"),
)
"""What differs between messages of one kind, and what takes its place."""


@dataclass(frozen=True)
class CheckOptions:
    """What is looked at.

    Attributes:
        entries: Names of data entries.
        samples: So many of each, evenly spread; ``None``: all.
        decode: Decode media, too.
        workers: Processes that look; 0: this one.
    """

    entries: tuple[str, ...]
    samples: int | None = None
    decode: bool = False
    workers: int = 0


@dataclass(frozen=True)
class DataProblem:
    """Something that is wrong.

    Attributes:
        entry: Name of the data entry.
        index: Of the sample in it; ``None``: the entry itself cannot be opened.
        sample: Id of the sample, if it could be read.
        message: What is wrong, and what would be right.
    """

    entry: str
    index: int | None
    sample: str | None
    message: str

    @property
    def kind(self) -> str:
        """The message without names and numbers."""
        text = self.message.removeprefix(f"{self.entry}/{self.sample}: ")
        for pattern, place in _PARTICULARS:
            text = pattern.sub(place, text)
        return text


@dataclass(frozen=True)
class ProblemKind:
    """Problems whose messages differ in names and numbers alone.

    Attributes:
        count: How many there are.
        first: The first few.
    """

    count: int
    first: tuple[DataProblem, ...]


@dataclass(frozen=True)
class EntryReport:
    """One data entry.

    Attributes:
        entry: Its name.
        samples: How many it has.
        looked_at: How many of them were looked at.
        calls: Task to the number of its calls in answers.
        conversations: Samples that call no head.
        shortened: Samples that would be shortened to fit.
        lengths: Tokens of the samples without a problem, rising.
        problems: In the order of the samples.
    """

    entry: str
    samples: int
    looked_at: int
    calls: Mapping[str, int]
    conversations: int
    shortened: int
    lengths: np.ndarray
    problems: tuple[DataProblem, ...]

    @property
    def tokens(self) -> dict[str, int | None]:
        """Length that half of the samples, 95 % and all of them do not exceed: ``p50``, ``p95`` and
        ``max``; ``None`` if all have problems.
        """
        last = len(self.lengths) - 1
        return {
            name: None if last < 0 else int(self.lengths[round(share * last)])
            for name, share in _LENGTHS.items()
        }

    def kinds(self) -> list[ProblemKind]:
        """Problems by kind, the most frequent first."""
        found: dict[str, list[DataProblem]] = {}
        for problem in self.problems:
            found.setdefault(problem.kind, []).append(problem)
        kinds = [ProblemKind(len(alike), tuple(alike[:_FIRST])) for alike in found.values()]
        return sorted(kinds, key=lambda kind: -kind.count)

    def to_json(self) -> dict[str, Any]:
        """Plain data, with every problem."""
        return {
            "entry": self.entry,
            "samples": self.samples,
            "looked_at": self.looked_at,
            "calls": dict(self.calls),
            "conversations": self.conversations,
            "shortened": self.shortened,
            "tokens": self.tokens,
            "problems": [asdict(problem) for problem in self.problems],
        }


def check_data(
    recipe: Recipe,
    plugins: Plugins,
    options: CheckOptions,
    progress: Callable[[int, int], None] | None = None,
) -> list[EntryReport]:
    """Look at the data of a recipe.

    Args:
        recipe: Resolved with ``plugins``.
        plugins: Where its names are looked up.
        options: What is looked at.
        progress: Called with samples done and in all.

    Returns:
        A report for each entry, in their order.

    Raises:
        UsageError, CheckpointError: The model's processor or a head cannot be built.
    """
    sources, closed = _open(recipe, plugins, options.entries)
    readers = _readers(recipe, plugins, sources, options.decode)
    chunks = [
        _Chunk(name, indices)
        for name in options.entries
        if name in sources
        for indices in _spread(len(sources[name]), options.samples)
    ]
    count, done = sum(len(chunk.indices) for chunk in chunks), 0
    reports = {name: _Collected() for name in options.entries}
    for found in _look(chunks, readers, options.workers):
        reports[found.entry].add(found)
        done += found.looked_at
        if progress is not None:
            progress(done, count)
    return [
        closed[name] if name in closed else reports[name].report(name, len(sources[name]))
        for name in options.entries
    ]


def _open(
    recipe: Recipe, plugins: Plugins, names: Sequence[str]
) -> tuple[dict[str, DataSource], dict[str, EntryReport]]:
    """Sources by name, and what is to be said of those that cannot be opened."""
    sources: dict[str, DataSource] = {}
    closed: dict[str, EntryReport] = {}
    for name in names:
        try:
            sources |= open_sources(recipe, plugins, [name])
        except DataError as cause:
            problem = DataProblem(name, None, None, str(cause))
            closed[name] = EntryReport(name, 0, 0, {}, 0, 0, np.empty(0, np.int64), (problem,))
    return sources, closed


def _readers(
    recipe: Recipe, plugins: Plugins, sources: Mapping[str, DataSource], decode: bool
) -> dict[str, SampleReader]:
    """For each entry a reader as of the first stage that mixes it."""
    model = empty_model(recipe, plugins).train()
    readers = {}
    for name in sources:
        stage = next((s.name for s in recipe.stages if name in s.plan.entries), "")
        reader = reader_of(recipe, stage, sources, model)
        readers[name] = replace(reader, encoder=replace(reader.encoder, decode=decode))
    return readers


def _spread(size: int, wanted: int | None) -> Iterator[Sequence[int]]:
    """Indices of an entry, all or so many evenly spread, in chunks."""
    count = size if wanted is None else min(size, wanted)
    for begin in range(0, count, _CHUNK):
        places = range(begin, min(begin + _CHUNK, count))
        yield places if count == size else [place * size // count for place in places]


# ---- in the processes that look ----


@dataclass(frozen=True)
class _Chunk:
    """Samples that are looked at together."""

    entry: str
    indices: Sequence[int]


@dataclass(frozen=True)
class _Found:
    """What was found in a chunk."""

    entry: str
    looked_at: int
    calls: Counter[str]
    conversations: int
    shortened: int
    lengths: array[int]
    problems: tuple[DataProblem, ...]


class _Chunks(Dataset[_Found]):
    """Looks at a chunk when it is asked for."""

    def __init__(self, chunks: Sequence[_Chunk], readers: Mapping[str, SampleReader]) -> None:
        self._chunks = chunks
        self._readers = readers

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, place: int) -> _Found:
        chunk = self._chunks[place]
        reader = self._readers[chunk.entry]
        calls: Counter[str] = Counter()
        lengths, problems = array("q"), []
        conversations = shortened = 0
        for index in chunk.indices:
            sample: Sample | None = None
            try:
                sample = reader.read(chunk.entry, index, epoch=0)
                called = sample.calls
                calls.update(called)
                conversations += not called
                example = reader.encode(sample, chunk.entry, index, epoch=0)
                lengths.append(len(example.ids))
                shortened += example.shortened
            except DataError as cause:
                name = None if sample is None else sample.id
                problems.append(DataProblem(chunk.entry, index, name, str(cause)))
            except Exception as cause:
                cause.add_note(f"data.{chunk.entry}, sample {index}")  # a bug of a plugin
                raise
        return _Found(
            chunk.entry, len(chunk.indices), calls, conversations, shortened, lengths,
            tuple(problems),
        )  # fmt: skip


def _look(
    chunks: Sequence[_Chunk], readers: Mapping[str, SampleReader], workers: int
) -> Iterator[_Found]:
    """What was found, chunk after chunk."""
    found: Iterator[_Found] = iter(
        DataLoader(
            _Chunks(chunks, readers), batch_size=None, num_workers=workers, collate_fn=_as_it_is
        )
    )
    return found


def _as_it_is(found: Any) -> Any:
    return found


class _Collected:
    """Adds up the chunks of an entry."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._lengths = array("q")
        self._problems: list[DataProblem] = []
        self._looked_at = self._conversations = self._shortened = 0

    def add(self, found: _Found) -> None:
        """Take in a chunk."""
        self._calls += found.calls
        self._lengths.extend(found.lengths)
        self._problems += found.problems
        self._looked_at += found.looked_at
        self._conversations += found.conversations
        self._shortened += found.shortened

    def report(self, entry: str, samples: int) -> EntryReport:
        """All together."""
        return EntryReport(
            entry=entry,
            samples=samples,
            looked_at=self._looked_at,
            calls=dict(sorted(self._calls.items())),
            conversations=self._conversations,
            shortened=self._shortened,
            lengths=np.sort(np.array(self._lengths, dtype=np.int64)),
            problems=tuple(self._problems),
        )
