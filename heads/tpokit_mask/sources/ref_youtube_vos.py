"""Ref-YouTube-VOS, and Ref-DAVIS17 in the same layout.

``meta_expressions/{split}/meta_expressions.json``, ``{split}/JPEGImages/{video}/{frame}.jpg``,
``{split}/Annotations/{video}/{frame}.png`` whose pixels are numbers of objects.

Source: Seo et al., ECCV 2020.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tpokit_mask.sources.expression_source import ExpressionSource
from tpokit_mask.sources.expressions import Expression
from tpokit_mask.sources.options import RefYoutubeVosOptions


class RefYoutubeVosSource(ExpressionSource):
    """One sample for each expression; its id is ``video/expression``."""

    Options = RefYoutubeVosOptions

    def __init__(self, options: RefYoutubeVosOptions, folder: Path) -> None:
        """Read the expressions; see `DataSource`."""
        super().__init__(options, folder, folder / options.annotations)

    def _masks_of(self, expression: Expression) -> list[Any]:
        values = list(expression.numbers("obj_id"))
        masks = self._folder / "Annotations" / expression.video
        return [{"png": str(masks / f"{name}.png"), "values": values} for name in expression.frames]
