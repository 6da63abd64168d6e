"""The samples of a stage as a torch dataset."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING

from torch.utils.data import Dataset

from tpokit.data.bad_samples import BadSample, BadSampleLimit, Reading
from tpokit.data.conversation import Encoder
from tpokit.data.mixing import Draw, Mixture, number, permuted
from tpokit.data.sample_reader import SampleReader
from tpokit.errors import DataError
from tpokit.interfaces import DataSource
from tpokit.recipe_mix import Mix
from tpokit.tokens import marked_tasks
from tpokit.types import Sample

if TYPE_CHECKING:
    from tpokit.plugins import Plugins
    from tpokit.recipe import Recipe

_STAND_INS = 100  # other samples that are looked at, at most, to replace one


class MixedDataset(Dataset[Reading]):
    """Item i is the i-th sample of a stage, the same on every rank and after a resume.

    A sample that cannot be read is replaced by another one of the same data entry (so of the same
    task of the mix, and within the entry's cap), one that calls the same heads where there is one;
    which one follows from the seed and i alone.
    """

    def __init__(
        self,
        sources: Mapping[str, DataSource],
        mix: Mix,
        seed: int,
        encoder: Encoder,
        limit: BadSampleLimit,
        block: int = 1,
    ) -> None:
        """Prepare the order; nothing is read yet.

        Args:
            sources: By name of the recipe's data entry; all of the mix.
            mix: Of the stage.
            seed: Of the stage.
            encoder: For the model that is trained.
            limit: Number of samples in the stage, and how many may be bad.
            block: So many samples in a row are of one task of the mix; see `Mixture`.
        """
        self._reader = SampleReader(sources, seed, encoder)
        self._limit = limit
        sizes = {name: len(source) for name, source in sources.items()}
        self._mixture = Mixture(mix, sizes, seed, block)

    def __len__(self) -> int:
        return self._limit.samples

    def draw(self, position: int) -> Draw:
        """Which sample stands at a position, whether it can be read or not."""
        return self._mixture.draw(position)

    def __getitem__(self, position: int) -> Reading:
        draw = self._mixture.draw(position)
        bad: list[BadSample] = []
        for index in chain([draw.index], self._stand_ins(draw, position)):
            sample = None
            try:
                sample = self._read(draw, index)
                example = self._reader.encode(sample, draw.source, index, draw.epoch)
                return Reading(example, tuple(bad))
            except DataError as cause:
                name = None if sample is None else sample.id
                bad.append(BadSample(position, draw.source, index, name, str(cause)))
            if len(bad) > self._limit.allowed(position):
                break  # the run stops here: nothing to look for
        return Reading(None, tuple(bad))

    def _read(self, draw: Draw, index: int) -> Sample:
        return self._reader.read(draw.source, index, draw.epoch)

    def _stand_ins(self, draw: Draw, position: int) -> Iterator[int]:
        """Other samples of an entry: those that call the same heads first, in an order of the
        position's own.
        """
        wanted = self._tasks(draw, draw.index)
        portion = self._mixture.portions[draw.source]
        key = number("replace", self._reader.seed, draw.source, position)
        places = (permuted(offset, portion.used, key) for offset in range(portion.used))
        order = map(portion.index, places)
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
        return frozenset(marked_tasks(said, self._reader.encoder.heads))


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
