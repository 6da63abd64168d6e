"""What a recipe may set on the sources of moments; does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from tpokit.options import Options
from tpokit_temporal.templates import ANSWERS, QUESTIONS

_MARK = "<temporal>"


class MomentOptions(Options):
    """Options of the sources ``charades_sta`` and ``activitynet_captions``, and of all others too.

    Attributes:
        annotations: The file as it is published.
        media_root: Folder that ``video_file`` starts from; default that of ``annotations``.
        video_file: Path of a video below it; ``{video}`` stands for its name in the annotations.
        durations: Table of the lengths of videos, in seconds. It goes before what the annotations
            say. JSON (``{"AB12C": 30.96}`` or ``{"AB12C": {"duration": 30.96}}``), CSV with a
            header (such as ``Charades_v1_train.csv``), or two columns, name and seconds.
        shortest_s: Moments that are shorter, and points in time, are widened around their middle to
            that many seconds; by default they stay as they are, and points are dropped.
        questions: Wordings, one of which is drawn for each reading; ``{query}`` stands for the
            sentence.
        answers: Wordings of the answer; each has one ``<temporal>`` and may have ``{query}`` and
            ``{seconds}`` (such as ``23.0-27.0``).
    """

    annotations: Path
    media_root: Path | None = None
    video_file: str = "{video}.mp4"
    durations: Path | None = None
    shortest_s: float = Field(default=0.0, ge=0.0)
    questions: tuple[str, ...] = Field(default=QUESTIONS, min_length=1)
    answers: tuple[str, ...] = Field(default=ANSWERS, min_length=1)

    @field_validator("video_file")
    @classmethod
    def _file_names_video(cls, pattern: str) -> str:
        if "{video}" not in pattern:
            raise ValueError(f"the file name {pattern!r} lacks {{video}}")
        return pattern

    @field_validator("questions")
    @classmethod
    def _questions_ask(cls, questions: tuple[str, ...]) -> tuple[str, ...]:
        for question in questions:
            if "{query}" not in question:
                raise ValueError(f"the question {question!r} lacks {{query}}")
        return questions

    @field_validator("answers")
    @classmethod
    def _answers_call(cls, answers: tuple[str, ...]) -> tuple[str, ...]:
        for answer in answers:
            if answer.count(_MARK) != 1:
                raise ValueError(f"the answer {answer!r} must have {_MARK} exactly once")
        return answers


class MomentLinesOptions(MomentOptions):
    """Options of the sources ``qvhighlights``, ``tacos`` and ``nlq``.

    Attributes:
        clip_s: Seconds of one clip of ``relevant_clip_ids``, where the file has them.
    """

    clip_s: float = Field(default=2.0, gt=0.0)


class DidemoOptions(MomentOptions):
    """Options of the source ``didemo``.

    Attributes:
        video_file: As in all sources; here names have their own ending (``.mov``, ``.avi``), and
            ``{stem}`` stands for the name without it.
        annotator: Whose moment is taken. ``frequent``: the one that most of them gave; of equally
            frequent ones that which overlaps most with all others. ``mean``: mean start and end of
            all that have an IoU of at least 0.5 with that one.
    """

    video_file: str = "{video}"
    annotator: Literal["frequent", "mean"] = "frequent"

    @field_validator("video_file")
    @classmethod
    def _file_names_video(cls, pattern: str) -> str:
        if "{video}" not in pattern and "{stem}" not in pattern:
            raise ValueError(f"the file name {pattern!r} lacks {{video}} or {{stem}}")
        return pattern
