"""What a model gives: words, and what its heads have found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tpokit.types import MediaInfo


@dataclass(frozen=True)
class Box:
    """A box in an image or frame.

    Attributes:
        x0, y0, x1, y1: Corners in pixels of the original medium, upper left and lower right.
        score: Confidence in [0, 1] if the head gives one.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data: ``{"box": [x0, y0, x1, y1]}``, in pixels with two decimals."""
        plain: dict[str, Any] = {"box": [round(v, 2) for v in (self.x0, self.y0, self.x1, self.y1)]}
        return plain if self.score is None else {**plain, "score": round(self.score, 4)}


@dataclass(frozen=True)
class NoResult:
    """Why a head that was called has found nothing.

    Attributes:
        reason: One clause.
    """

    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"no_result": self.reason}

    def __str__(self) -> str:
        return f"nothing: {self.reason}"


@dataclass(frozen=True)
class Call:
    """A head that was called in an answer.

    Attributes:
        task: Which.
        result: What it found, in pixels and seconds; has ``to_json()``. A `Box` for boxes, a
            `NoResult` where the head could not work.
    """

    task: str
    result: Any


@dataclass(frozen=True)
class Answer:
    """What a model says and shows: the one thing that is printed, drawn, scored and exported.

    Attributes:
        question: What was asked.
        text: The answer; marks such as ``<region>`` stand where a head was called.
        calls: The heads that were called, in reading order.
        media: Sizes of the media that the question was about.
    """

    question: str
    text: str
    calls: tuple[Call, ...] = ()
    media: tuple[MediaInfo, ...] = ()

    @property
    def boxes(self) -> list[Box]:
        """All boxes of the answer, in reading order, in pixels."""
        return [call.result for call in self.calls if isinstance(call.result, Box)]

    def results(self, task: str) -> list[Any]:
        """Results of one task, in reading order, without those that are none."""
        return [
            call.result
            for call in self.calls
            if call.task == task and not isinstance(call.result, NoResult)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {
            "question": self.question,
            "text": self.text,
            "calls": [{"task": call.task, **call.result.to_json()} for call in self.calls],
            "media": [vars(info) for info in self.media],
        }
