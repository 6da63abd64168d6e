"""``mask_dict.json`` of MeViS, found in place: the file is larger than most memories should hold.

``{"10": [{"size": [480, 640], "counts": "..."}, null], "12": [...]}``: for each annotation one RLE
or null for each frame of its video.
"""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path
from typing import Any

from tpokit.data.lines import existing_file
from tpokit.errors import DataError

# No such text can stand inside an RLE: compressed counts hold no quotation mark.
_KEY = re.compile(rb'"(\d+)"\s*:\s*\[')


class MaskTable:
    """Run lengths by the number of their annotation.

    The file is gone through once, for the places of its entries; of these two numbers each are
    kept. An entry is parsed when it is read.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        """Find the entries.

        Raises:
            DataError: There is no such file, or it has none.
        """
        self.path = path
        if existing_file(path).stat().st_size == 0:
            raise DataError(f"{path}: the file is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            found = [(int(key[1]), key.start(), key.end() - 1) for key in _KEY.finditer(text)]
            size = len(text)
        if not found:
            raise DataError(
                f'{path}: expected an object such as {{"10": [{{"size": ..., "counts": ...}}, '
                "null]}"
            )
        ends = [start for _, start, _ in found[1:]] + [size]
        self._places = {
            number: (first, last) for (number, _, first), last in zip(found, ends, strict=True)
        }

    def read(self, number: int, where: str) -> list[Any]:
        """The run lengths of an annotation, ``None`` where the object is not visible.

        Args:
            number: Of the annotation.
            where: For messages.

        Raises:
            DataError: There is no such annotation, or it is no JSON.
        """
        if number not in self._places:
            raise DataError(f"{where}: anno_id {number} is not in {self.path}")
        first, last = self._places[number]
        with self.path.open("rb") as file:
            file.seek(first)
            text = file.read(last - first)
        try:
            found, _ = json.JSONDecoder().raw_decode(text.decode("utf-8"))
        except ValueError as cause:  # bad JSON and bad UTF-8
            raise DataError(f"{self.path}, {number}: this is not JSON ({cause})") from cause
        return list(found)
