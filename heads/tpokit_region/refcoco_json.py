"""Referring expressions as one JSON object each, lines or one list.

Two spellings are read: that of InternVL (``image``, ``sent``, ``bbox``, ``width``, ``height``) and
that of Shikra (``img_path``, ``expression``, ``bbox``, ``height``, ``width``). Boxes there are x0,
y0, x1, y1 in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tpokit.data.boxes import read_box_px
from tpokit.data.lines import json_entries, media_folder
from tpokit.errors import DataError
from tpokit.interfaces import DataSource
from tpokit.types import Sample
from tpokit_region.expressions import Expression, sample_of
from tpokit_region.options import RefcocoJsonOptions

_SPELLINGS = (("image", "sent"), ("img_path", "expression"))


class RefcocoJsonSource(DataSource):
    """Samples in the order of the file. Lines are read when asked for, a list is held in memory."""

    Options = RefcocoJsonOptions

    def __init__(self, options: RefcocoJsonOptions, folder: Path) -> None:
        """Open the file and check its first entry; see `DataSource`."""
        self._options = options
        self._entries = json_entries(folder / options.annotations)
        self._root = media_folder(folder, options.media_root, self._entries.path)
        self._expression(0)

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, index: int, random: np.random.Generator) -> Sample:
        """See `DataSource.read`."""
        options = self._options
        return sample_of(
            self._expression(index), self._root, options.questions, options.answers, random
        )

    def _expression(self, index: int) -> Expression:
        entry, where = self._entries.read(index), self._entries.place(index)
        image, text = _image_and_text(entry, where)
        if "bbox" not in entry:
            raise DataError(f"{where}: 'bbox' is missing; it holds x0, y0, x1, y1 in pixels")
        box = read_box_px(entry["bbox"], entry.get("width"), entry.get("height"), where)
        return Expression(f"entry-{index + 1}", text.strip(), image, box)


def _image_and_text(entry: Mapping[str, Any], where: str) -> tuple[str, str]:
    for image_key, text_key in _SPELLINGS:
        if image_key in entry and text_key in entry:
            image, text = entry[image_key], entry[text_key]
            if not isinstance(image, str) or not isinstance(text, str) or not text.strip():
                raise DataError(f"{where}: {image_key!r} and {text_key!r} must be texts")
            return image, text
    raise DataError(
        f"{where}: needs 'image' and 'sent' (InternVL) or 'img_path' and 'expression' (Shikra), "
        f"found {', '.join(sorted(entry)) or 'nothing'}"
    )
