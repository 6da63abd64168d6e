"""What a recipe may set on the source ``jsonl``; does not import torch."""

from __future__ import annotations

from pathlib import Path

from tpokit.options import Options


class JsonlOptions(Options):
    """Options of the source ``jsonl``.

    Attributes:
        annotations: A file with one JSON object a line.
        media_root: Folder that the paths of media start from; default that of ``annotations``.
    """

    annotations: Path
    media_root: Path | None = None
