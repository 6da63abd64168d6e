"""The media of calls on their way to SAM 2: frames that were read, or features that were kept.

Legend: n calls, f frames of all media of a batch, t most frames of a call, S side of the images, v
media.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tpokit.data.feature_cache import CacheKey
from tpokit.types import Media, MediaInfo, View
from tpokit_mask.sam2_port import FeatureMaps, resize_frames


@dataclass(frozen=True)
class PreparedMedium:
    """What a data worker knows of the medium of a call.

    Attributes:
        media: What it is.
        info: Its size.
        times_s: When each of the frames that are trained on is shown; empty in inference, where
            the head goes through the medium itself.
        view: These frames; ``None`` if features were kept or none are looked at.
        kept: Their features; ``None`` unless they were kept.
        key: Under which to keep them; ``None`` if they are not to be kept, or are.
    """

    media: Media
    info: MediaInfo
    times_s: tuple[float, ...] = ()
    view: View | None = None
    kept: FeatureMaps | None = None
    key: CacheKey | None = None


class NewClip(NamedTuple):
    """Frames of a medium whose features are to be kept: where they are in the batch."""

    key: CacheKey
    first: int
    times_s: tuple[float, ...]


class Clips(NamedTuple):
    """Frames of a batch, each once: new ones first, then those whose features were kept.

    Attributes:
        media: Of each call, for inference; empty in training.
        images: uint8 ``[f, 3, S, S]``.
        kept: Features of further frames; ``None`` if there are none.
        stills: ``[n1]`` which calls have one frame.
        still_frames: ``[n1]`` which one.
        moving: ``[n2]`` which calls have several.
        moving_frames: ``[n2, t]`` which ones; a shorter clip repeats its last one.
        new: Frames to keep the features of.
    """

    media: tuple[PreparedMedium, ...] = ()
    images: Tensor | None = None
    kept: FeatureMaps | None = None
    stills: Tensor | None = None
    still_frames: Tensor | None = None
    moving: Tensor | None = None
    moving_frames: Tensor | None = None
    new: tuple[NewClip, ...] = ()


def collate_clips(prepared: Sequence[PreparedMedium], side: int) -> Clips:
    """Frames of n calls; calls about one medium share theirs.

    Args:
        prepared: Of the calls.
        side: S.

    Returns:
        In inference (no frames were read) only ``media``, as without calls.
    """
    if not prepared or not all(call.view or call.kept for call in prepared):
        return Clips(media=tuple(prepared))
    distinct = {_identity(call): call for call in prepared}
    ordered = sorted(distinct.values(), key=lambda call: call.kept is not None)
    firsts, count = {}, 0
    for call in ordered:
        firsts[_identity(call)] = count
        count += len(call.times_s)
    images = [
        resize_frames(torch.from_numpy(call.view.frames), side) for call in ordered if call.view
    ]
    kept = [call.kept for call in ordered if call.kept]
    together = None
    if kept:
        with torch.autocast("cpu", enabled=False):  # which refuses float16
            together = FeatureMaps(*map(torch.cat, zip(*kept, strict=True)))
    new = [NewClip(call.key, firsts[_identity(call)], call.times_s) for call in ordered if call.key]
    stills = [place for place, call in enumerate(prepared) if len(call.times_s) == 1]
    moving = [place for place, call in enumerate(prepared) if len(call.times_s) > 1]
    longest = max((len(prepared[place].times_s) for place in moving), default=0)
    rows = [
        [
            firsts[_identity(prepared[place])] + min(frame, len(prepared[place].times_s) - 1)
            for frame in range(longest)
        ]
        for place in moving
    ]
    return Clips(
        images=torch.cat(images) if images else torch.zeros(0, 3, side, side, dtype=torch.uint8),
        kept=together,
        stills=torch.tensor(stills, dtype=torch.long),
        still_frames=torch.tensor(
            [firsts[_identity(prepared[place])] for place in stills], dtype=torch.long
        ),
        moving=torch.tensor(moving, dtype=torch.long),
        moving_frames=torch.tensor(rows, dtype=torch.long).reshape(len(moving), longest),
        new=tuple(new),
    )


def _identity(call: PreparedMedium) -> tuple[Media, tuple[float, ...]]:
    return call.media, call.times_s
