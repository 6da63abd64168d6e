"""Charades-STA: the published text file, or CG-DETR's copy of it as JSON lines.

A line of the text file is ``AB12C 24.3 30.4##a person opens a door.``; lengths of videos are in
Charades' own tables (``Charades_v1_train.csv``). Some moments there end after their video or
before they start.

Source: Gao et al., ICCV 2017 (jiyanggao/TALL).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpokit.data.lines import JsonLines, TextLines, existing_file
from tpokit.errors import DataError
from tpokit_temporal.sources.moment_lines import read_line
from tpokit_temporal.sources.options import MomentOptions
from tpokit_temporal.sources.queries import Query
from tpokit_temporal.sources.source import MomentSource

_CLIP_S = 1.0  # of the published features; the set has no ratings of clips


class CharadesSource(MomentSource):
    """Lines are read when they are asked for."""

    Options = MomentOptions

    def _open(self, path: Path) -> JsonLines | TextLines:
        with existing_file(path).open("rb") as file:
            start = file.read(1024).lstrip()
        return JsonLines(path) if start[:1] == b"{" else TextLines(path)

    def _read(self, entry: str | Mapping[str, Any], index: int) -> Query:
        where, name = self._entries.place(index), f"entry-{index + 1}"
        if isinstance(entry, str):
            return _read_text_line(entry, name, where)
        return read_line(entry, name, _CLIP_S, where)


def _read_text_line(line: str, name: str, where: str) -> Query:
    head, mark, sentence = line.partition("##")  # once: a sentence may hold the mark
    try:
        video, start, end = head.split()
        moment_s = float(start), float(end)
    except ValueError as cause:
        raise DataError(f"{where}: expected 'VIDEO START END##SENTENCE', found {line!r}") from cause
    if not mark or not all(map(math.isfinite, moment_s)):
        raise DataError(f"{where}: expected 'VIDEO START END##SENTENCE', found {line!r}")
    return Query(id=name, text=sentence.strip(), video=video, origin=video, moments_s=(moment_s,))
