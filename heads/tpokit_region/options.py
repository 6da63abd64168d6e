"""What a recipe may set on the region head and its data sources; does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tpokit.options import Options
from tpokit_region.templates import ANSWERS, MASK_ANSWERS, MASK_QUESTIONS, QUESTIONS

_EXPRESSION = "{expression}"


class RegionOptions(Options):
    """Options of the region head.

    Attributes:
        format: What the network gives. ``corners``: x0, y0, x1, y1 straight from the last layer, as
            released. ``centre``: centre and size through a sigmoid, so that a box is always proper.
        hidden: Width of the hidden layer; default half the width of the backbone, as released.
        given: Whether a question can hold a box (``<region>`` in the question).
        giou_over: What the GIoU term is a mean over. ``all``: every box; one with swapped corners
            costs 0 in it. ``proper``: as released, the boxes of a micro-batch whose corners are not
            swapped, and 2 if there are none; depends on how a step is split into micro-batches.
    """

    format: Literal["corners", "centre"] = "corners"
    hidden: int | None = Field(default=None, ge=1)
    given: bool = True
    giou_over: Literal["all", "proper"] = "all"


class _ExpressionOptions(Options):
    """Common to sources of referring expressions.

    Attributes:
        questions: Wordings, one of which is drawn for each reading; ``{expression}`` stands for the
            expression.
        answers: Wordings of the answer; each has one mark of the task (``<region>``) and may have
            ``{expression}``.
    """

    questions: tuple[str, ...] = Field(default=QUESTIONS, min_length=1)
    answers: tuple[str, ...] = Field(default=ANSWERS, min_length=1)

    @property
    def mark(self) -> str:
        """What calls the head."""
        return "<region>"

    @field_validator("questions")
    @classmethod
    def _questions_ask(cls, questions: tuple[str, ...]) -> tuple[str, ...]:
        for question in questions:
            if _EXPRESSION not in question:
                raise ValueError(f"the question {question!r} lacks {_EXPRESSION}")
        return questions

    @model_validator(mode="after")
    def _answers_call(self) -> _ExpressionOptions:
        for answer in self.answers:
            if answer.count(self.mark) != 1:
                raise ValueError(f"the answer {answer!r} must have {self.mark} exactly once")
        return self


class RefcocoOptions(_ExpressionOptions):
    """Options of the source ``refcoco``.

    Attributes:
        refs: The pickle of references, such as ``refcoco/refs(unc).p``. It is read without running
            any code it may hold.
        instances: ``instances.json`` beside it.
        split: ``train``, ``val``, ``testA``, ``testB`` or ``test``, whichever the file has.
        media_root: Folder of the COCO images (``train2014``).
        task: What is asked for: the box (``region``), or the shape of the object (``mask``), from
            the ``segmentation`` of its annotation; wordings are then others, too.
    """

    refs: Path
    instances: Path
    split: str
    media_root: Path
    task: Literal["region", "mask"] = "region"

    @property
    def mark(self) -> str:
        """What calls the head of the task."""
        return f"<{self.task}>"

    @model_validator(mode="before")
    @classmethod
    def _wordings_of_task(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("task") == "mask":
            return {"questions": MASK_QUESTIONS, "answers": MASK_ANSWERS, **values}
        return values


class RefcocoJsonOptions(_ExpressionOptions):
    """Options of the source ``refcoco_json``.

    Attributes:
        annotations: A file with one JSON object a line, or one JSON list.
        media_root: Folder that the paths of images start from; default that of ``annotations``.
    """

    annotations: Path
    media_root: Path | None = None
