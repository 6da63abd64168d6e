"""Reading one sample the way a stage does: with its own random choices, whoever reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tpokit.data.conversation import Encoder
from tpokit.data.mixing import generator, number
from tpokit.interfaces import DataSource
from tpokit.model import TpoModel
from tpokit.recipe import Recipe
from tpokit.types import Example, Sample


@dataclass(frozen=True)
class SampleReader:
    """Reads and encodes samples of one stage.

    Attributes:
        sources: By name of the recipe's data entry.
        seed: Of the stage.
        encoder: For the model that is trained.
    """

    sources: Mapping[str, DataSource]
    seed: int
    encoder: Encoder

    def read(self, source: str, index: int, epoch: int) -> Sample:
        """A sample as it is in an epoch of its entry, counted from 0.

        Raises:
            DataError: The annotation is wrong.
        """
        return self.sources[source].read(index, self._random(source, index, epoch, "read"))

    def encode(self, sample: Sample, source: str, index: int, epoch: int) -> Example:
        """What the model gets of it.

        Raises:
            DataError: The sample or a medium is wrong.
        """
        frames = self._random(source, index, epoch, "frames")
        return self.encoder.encode(sample, source, random=frames)

    def _random(self, source: str, index: int, epoch: int, purpose: str) -> np.random.Generator:
        return generator(self.seed, epoch, f"{source}/{index}", purpose)


def reader_of(
    recipe: Recipe, stage: str, sources: Mapping[str, DataSource], model: TpoModel
) -> SampleReader:
    """The reader of a stage.

    Args:
        recipe: Of the model.
        stage: Its name.
        sources: At least those that are read.
        model: That is trained; its processor and heads are used, not its weights.
    """
    processor = model.backbone.processor
    heads = {task: model.head(task) for task in model.heads}
    length = recipe.run.max_length or processor.max_length
    run = recipe.run
    encoder = Encoder(
        processor,
        heads,
        model.tokens,
        length,
        device_tokens=run.device_tokens,
        device_pixels=run.device_pixels,
        too_long=run.too_long,
    )
    return SampleReader(sources, number("stage", recipe.seed, stage), encoder)
