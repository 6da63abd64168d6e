"""One turn of a dialogue about a scene, and what all kinds of questions share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tpokit_shapes_world.scenes import Scene

_QUESTION_MARK_SHARE = 0.5  # of the questions end with a question mark


@dataclass(frozen=True)
class QuestionAnswer:
    """One turn of a dialogue.

    A marker in the question stands for the box of the object that is meant.
    """

    kind: str  # a key of KINDS
    question: str
    answer: str
    objects: tuple[int, ...] = ()  # places in Scene.objects, one for each marker in the answer


Ask = Callable[[Scene, np.random.Generator], QuestionAnswer | None]


def turn(
    generator: np.random.Generator,
    kind: str,
    wordings: Sequence[str],
    answer: str,
    objects: tuple[int, ...] = (),
) -> QuestionAnswer:
    """A turn with one of some wordings, with or without a question mark."""
    question = wordings[int(generator.integers(len(wordings)))]
    if generator.random() < _QUESTION_MARK_SHARE:
        question += "?"
    return QuestionAnswer(kind, question, answer, objects)


def pick(generator: np.random.Generator, scene: Scene, count: int = 1) -> list[int]:
    """Places of ``count`` different objects, in random order."""
    return [int(place) for place in generator.permutation(len(scene.objects))[:count]]
