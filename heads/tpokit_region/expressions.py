"""From a referring expression to a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpokit.data.boxes import Corners
from tpokit.types import Media, Sample, Turn


@dataclass(frozen=True, slots=True)
class Expression:
    """One sentence that refers to one box.

    Attributes:
        id: Unique within its source.
        text: The sentence.
        image: Path of the image from the folder of media.
        box: Corners as fractions of the image.
    """

    id: str
    text: str
    image: str
    box: Corners


def sample_of(
    expression: Expression,
    root: Path,
    questions: Sequence[str],
    answers: Sequence[str],
    random: np.random.Generator,
) -> Sample:
    """One question and answer, their wordings drawn by ``random``."""
    question = questions[int(random.integers(len(questions)))]
    answer = answers[int(random.integers(len(answers)))]
    return Sample(
        id=expression.id,
        turns=(
            Turn("user", question.replace("{expression}", expression.text)),
            Turn("assistant", answer.replace("{expression}", expression.text)),
        ),
        media=(Media("image", root / expression.image),),
        targets={"region": (expression.box,)},
    )
