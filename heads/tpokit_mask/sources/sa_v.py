"""SA-V: videos with masks of objects that have no name, 6 a second.

``sav_000001.mp4`` with ``sav_000001_manual.json`` and ``sav_000001_auto.json`` beside it.
``masklet[k][j]`` is the mask of the j-th object on the k-th annotated frame, which is frame 4k of
a video with 24 frames a second.

Source: Ravi et al., arXiv 2408.00714.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tpokit.data.lines import json_document
from tpokit.errors import DataError
from tpokit.types import Media
from tpokit_mask.sources.options import SavOptions
from tpokit_mask.sources.tracks import Track, TrackSource

_RATE = 24.0
_STRIDE = 4
_TAIL = 2**16  # bytes; the numbers of objects stand behind the masks
_IDS = re.compile(rb'"masklet_id"\s*:\s*\[([^\]]*)\]')


class SavSource(TrackSource):
    """One sample for each object; its id is ``video/object``."""

    Options = SavOptions

    def __init__(self, options: SavOptions, folder: Path) -> None:
        """Find the files and count their objects, which stand at their end; see `DataSource`."""
        super().__init__(options, folder)
        root = (folder / options.folder).absolute()
        self._ending = f"_{options.masklets}.json"
        self._files = sorted(root.rglob(f"*{self._ending}"))
        if not self._files:
            raise DataError(f"{root}: there is no file *{self._ending} in it or below")
        self._ends = np.cumsum([_count_objects(path) for path in self._files])
        if not self._ends[-1]:
            raise DataError(f"{root}: no file *{self._ending} in it or below has an object")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _track(self, index: int) -> Track:
        place = int(np.searchsorted(self._ends, index, side="right"))
        path = self._files[place]
        number = index - int(self._ends[place - 1] if place else 0)
        ids, rows = _objects(json_document(path), path)
        video = path.name.removesuffix(self._ending)
        where = f"{path}, object {ids[number]}"
        return Track(
            id=f"{video}/{ids[number]}",
            media=Media("video", path.with_name(f"{video}.mp4")),
            frame_s=1 / _RATE,
            frames=tuple(
                {"time_s": row * _STRIDE / _RATE, "mask": {"rle": masks[number]}}
                for row, masks in enumerate(rows)
            ),
            where=where,
        )


def _count_objects(path: Path) -> int:
    """From the end of the file if it stands there, as in all that are published."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - _TAIL, 0))
        found = _IDS.search(file.read())
    if found:
        return len(found[1].split(b",")) if found[1].strip() else 0
    ids, _ = _objects(json_document(path), path)
    return len(ids)


def _objects(found: Any, path: Path) -> tuple[list[Any], list[list[Any]]]:
    """Ids of the objects, and for each annotated frame a mask of each."""
    fields = found if isinstance(found, Mapping) else {}
    ids, rows = fields.get("masklet_id"), fields.get("masklet")
    if not isinstance(ids, list) or not isinstance(rows, list):
        raise DataError(f"{path}: needs 'masklet_id' and 'masklet', both lists")
    for row, masks in enumerate(rows):
        if not isinstance(masks, list) or len(masks) != len(ids):
            raise DataError(
                f"{path}: annotated frame {row + 1} needs a mask for each of the {len(ids)} objects"
            )
    return ids, rows
