"""Clips of videos in a cache of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from tpokit.data.feature_cache import CacheKey, FeatureCache

FORMAT = 1
"""Raised whenever the same options give other numbers than before."""


@dataclass(frozen=True)
class CachedClips:
    """Features of one video.

    Attributes:
        clips: ``[l, v]`` float32.
        clip_s: Length of a clip in seconds.
    """

    clips: Tensor
    clip_s: float

    @classmethod
    def read(cls, cache: FeatureCache, key: CacheKey) -> Self | None:
        """What was kept, or ``None``."""
        found = cache.get(key)
        if found is None:
            return None
        return cls(found.tensors["clips"], float(found.facts["clip_s"]))

    def keep(self, cache: FeatureCache, key: CacheKey) -> None:
        """Keep them, as float32; never fails."""
        cache.put(key, {"clips": self.clips.float()}, {"clip_s": repr(self.clip_s)})
