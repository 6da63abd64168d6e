"""What MeViS, Ref-YouTube-VOS and sets in their layout share: expressions, folders of frames."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from tpokit_mask.sources.expressions import Expression, read_expressions
from tpokit_mask.sources.listed_frames import listed_frames
from tpokit_mask.sources.options import ExpressionOptions
from tpokit_mask.sources.tracks import Track, TrackSource


class ExpressionSource(TrackSource):
    """One sample for each expression; its id is ``video/expression``."""

    def __init__(self, options: ExpressionOptions, folder: Path, annotations: Path) -> None:
        """Read the expressions; see `DataSource`.

        Args:
            options: Of the set.
            folder: Of the recipe.
            annotations: The file of expressions.
        """
        super().__init__(options, folder)
        self._rate, self._labelled = options.rate, options.labelled
        self._folder = (folder / options.folder).absolute()
        self._expressions = read_expressions(annotations)

    def __len__(self) -> int:
        return len(self._expressions)

    @abstractmethod
    def _masks_of(self, expression: Expression) -> list[Any]:
        """The mask on each of its frames, in the form of `tpokit_mask.annotations`."""

    def _track(self, index: int) -> Track:
        expression = self._expressions[index]
        video = listed_frames(
            self._folder / "JPEGImages" / expression.video,
            expression.frames,
            self._rate,
            expression.where,
        )
        masks = self._masks_of(expression) if self._labelled else []
        shown = zip(video.times_s, masks, strict=True) if self._labelled else ()
        return Track(
            id=expression.id,
            media=video.media,
            frame_s=video.frame_s,
            frames=tuple({"time_s": time_s, "mask": mask} for time_s, mask in shown),
            where=expression.where,
            expression=expression.text,
            labelled=self._labelled,
        )
