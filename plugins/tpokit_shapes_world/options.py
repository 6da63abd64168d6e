"""What a recipe may set on the shapes world."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from tpokit.options import Options

KIND_NAMES = (
    *("colour", "shape", "count", "existence", "relation", "half", "cell", "beside"),
    *("extreme", "listing", "layout", "colour_map", "shape_map", "region", "two_regions"),
    *("motion", "mover", "order", "moment", "mask", "two_masks", "track", "follow"),
)
CLIP_KIND_NAMES = ("track", "follow")  # an image has no answer to them


class ShapesWorldOptions(Options):
    """Options of the data source ``shapes_world``.

    Attributes:
        split: ``train``, ``validation`` and ``test`` share no scene.
        scenes: Number of scenes (and so of samples) in it.
        seed: Of the world; another seed is another data set.
        kinds: Kind of question to its relative share of the turns; by default all questions that
            are answered in words alone.
        turns: Fewest and most turns of a conversation.
        frames: 1 for images, more for clips of that many frames at 8 frames a second.
        side: Width and height in pixels, even.
        objects: Fewest and most objects of a scene.
        radius: Smallest and largest radius, as fractions of the side.
        distractor_share: Chance that a further object has the colour or the shape of the first.
        interval: Fewest and most frames of a clip in which an object is visible; by default 2 to 5.
        from_start: Whether all objects of a clip are visible in its first frame, as those of
            tracking benchmarks are.
        folder: Where the files are written, relative to the recipe; by default the user's cache.
    """

    split: Literal["train", "validation", "test"] = "train"
    scenes: int = Field(default=16_000, ge=1)
    seed: int = Field(default=0, ge=0)
    kinds: dict[str, float] = Field(default_factory=dict)
    turns: tuple[int, int] = (1, 3)
    frames: int = Field(default=1, ge=1, le=256)
    side: int = Field(default=64, ge=16, le=1024, multiple_of=2)
    objects: tuple[int, int] = (2, 3)
    radius: tuple[float, float] = (0.14, 0.24)
    distractor_share: float = Field(default=0.3, ge=0.0, le=1.0)
    interval: tuple[int, int] | None = None
    from_start: bool = False
    folder: Path | None = None

    @field_validator("kinds")
    @classmethod
    def _known_kinds(cls, kinds: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(kinds) - set(KIND_NAMES))
        if unknown:
            raise ValueError(
                f"no such kind of question: {', '.join(unknown)}; there are {', '.join(KIND_NAMES)}"
            )
        if any(share < 0 for share in kinds.values()) or (kinds and not sum(kinds.values())):
            raise ValueError("shares must not be negative, and one must be positive")
        return kinds

    @model_validator(mode="after")
    def _ranges(self) -> ShapesWorldOptions:
        for name in ("turns", "objects", "radius"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is [{low}, {high}]; it must be [fewest, most], above 0")
        return self

    @model_validator(mode="after")
    def _clips(self) -> ShapesWorldOptions:
        if (
            self.interval is not None
            and not 0 < self.interval[0] <= self.interval[1] <= self.frames
        ):
            raise ValueError(
                f"interval is {list(self.interval)}; it must be [fewest, most] visible frames, "
                f"from 1 to the {self.frames} of 'frames'"
            )
        of_clips = [kind for kind in CLIP_KIND_NAMES if self.kinds.get(kind)]
        if self.frames == 1 and of_clips:
            raise ValueError(
                f"{', '.join(of_clips)} can only be asked about clips; 'frames' must be above 1"
            )
        return self
