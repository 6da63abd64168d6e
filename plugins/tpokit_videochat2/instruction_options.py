"""What a recipe may set on the source ``videochat2_it``; does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from tpokit.options import Options


class InstructionOptions(Options):
    """Options of the source ``videochat2_it``.

    Attributes:
        annotations: A file with one JSON list.
        media_root: Folder that the paths of media start from; default that of ``annotations``.
        kind: What the entries are about; default: whatever each entry names.
        rate: Frames a second of videos that are folders of frames.
        shuffle: Whether the questions of an entry come in another order in each epoch, as in the
            training of VideoChat2.
        instruction: Whether the instruction of an entry is kept, as a turn of the system.
        turns_max: Most questions of an entry that are taken, after shuffling; default all.
    """

    annotations: Path
    media_root: Path | None = None
    kind: Literal["image", "video"] | None = None
    rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    shuffle: bool = True
    instruction: Literal["keep", "drop"] = "keep"
    turns_max: int | None = Field(default=None, ge=1)
