"""Features from a frozen dual encoder, each video encoded once and kept on disk."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from packaging.version import Version
from torch import Tensor

import tpokit
from tpokit.data.feature_cache import CacheKey, FeatureCache
from tpokit_temporal.features.cache import FORMAT, CachedClips
from tpokit_temporal.features.dual_encoder import DualEncoder
from tpokit_temporal.features.extractor import (
    FeatureExtractor,
    Features,
    Prepared,
    first_video,
    padded,
    unit,
)
from tpokit_temporal.features.options import EncoderFeatures


@dataclass(frozen=True)
class EncoderPrepared(Prepared):
    """One call, ready for the encoder.

    Attributes:
        media: Calls of one medium share its features.
        key: Under which its features are or will be kept; ``None`` without a cache.
        clips: ``[l, v]`` float32 as kept; ``None``: to be encoded from ``pixels``.
        pixels: uint8 ``[l * p, 3, h, w]``, p frames of each clip.
        tokens: Ids of the words of the query; empty if they are not the encoder's affair.
    """

    media: tpokit.Media
    key: CacheKey | None
    clips: Tensor | None
    pixels: Tensor | None
    tokens: tuple[int, ...]


class NewMedium(NamedTuple):
    """A medium whose clips are encoded in this step."""

    key: CacheKey | None
    clip_count: int
    clip_s: float


class EncoderBatch(NamedTuple):
    """The n calls of a batch, each medium once.

    Attributes:
        pixels: uint8 ``[f, 3, h, w]``, frames of the clips of all new media.
        new: The new media, in that order.
        kept: ``[c, v]``, clips of all media that were found in the cache.
        kept_counts: Clips of each of those.
        which: For each call its medium: new ones first, then kept ones.
        clip_s: ``[n]``.
        ids, word_mask: From `DualEncoder.padded_tokens`, or ``None``.
    """

    pixels: Tensor
    new: tuple[NewMedium, ...]
    kept: Tensor
    kept_counts: tuple[int, ...]
    which: tuple[int, ...]
    clip_s: Tensor
    ids: Tensor | None
    word_mask: Tensor | None


class EncoderExtractor(FeatureExtractor):
    """Runs a `DualEncoder` over the clips of videos and the words of queries.

    Clips are equal parts of the video, about ``clip_s`` long; where frames do not divide evenly
    among them, each clip takes those nearest to the middles of its own equal parts.
    """

    def __init__(self, options: EncoderFeatures, folder: Path) -> None:
        """Load the encoder; see `DualEncoder`."""
        self._options = options
        self.encoder = DualEncoder(options, folder)
        self.video_width = self.encoder.video_width
        self.text_width = self.encoder.text_width if options.words else None
        self.cache = (
            None
            if options.cache is False
            else FeatureCache(folder / options.cache.expanduser(), FORMAT)
        )
        self._maker = {} if self.cache is None else self._describe(self.cache)
        self._looked_up: tuple[tpokit.Media, CacheKey, CachedClips | None] | None = None
        self._last_view: tuple[weakref.ref[tpokit.View], Tensor] | None = None

    def context_need(self) -> tpokit.ContextNeed:
        """Frames at the rate that gives each clip its own; words of the LLM only if asked for."""
        per_clip = self.encoder.frames_per_clip
        need = tpokit.MediaNeed(
            rate=per_clip / self._options.clip_s, frames_max=per_clip * self._options.clips_max
        )
        return tpokit.ContextNeed(media=need, question=not self._options.words)

    def wants_frames(self, media: tpokit.Media) -> bool:
        """False if the cache has this medium; it is then read at once and held for `prepare`."""
        try:
            return self._look_up(media)[1] is None
        except OSError:
            return True  # whoever decodes it says what is wrong

    def prepare(self, seen: tpokit.Seen) -> EncoderPrepared:
        """Find or preprocess the clips of one call, and tokenise its query; see
        `FeatureExtractor`.
        """
        media, info = first_video(seen)
        try:
            key, found = self._look_up(media)
        except OSError as cause:
            raise tpokit.DataError(f"{seen.where}: {media.path} cannot be read: {cause}") from cause
        tokens = self._tokens(seen)
        if found is not None:
            return EncoderPrepared(
                len(found.clips), found.clip_s, media, key, found.clips, None, tokens
            )
        if not seen.views:
            raise tpokit.DataError(
                f"{seen.where}: the frames of {media.path} were not decoded, and its features are "
                "not in the cache"
            )
        pixels = self._pixels(seen.views[0])
        clip_count = len(pixels) // self.encoder.frames_per_clip
        clip_s = info.duration_s / clip_count
        return EncoderPrepared(clip_count, clip_s, media, key, None, pixels, tokens)

    def collate(self, prepared: Sequence[EncoderPrepared]) -> EncoderBatch:
        """Put each medium of the calls in once; see `FeatureExtractor`."""
        media = {call.media: call for call in prepared}
        new = [call for call in media.values() if call.pixels is not None]
        kept = [call for call in media.values() if call.pixels is None]
        order = {call.media: index for index, call in enumerate([*new, *kept])}
        pixels = [call.pixels for call in new if call.pixels is not None]
        clips = [call.clips for call in kept if call.clips is not None]
        ids = word_mask = None
        if self.text_width is not None:
            ids, word_mask = self.encoder.padded_tokens([call.tokens for call in prepared])
        return EncoderBatch(
            pixels=torch.cat(pixels) if pixels else torch.zeros(0, 3, 1, 1, dtype=torch.uint8),
            new=tuple(NewMedium(call.key, call.clip_count, call.clip_s) for call in new),
            kept=torch.cat(clips) if clips else torch.zeros(0, self.video_width),
            kept_counts=tuple(call.clip_count for call in kept),
            which=tuple(order[call.media] for call in prepared),
            clip_s=torch.tensor([call.clip_s for call in prepared], dtype=torch.float32),
            ids=ids,
            word_mask=word_mask,
        )

    def encode(self, collated: EncoderBatch, device: torch.device) -> Features:
        """Run the encoder over what is new and keep it; see `FeatureExtractor`."""
        encoded = self.encoder.encode_clips(collated.pixels.to(device, non_blocking=True))
        media = list(encoded.split([medium.clip_count for medium in collated.new]))
        if self.cache is not None:
            for medium, clips in zip(collated.new, media, strict=True):
                if medium.key is not None:
                    CachedClips(clips, medium.clip_s).keep(self.cache, medium.key)
        media += collated.kept.to(device, non_blocking=True).split(list(collated.kept_counts))
        clips, clip_mask = padded([media[index] for index in collated.which], self.video_width)
        features = Features(
            self._scaled(clips).to(device),
            clip_mask.to(device),
            collated.clip_s.to(device, non_blocking=True),
        )
        if collated.ids is None or collated.word_mask is None:
            return features
        ids = collated.ids.to(device, non_blocking=True)
        words, word_mask = self.encoder.encode_words(
            ids, collated.word_mask.to(device, non_blocking=True)
        )
        return features._replace(words=self._scaled(words), word_mask=word_mask)

    def _describe(self, cache: FeatureCache) -> dict[str, str | int | float | None]:
        """Everything besides the medium that changes the numbers of its clips.

        Scaling to length 1 comes after the cache, and how many frames are encoded at once changes
        rounding only. The model is named by its content, so that moving its folder loses nothing.
        """
        options = self._options
        return {
            "model": cache.hashes.of_all(self.encoder.files),
            "transformers": ".".join(map(str, Version(transformers.__version__).release[:2])),
            "clip_s": options.clip_s,
            "frames_per_clip": self.encoder.frames_per_clip,
            "clips_max": options.clips_max,
            "dtype": options.dtype,
        }

    def _look_up(self, media: tpokit.Media) -> tuple[CacheKey | None, CachedClips | None]:
        """Key and kept features; those found for the last medium are held, so that frames which
        were not decoded for their sake are not missed.
        """
        if self.cache is None:
            return None, None
        key = self.cache.key(media, self._maker)
        held = self._looked_up
        if held is not None and held[:2] == (media, key) and held[2] is not None:
            return key, held[2]
        found = CachedClips.read(self.cache, key)
        self._looked_up = media, key, found
        return key, found

    def _pixels(self, view: tpokit.View) -> Tensor:
        """Frames of the clips, resized; worked out once for all calls of a sample."""
        last = self._last_view
        if last is not None and last[0]() is view:
            return last[1]
        chosen = clip_frames(len(view.frames), self.encoder.frames_per_clip)
        pixels = self.encoder.pixels(view.frames)[torch.from_numpy(chosen)]
        self._last_view = weakref.ref(view), pixels
        return pixels

    def _tokens(self, seen: tpokit.Seen) -> tuple[int, ...]:
        if self.text_width is None:
            return ()
        if not seen.question.strip():
            raise tpokit.DataError(
                f"{seen.where}: the question is empty; it must say what to look for"
            )
        return tuple(self.encoder.tokens(seen.question))

    def _scaled(self, features: Tensor) -> Tensor:
        return unit(features) if self._options.normalise else features

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_looked_up": None, "_last_view": None}


def clip_frames(frames: int, per_clip: int) -> np.ndarray:
    """Which of a video's evenly spread frames each clip takes: ``[l * per_clip]``.

    There are as many clips as the frames make, rounded, and at least one.
    """
    wanted = max(1, int(frames / per_clip + 0.5)) * per_clip
    return ((np.arange(wanted) + 0.5) * (frames / wanted)).astype(np.int64)
