"""MeViS: expressions about motion, each of one or more objects.

A folder for each split, with ``meta_expressions.json``, ``mask_dict.json`` and ``JPEGImages``. The
target of an expression is the union of the masks of all its ``anno_id``, on each frame.

Source: Ding et al., ICCV 2023.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tpokit.errors import DataError
from tpokit_mask.sources.expressions import Expression, read_expressions
from tpokit_mask.sources.listed_frames import listed_frames
from tpokit_mask.sources.mask_table import MaskTable
from tpokit_mask.sources.options import MevisOptions
from tpokit_mask.sources.tracks import Track, TrackSource


class MevisSource(TrackSource):
    """One sample for each expression; its id is ``video/expression``."""

    Options = MevisOptions

    def __init__(self, options: MevisOptions, folder: Path) -> None:
        """Read the expressions, find the masks; see `DataSource`."""
        super().__init__(options, folder)
        self._rate = options.rate
        self._folder = (folder / options.folder).absolute()
        self._expressions = read_expressions(self._folder / "meta_expressions.json")
        self._masks = None
        if options.labelled:
            path = self._folder / "mask_dict.json"
            if not path.is_file():
                raise DataError(
                    f"{path}: there is no such file; a split whose masks are not published is read "
                    "with labelled: false"
                )
            self._masks = MaskTable(path)

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
        if self._masks is not None:
            frames = tuple(
                {"time_s": time_s, "mask": mask}
                for time_s, mask in zip(
                    video.times_s, _unions(expression, self._masks), strict=True
                )
            )
        return Track(
            id=expression.id,
            media=video.media,
            frame_s=video.frame_s,
            frames=frames,
            where=expression.where,
            expression=expression.text,
            labelled=self._masks is not None,
        )


def _unions(expression: Expression, masks: MaskTable) -> list[list[dict[str, Any]]]:
    """The masks of all objects on each frame; none where nothing is visible."""
    found = []
    for number in expression.numbers("anno_id"):
        tracks = masks.read(number, expression.where)
        if len(tracks) != len(expression.frames):
            raise DataError(
                f"{expression.where}: anno_id {number} has masks for {len(tracks)} frames, the "
                f"video has {len(expression.frames)}"
            )
        found.append(tracks)
    return [
        [{"rle": track[place]} for track in found if track[place] is not None]
        for place in range(len(expression.frames))
    ]
