"""Samples of the shapes world whose media files are not written: words and truth alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

from tpokit import Sample
from tpokit_shapes_world import source
from tpokit_shapes_world.conversations import converse
from tpokit_shapes_world.options import ShapesWorldOptions
from tpokit_shapes_world.scenes import Scene
from tpokit_shapes_world.turns import QuestionAnswer


class Drawn(NamedTuple):
    scene: Scene
    turns: tuple[QuestionAnswer, ...]  # from which the sample was made
    sample: Sample


def draw(folder: Path, count: int, **options) -> Iterator[Drawn]:
    """The first samples; ``folder`` stays empty."""
    world = source.ShapesWorld(ShapesWorldOptions(folder=folder, **options), folder)
    asked = options.get("kinds"), options.get("turns", (1, 3))
    with mock.patch.multiple(source, write_png=mock.DEFAULT, write_mp4=mock.DEFAULT):
        for index in range(count):
            scene = world.scene(index)
            turns = converse(scene, np.random.default_rng(index), *asked)
            with mock.patch.object(world, "scene", return_value=scene):  # making one takes longest
                sample = world.read(index, np.random.default_rng(index))
            yield Drawn(scene, turns, sample)
