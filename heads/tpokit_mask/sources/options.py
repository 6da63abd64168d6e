"""What a recipe may set on the sources of masks and tracks; does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from tpokit.options import Options
from tpokit_mask.templates import ANSWERS, BOX_QUESTIONS, EXPRESSION_QUESTIONS

_MARK = "<mask>"
_EXPRESSION = "{expression}"


class TrackOptions(Options):
    """Common to all sources.

    Attributes:
        window: A sample is a run of that many annotated frames, drawn anew for each reading, that
            begins where the object is visible; give the mask head as many ``frames``. Default: the
            whole video, or with a given box all of it from the first frame that shows the object.
        questions: Wordings, one of which is drawn for each reading. In those that refer with words,
            ``{expression}`` stands for them; in others ``<mask>`` for the given box.
        answers: Wordings of the answer; each has one ``<mask>`` and may have ``{expression}`` where
            there is one.
    """

    window: int | None = Field(default=None, ge=1)
    questions: tuple[str, ...] | None = Field(default=None, min_length=1)
    answers: tuple[str, ...] = Field(default=ANSWERS, min_length=1)

    @property
    def refers(self) -> bool:
        """Whether the object is named by an expression; else its box is given."""
        return False

    @property
    def wordings(self) -> tuple[str, ...]:
        """The questions that are asked."""
        return self.questions or (EXPRESSION_QUESTIONS if self.refers else BOX_QUESTIONS)

    @field_validator("answers")
    @classmethod
    def _answers_call(cls, answers: tuple[str, ...]) -> tuple[str, ...]:
        for answer in answers:
            if answer.count(_MARK) != 1:
                raise ValueError(f"the answer {answer!r} must have {_MARK} exactly once")
        return answers

    @model_validator(mode="after")
    def _questions_ask(self) -> TrackOptions:
        for question in self.questions or ():
            if self.refers and _EXPRESSION not in question:
                raise ValueError(f"the question {question!r} lacks {_EXPRESSION}")
            if not self.refers and question.count(_MARK) != 1:
                raise ValueError(
                    f"the question {question!r} must have {_MARK} exactly once: there the box is "
                    "given"
                )
        return self


class ExpressionOptions(TrackOptions):
    """Common to sets of expressions about folders of frames.

    Attributes:
        folder: Of the split.
        labelled: Whether its masks are known; false for ``valid``, whose masks stay on a server.
        rate: Frames a second, of those that the set lists.
    """

    folder: Path
    labelled: bool = True
    rate: float = Field(default=6.0, gt=0, allow_inf_nan=False)

    @property
    def refers(self) -> bool:
        """Yes."""
        return True


class MevisOptions(ExpressionOptions):
    """Options of the source ``mevis``.

    ``folder`` holds ``meta_expressions.json``, ``mask_dict.json`` and ``JPEGImages``. The set does
    not say its ``rate``: its videos are from many places. 6, that of SA-V and Ref-YouTube-VOS,
    makes one speed of all of them; masks stay with their frames whatever it is.
    """


class RefYoutubeVosOptions(ExpressionOptions):
    """Options of the source ``ref_youtube_vos``.

    ``folder`` holds ``JPEGImages`` and ``Annotations``. ``rate`` is 6 for Ref-YouTube-VOS, also
    where a folder has all frames of a video; 24 for Ref-DAVIS17.

    Attributes:
        annotations: ``meta_expressions.json`` of the split.
    """

    annotations: Path


class SavOptions(TrackOptions):
    """Options of the source ``sa_v``.

    Attributes:
        folder: Holds videos with their JSON beside them, at any depth.
        masklets: ``manual``: those of ``*_manual.json``; ``auto``: those of ``*_auto.json``.
    """

    folder: Path
    masklets: Literal["manual", "auto"] = "manual"


class DavisOptions(TrackOptions):
    """Options of the source ``davis``.

    Attributes:
        folder: Of the set.
        frames: Folder of the frames below it, with one folder for each sequence.
        masks: Likewise of the masks.
        split: File with one name of a sequence a line; default: every sequence that has masks.
        expressions: File with ``sequence object "expression"`` on each line, as published by
            Khoreva et al. (ACCV 2018); default: objects are given by their box.
        labelled: False where only the first mask is published (``test-dev``); it then gives the
            box, and nothing is known beyond it.
        rate: Frames a second.
    """

    folder: Path
    frames: Path = Path("JPEGImages/480p")
    masks: Path = Path("Annotations/480p")
    split: Path | None = None
    expressions: Path | None = None
    labelled: bool = True
    rate: float = Field(default=24.0, gt=0, allow_inf_nan=False)

    @property
    def refers(self) -> bool:
        """Where there are expressions."""
        return self.expressions is not None


class LasotOptions(TrackOptions):
    """Options of the source ``lasot``.

    Attributes:
        folder: Holds a folder for each category with one for each sequence.
        split: File with one name of a sequence a line, such as ``testing_set.txt``; default: all
            that are there.
        language: Refer with the sentence of ``nlp.txt`` instead of giving the box.
        rate: Frames a second.
    """

    folder: Path
    split: Path | None = None
    language: bool = False
    rate: float = Field(default=30.0, gt=0, allow_inf_nan=False)

    @property
    def refers(self) -> bool:
        """With ``language``."""
        return self.language


class Got10kOptions(TrackOptions):
    """Options of the source ``got10k``.

    Attributes:
        folder: Of the split, with ``list.txt``.
        labelled: Whether all boxes are known; false for ``test``, of which only the first is.
        rate: Frames a second.
    """

    folder: Path
    labelled: bool = True
    rate: float = Field(default=10.0, gt=0, allow_inf_nan=False)
