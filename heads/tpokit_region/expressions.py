"""From a referring expression to a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tpokit.types import Media, Sample, Turn


@dataclass(frozen=True, slots=True)
class Expression:
    """One sentence that refers to one object.

    Attributes:
        id: Unique within its source.
        text: The sentence.
        image: Path of the image from the folder of media.
        target: The object as the head of the task takes it: for ``region`` a box, corners as
            fractions of the image; for ``mask`` a mapping with ``mask``.
    """

    id: str
    text: str
    image: str
    target: Any


def sample_of(
    expression: Expression,
    root: Path,
    questions: Sequence[str],
    answers: Sequence[str],
    random: np.random.Generator,
    task: Literal["region", "mask"] = "region",
) -> Sample:
    """One question and answer about ``task``, their wordings drawn by ``random``."""
    question = questions[int(random.integers(len(questions)))]
    answer = answers[int(random.integers(len(answers)))]
    return Sample(
        id=expression.id,
        turns=(
            Turn("user", question.replace("{expression}", expression.text)),
            Turn("assistant", answer.replace("{expression}", expression.text)),
        ),
        media=(Media("image", root / expression.image),),
        targets={task: (expression.target,)},
    )
