"""Features of a frozen image encoder, on disk, so that a frame is encoded once.

They are kept in float16, and used as such from the first time on, so that a run does not change
when it finds them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path

import torch

from tpokit.data.feature_cache import CachedFeatures, CacheKey, FeatureCache
from tpokit.errors import DataError
from tpokit.types import Media, MediaNeed, Seen
from tpokit_mask.clips import NewClip, PreparedMedium
from tpokit_mask.options import Sam2Options
from tpokit_mask.sam2_port import FeatureMaps
from tpokit_mask.trained import checkpoint_file

_FORMAT = 1
_TIMES = "times_s"


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
        self._held: tuple[Media, CachedFeatures] | None = None
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
        found = self._found(media)
        if found is not None:
            self._held = media, found
        return found is not None

    def forget(self) -> None:
        """Let go of what is held: what comes next may be inference, where nothing is looked up."""
        self._held = None

    def prepared(self, seen: Seen, learning: bool) -> PreparedMedium:
        """The first medium of a call with its frames or features, if there are any.

        Args:
            seen: The call.
            learning: False: in inference, where no features are looked for.

        Raises:
            DataError: It cannot be read.
        """
        media, info = seen.media[0], seen.info[0]
        found = self._held[1] if self._held is not None and self._held[0] == media else None
        if found is None and learning:  # of a sample with several media the last one is held
            found = self._found(media)
        if found is not None:
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
        """Put features of new frames on the disk.

        Returns:
            The features, as they will be found the next time.
        """
        if self._cache is None:
            return maps
        halves = {name: level.half() for name, level in maps._asdict().items()}
        for clip in new:
            frames = slice(clip.first, clip.first + len(clip.times_s))
            tensors = {name: level[frames] for name, level in halves.items()}
            self._cache.put(clip.key, tensors, {_TIMES: json.dumps(clip.times_s)})
        return FeatureMaps(*(level.float() for level in halves.values()))

    def as_kept(self, device: torch.device) -> AbstractContextManager[object]:
        """In which features that are kept are worked out: without autocast, so that they are the
        same in every run.
        """
        return nullcontext() if self._cache is None else torch.autocast(device.type, enabled=False)

    def _found(self, media: Media) -> CachedFeatures | None:
        if self._cache is None:
            return None
        try:
            return self._cache.get(self._cache.key(media, self._maker))
        except OSError:
            return None  # whoever decodes it says what is wrong
