"""The samples of a stage as a torch dataset."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from tpokit.data.bad_samples import BadSample, BadSampleLimit, Reading
from tpokit.data.conversation import Encoder
from tpokit.data.mixing import Draw, Mixture, generator, number, permuted
from tpokit.errors import DataError
from tpokit.interfaces import DataSource
from tpokit.tokens import marked_tasks
from tpokit.types import Sample

if TYPE_CHECKING:
    from tpokit.plugins import Plugins
    from tpokit.recipe import Recipe

_STAND_INS = 100  # other samples that are looked at, at most, to replace one


class MixedDataset(Dataset[Reading]):
    """Item i is the i-th sample of a stage, the same on every rank and after a resume.

    A sample that cannot be read is replaced by another one of the same data entry, one that calls
    the same heads where there is one; which one follows from the seed and i alone.
    """

    def __init__(
        self,
        sources: Mapping[str, DataSource],
        mix: Mapping[str, float],
        seed: int,
        encoder: Encoder,
        limit: BadSampleLimit,
    ) -> None:
        """Prepare the order; nothing is read yet.

        Args:
            sources: By name of the recipe's data entry.
            mix: Name to share of samples.
            seed: Of the stage.
            encoder: For the model that is trained.
            limit: Number of samples in the stage, and how many may be bad.
        """
        self._sources = sources
        self._seed = seed
        self._encoder = encoder
        self._limit = limit
        self._mixture = Mixture(mix, {name: len(sources[name]) for name in mix}, seed)

    def __len__(self) -> int:
        return self._limit.samples

    def __getitem__(self, position: int) -> Reading:
        draw = self._mixture.draw(position)
        bad: list[BadSample] = []
        for index in chain([draw.index], self._stand_ins(draw, position)):
            sample = None
            try:
                sample = self._read(draw, index)
                frames = self._random(draw, index, "frames")
                example = self._encoder.encode(sample, draw.source, random=frames)
                return Reading(example, tuple(bad))
            except DataError as cause:
                name = None if sample is None else sample.id
                bad.append(BadSample(position, draw.source, index, name, str(cause)))
            if len(bad) > self._limit.allowed(position):
                break  # the run stops here: nothing to look for
        return Reading(None, tuple(bad))

    def _read(self, draw: Draw, index: int) -> Sample:
        return self._sources[draw.source].read(index, self._random(draw, index, "read"))

    def _random(self, draw: Draw, index: int, purpose: str) -> np.random.Generator:
        return generator(self._seed, draw.epoch, f"{draw.source}/{index}", purpose)

    def _stand_ins(self, draw: Draw, position: int) -> Iterator[int]:
        """Other samples of an entry: those that call the same heads first, in an order of the
        position's own.
        """
        wanted = self._tasks(draw, draw.index)
        size = len(self._sources[draw.source])
        key = number("replace", self._seed, draw.source, position)
        order = (permuted(offset, size, key) for offset in range(size))
        rest = []
        for index in islice((index for index in order if index != draw.index), _STAND_INS):
            if wanted is None or self._tasks(draw, index) == wanted:
                yield index
            else:
                rest.append(index)
        yield from rest

    def _tasks(self, draw: Draw, index: int) -> frozenset[str] | None:
        """Heads that the answers of a sample call; ``None`` if it cannot be read."""
        try:
            turns = self._read(draw, index).turns
        except DataError:
            return None
        said = " ".join(turn.text for turn in turns if turn.role == "assistant")
        return frozenset(marked_tasks(said, self._encoder.heads))


def open_sources(recipe: Recipe, plugins: Plugins, names: Collection[str]) -> dict[str, DataSource]:
    """Open data entries of a recipe.

    Raises:
        DataError: One of them is empty or cannot be read.
    """
    sources: dict[str, DataSource] = {}
    for name in sorted(names):
        entry = recipe.data[name]
        spec = plugins.spec("source", entry.source)
        options = plugins.options(spec, entry.options)
        sources[name] = plugins.factory(spec)(options, recipe.folder)
        if not len(sources[name]):
            raise DataError(f"data.{name}: the source {entry.source!r} has no samples")
    return sources
