"""MeViS: expressions about motion, each of one or more objects.

A folder for each split, with ``meta_expressions.json``, ``mask_dict.json`` and ``JPEGImages``. The
target of an expression is the union of the masks of all its ``anno_id``, on each frame.

Source: Ding et al., ICCV 2023.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tpokit.errors import DataError
from tpokit_mask.sources.expression_source import ExpressionSource
from tpokit_mask.sources.expressions import Expression
from tpokit_mask.sources.mask_table import MaskTable
from tpokit_mask.sources.options import MevisOptions


class MevisSource(ExpressionSource):
    """One sample for each expression; its id is ``video/expression``."""

    Options = MevisOptions

    def __init__(self, options: MevisOptions, folder: Path) -> None:
        """Read the expressions, find the masks; see `DataSource`."""
        split = (folder / options.folder).absolute()
        super().__init__(options, folder, split / "meta_expressions.json")
        path = split / "mask_dict.json"
        if options.labelled and not path.is_file():
            raise DataError(
                f"{path}: there is no such file; a split whose masks are not published is read "
                "with labelled: false"
            )
        self._masks = MaskTable(path) if options.labelled else None

    def _masks_of(self, expression: Expression) -> list[Any]:
        assert self._masks is not None, "asked for where there are labels"
        return _unions(expression, self._masks)


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
