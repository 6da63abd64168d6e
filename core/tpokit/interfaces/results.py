"""What scores and draws the results of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tpokit.types import MediaInfo, MediaNeed, View

if TYPE_CHECKING:
    from PIL.Image import Image


class Metric(ABC):
    """Scores the results of one task over many samples.

    Attributes:
        task: Whose results.
    """

    task: ClassVar[str]

    @abstractmethod
    def add(self, predicted: Sequence[Any], expected: Sequence[Any], media: MediaInfo) -> None:
        """Take in one sample.

        Args:
            predicted: Results of the task in the answer, in reading order; may be fewer or more
                than expected.
            expected: Results that would be right.
            media: The medium that they are about.
        """

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Measures by name, as fractions in [0, 1] unless the name says a unit."""

    def constant(self) -> dict[str, float]:
        """What the best answer that ignores the input would have scored, by the same names; empty
        if not defined.
        """
        return {}


class Drawing(ABC):
    """Draws results of one task.

    Attributes:
        task: Whose results.
        need: Frames of the medium that it wants to show.
        moves: Whether it also draws into the frames of a video (`draw_frame`).
    """

    task: ClassVar[str]
    need: ClassVar[MediaNeed] = MediaNeed(frames=1)
    moves: ClassVar[bool] = False

    @abstractmethod
    def draw(self, picture: Image, results: Sequence[Any], view: View) -> Image:
        """Draw over or below a picture.

        Args:
            picture: RGB; its upper left corner is a frame of the medium, in whose pixels
                boxes are; drawings of other tasks may already be on it.
            results: Of this task, in reading order.
            view: The frames that were asked for.

        Returns:
            A new picture; the given one stays as it is.
        """

    def draw_frame(self, frame: Image, results: Sequence[Any], time_s: float) -> Image:
        """Draw what results say of one frame of a video; only asked for where it ``moves``.

        Args:
            frame: RGB, in the pixels of the medium; drawings of other tasks may already be on it.
            results: Of this task, in reading order.
            time_s: When the frame is shown, seconds from the start of the medium.

        Returns:
            A picture of the same size; default: the frame as it is.
        """
        return frame
