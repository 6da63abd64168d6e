"""Masks of a batch of calls in training: images by themselves, videos with memory.

Legend: n calls, S side of SAM 2's images, m masks of each object (1 or 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tpokit_mask.clips import Clips
from tpokit_mask.following import tracking_of
from tpokit_mask.losses.terms import DecodedMasks
from tpokit_mask.options import MaskOptions
from tpokit_mask.sam2_port import FeatureMaps, Masks, Sam2, Tracking, track


class Group(NamedTuple):
    """Masks of some calls on some frames, of each as many.

    ``calls [g]`` which calls; ``frames``: which of their frames, one after the other;
    ``decoded`` with logits ``[g, frames, m, S / 4, S / 4]``.
    """

    calls: Tensor
    frames: slice
    decoded: DecodedMasks


def segment(
    sam2: Sam2, maps: FeatureMaps, clips: Clips, tokens: Tensor, options: MaskOptions
) -> tuple[Group, ...]:
    """Masks of n calls on all their frames.

    Args:
        sam2: The model.
        maps: Features of the frames of the batch.
        clips: Which of them belong to which call.
        tokens: ``[n, k, d]`` prompt tokens.
        options: Of the head.
    """
    stills, moving = clips.stills, clips.moving
    assert stills is not None and moving is not None, "there are frames"
    assert clips.still_frames is not None and clips.moving_frames is not None
    how = options.tracking
    found: list[tuple[Tensor, int, Masks]] = []
    # on a CPU what suits the encoder suits decoder and losses as well
    at_once = sam2.frames_at_once if sam2.device.type == "cpu" else max(1, len(stills))
    for calls, frames in zip(stills.split(at_once), clips.still_frames.split(at_once), strict=True):
        if len(calls):
            masks = sam2.segment(
                maps, tokens[calls], frames, three_masks=how.three_masks, append=how.append
            )
            found.append((calls, 0, masks.gated() if how.gated_loss else masks))
    if len(moving):
        tracking = tracking_of(how, for_losses=True)
        frames = track(sam2, maps, tokens[moving], clips.moving_frames, tracking)
        found += [(moving, number, masks) for number, masks in enumerate(frames)]
    elif options.sam2.trained == "everything":
        calls, frame, masks = found[0]
        nothing = _no_memory(sam2, maps, tokens)
        found[0] = calls, frame, masks._replace(scores=masks.scores + nothing)
    return _grouped(found)


def _no_memory(sam2: Sam2, maps: FeatureMaps, tokens: Tensor) -> Tensor:
    """0, by way of the memory, which a batch of images alone would leave without a gradient."""
    twice = torch.zeros(1, 2, dtype=torch.long, device=tokens.device)
    last = track(sam2, maps, tokens[:1].detach(), twice, Tracking())[-1]
    return last.scores.sum() * 0.0


def _grouped(found: Sequence[tuple[Tensor, int, Masks]]) -> tuple[Group, ...]:
    """Frames of the same calls with as many masks, side by side."""
    groups: dict[tuple[int, int], list[tuple[Tensor, int, Masks]]] = {}
    for calls, frame, masks in found:
        groups.setdefault((id(calls), masks.logits.shape[1]), []).append((calls, frame, masks))
    return tuple(
        Group(
            members[0][0],
            slice(members[0][1], members[-1][1] + 1),
            DecodedMasks(
                torch.stack([masks.logits for _, _, masks in members], 1),
                torch.stack([masks.ious for _, _, masks in members], 1),
                torch.stack([masks.scores for _, _, masks in members], 1),
            ),
        )
        for members in groups.values()
    )
