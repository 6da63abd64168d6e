"""Features of a frozen image encoder, on disk, so that a frame is encoded once.

They are kept in float16, and used as such from the first time on, so that a run does not change
when it finds them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tpokit.data.feature_cache import CachedFeatures, CacheKey, FeatureCache
from tpokit.errors import DataError
from tpokit.types import Media, MediaNeed, Seen
from tpokit_mask.clips import NewClip, PreparedMedium
from tpokit_mask.options import Sam2Options
from tpokit_mask.sam2_port import FeatureMaps
from tpokit_mask.trained import checkpoint_file

_FORMAT = 1
_TIMES = "times_s"
_HELD = 4  # media of one sample whose features are held at once; the first of them is looked at


class KeptFeatures:
    """Looks up and keeps the features of media; without a folder for them it does neither."""

    def __init__(self, options: Sam2Options, folder: Path, need: MediaNeed) -> None:
        """Say what the features follow from.

        Args:
            options: The encoder, and where to keep what it gives.
            folder: Relative paths start there.
            need: Which frames of a video.
        """
        self._cache: FeatureCache | None = None
        self._held: dict[Media, CachedFeatures] = {}
        checkpoint = checkpoint_file(options.checkpoint, folder)
        if options.cache is False or checkpoint is None:
            return
        self._cache = FeatureCache(folder / options.cache.expanduser(), _FORMAT)
        # a decoder that learns brings maps to its own channels itself, so they are kept before that
        self._maker: dict[str, str | int | float | None] = {
            "network": f"sam2 {version('sam2')} image encoder",
            "weights": self._cache.hashes.of(checkpoint),
            "size": str(options.size),
            "image_size": options.image_size,
            "maps": "narrow" if options.trained == "nothing" else "wide",
            "frames": need.frames,
        }

    def have(self, media: Media) -> bool:
        """Whether there are features; they are read at once, and held for `prepared`."""
        if self._cache is None:
            return False
        try:
            found = self._cache.get(self._cache.key(media, self._maker))
        except OSError:
            return False  # whoever decodes it says what is wrong
        if found is None:
            return False
        while len(self._held) >= _HELD:
            del self._held[next(iter(self._held))]
        self._held[media] = found
        return True

    def forget(self) -> None:
        """Let go of what is held: what comes next may be inference, where nothing is looked up."""
        self._held.clear()

    def prepared(self, seen: Seen) -> PreparedMedium:
        """The first medium of a call with its frames or features, if there are any.

        Raises:
            DataError: It cannot be read.
        """
        media, info = seen.media[0], seen.info[0]
        if (found := self._held.get(media)) is not None:
            maps = FeatureMaps(*(found.tensors[name] for name in FeatureMaps._fields))
            return PreparedMedium(media, info, tuple(json.loads(found.facts[_TIMES])), kept=maps)
        view = next((view for view in seen.views if view.path == media.path), None)
        if view is None:
            return PreparedMedium(media, info)
        key: CacheKey | None = None
        if self._cache is not None:
            try:
                key = self._cache.key(media, self._maker)
            except OSError as cause:
                raise DataError(f"{seen.where}: {media.path} cannot be read: {cause}") from cause
        return PreparedMedium(media, info, view.times_s, view=view, key=key)

    def keep(self, new: Sequence[NewClip], maps: FeatureMaps) -> FeatureMaps:
        """Put features of new frames on the disk; those of a stage in which a decoder that learns
        elsewhere is frozen are not kept.

        Returns:
            The features, as they will be found the next time.
        """
        if self._cache is None:
            return maps
        narrow = maps.fine.shape[1] < maps.coarse.shape[1]
        maps = FeatureMaps(*(level.half() for level in maps))
        if narrow == (self._maker["maps"] == "narrow"):
            for clip in new:
                frames = slice(clip.first, clip.first + len(clip.times_s))
                tensors = {name: level[frames] for name, level in maps._asdict().items()}
                self._cache.put(clip.key, tensors, {_TIMES: json.dumps(clip.times_s)})
        return maps
