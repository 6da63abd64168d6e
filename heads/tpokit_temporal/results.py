"""What the temporal head finds in a video."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpokit.types import MediaInfo
    from tpokit_temporal.annotations import TemporalTarget

_LEVELS = "▁▂▃▄▅▆▇█"
_SHOWN_MOMENTS = 3
_SHOWN_COLUMNS = 60


@dataclass(frozen=True)
class Moment:
    """A part of a video.

    Attributes:
        start_s, end_s: Where it begins and ends, in seconds from the start of the video.
        score: Confidence in [0, 1]; 1 for a moment that is known to be right.
    """

    start_s: float
    end_s: float
    score: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain data: seconds with two decimals, the score with four."""
        return {
            "start_s": round(self.start_s, 2),
            "end_s": round(self.end_s, 2),
            "score": round(self.score, 4),
        }

    def __str__(self) -> str:
        return f"{self.start_s:.2f}-{self.end_s:.2f} s ({self.score:.2f})"


@dataclass(frozen=True)
class Moments:
    """Everything that one call of the temporal head finds.

    Attributes:
        moments: Best first; may overlap.
        saliency: How well each clip of the video fits, in the order of the clips. Of a prediction
            any real numbers, of which only the order means something; of an expected result
            fractions in [0, 1].
        clip_s: Length of a clip in seconds; 0 without ``saliency``.
    """

    moments: tuple[Moment, ...]
    saliency: tuple[float, ...] = ()
    clip_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data; saliency with four decimals."""
        return {
            "moments": [moment.to_json() for moment in self.moments],
            "saliency": [round(value, 4) for value in self.saliency],
            "clip_s": self.clip_s,
        }

    def __str__(self) -> str:
        """The best three moments, and saliency as a curve of at most 60 characters."""
        best = ", ".join(str(moment) for moment in self.moments[:_SHOWN_MOMENTS])
        more = len(self.moments) - _SHOWN_MOMENTS
        text = (best or "no moment") + (f" and {more} more" if more > 0 else "")
        return f"{text}  {curve(self.saliency)}" if self.saliency else text


def expected_moments(target: TemporalTarget, media: MediaInfo) -> Moments:
    """What would be right in a video, from a target."""
    duration_s = media.duration_s
    return Moments(
        moments=tuple(
            Moment((centre - width / 2) * duration_s, (centre + width / 2) * duration_s)
            for centre, width in target.moments
        ),
        saliency=tuple(grade / target.saliency_max for grade in target.saliency),
        clip_s=duration_s / len(target.saliency),
    )


def curve(values: Sequence[float], columns: int = _SHOWN_COLUMNS) -> str:
    """A line of block characters, lowest value to highest; of more values than columns, neighbours
    share a column, which shows the highest of them.
    """
    count = min(len(values), columns)
    cuts = [index * len(values) // max(count, 1) for index in range(count + 1)]
    tops = [max(values[first:last]) for first, last in itertools.pairwise(cuts)]
    finite = [value for value in tops if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_LEVELS) - 1) / (high - low) if high > low else 0.0
    shown = [value if math.isfinite(value) else low for value in tops]
    return "".join(_LEVELS[round((value - low) * scale)] for value in shown)
