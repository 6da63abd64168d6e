"""The samples of a stage as a torch dataset."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from torch.utils.data import Dataset

from tpokit.data.conversation import Encoder
from tpokit.data.mixing import Mixture, generator
from tpokit.errors import DataError
from tpokit.interfaces import DataSource
from tpokit.types import Example, Sample

if TYPE_CHECKING:
    from tpokit.plugins import Plugins
    from tpokit.recipe import Recipe


class MixedDataset(Dataset[Example]):
    """Item i is the i-th sample of a stage, the same on every rank and after a resume."""

    def __init__(
        self,
        sources: Mapping[str, DataSource],
        mix: Mapping[str, float],
        length: int,
        seed: int,
        encoder: Encoder,
    ) -> None:
        """Prepare the order; nothing is read yet.

        Args:
            sources: By name of the recipe's data entry.
            mix: Name to share of samples.
            length: Number of samples in the stage.
            seed: Of the stage.
            encoder: For the model that is trained.
        """
        self._sources = sources
        self._length = length
        self._seed = seed
        self._encoder = encoder
        self._mixture = Mixture(mix, {name: len(sources[name]) for name in mix}, seed)

    def __len__(self) -> int:
        return self._length

    def sample(self, position: int) -> tuple[str, Sample]:
        """Source name and sample at a position, not encoded."""
        draw = self._mixture.draw(position)
        random = generator(self._seed, draw.epoch, f"{draw.source}/{draw.index}", "read")
        return draw.source, self._sources[draw.source].read(draw.index, random)

    def __getitem__(self, position: int) -> Example:
        source, sample = self.sample(position)
        return self._encoder.encode(sample, source)


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
