"""Ref-YouTube-VOS, and Ref-DAVIS17 in the same layout.

``meta_expressions/{split}/meta_expressions.json``, ``{split}/JPEGImages/{video}/{frame}.jpg``,
``{split}/Annotations/{video}/{frame}.png`` whose pixels are numbers of objects.

Source: Seo et al., ECCV 2020.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tpokit_mask.sources.expressions import read_expressions
from tpokit_mask.sources.listed_frames import listed_frames
from tpokit_mask.sources.options import RefYoutubeVosOptions
from tpokit_mask.sources.tracks import Track, TrackSource


class RefYoutubeVosSource(TrackSource):
    """One sample for each expression; its id is ``video/expression``."""

    Options = RefYoutubeVosOptions

    def __init__(self, options: RefYoutubeVosOptions, folder: Path) -> None:
        """Read the expressions; see `DataSource`."""
        super().__init__(options, folder)
        self._rate, self._labelled = options.rate, options.labelled
        self._folder = (folder / options.folder).absolute()
        self._expressions = read_expressions(folder / options.annotations)

    def __len__(self) -> int:
        return len(self._expressions)

    def _track(self, index: int) -> Track:
        expression = self._expressions[index]
        video = listed_frames(
            self._folder / "JPEGImages" / expression.video,
            expression.frames,
            self._rate,
            expression.where,
        )
        frames: tuple[dict[str, Any], ...] = ()
        if self._labelled:
            values = list(expression.numbers("obj_id"))
            masks = self._folder / "Annotations" / expression.video
            frames = tuple(
                {"time_s": time_s, "mask": {"png": str(masks / f"{name}.png"), "values": values}}
                for time_s, name in zip(video.times_s, expression.frames, strict=True)
            )
        return Track(
            id=expression.id,
            media=video.media,
            frame_s=video.frame_s,
            frames=frames,
            where=expression.where,
            expression=expression.text,
            labelled=self._labelled,
        )
