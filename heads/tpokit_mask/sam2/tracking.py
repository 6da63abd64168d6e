"""SAM 2 through a video, from prompt tokens: all frames at once for training, or a stream.

Source: facebookresearch/sam2, sam2/modeling/sam2_base.py: track_step. Its parts are called one by
one, because its tracking step takes clicks only. How we differ:

- A memory is made when the next frame comes, so the last frame of a clip costs none.
- Memories that no later frame looks at are dropped, so a video of any length takes as much room.
- How long a video is said to be is the same in training and inference by default, see
  `Tracking.said_frames`; there it is the number of frames that happen to be given.

Legend of all shapes: as in `tpokit_mask.sam2.outputs`; n prompt tokens of each object, t frames of
a clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tpokit.errors import UsageError
from tpokit_mask.resizing import resized
from tpokit_mask.sam2.outputs import FeatureMaps, Masks
from tpokit_mask.sam2.parts import Sam2


@dataclass(frozen=True)
class Tracking:
    """How objects are tracked; a model must be used with what it was trained with.

    Attributes:
        prompted: Frames on which the tokens are given, the first being 0: tracking begins there. A
            prompted frame is looked at without memory, and remembered for good.
        append: On prompted frames the tokens follow SAM 2's two "not a point" tokens (as in Sa2VA)
            instead of standing alone (as in TPO).
        three_masks: Three masks on prompted frames, of which the predicted IoU chooses (as in
            Sa2VA), instead of one (as in TPO). Other frames always have three.
        gated: Masks of objects that are not visible, by the score, come as -1024. False for losses
            on masks while the score has yet to be learnt; the memory is gated in any case.
        said_frames: How many frames the memory is told that the video has; it divides the times of
            object pointers by ``min(said_frames, 16) - 1``; a longer one counts as long as it is so
            far. ``None``: 16 or more, however many there are. sam2 itself says how many there are:
            8 in its training, mostly more than 16 later.
        half_memory: Keep spatial memories in bfloat16, as sam2's video predictor does, at half the
            room; for inference.
    """

    prompted: tuple[int, ...] = (0,)
    append: bool = False
    three_masks: bool = False
    gated: bool = True
    said_frames: int | None = None
    half_memory: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be tracked.

        Raises:
            UsageError: Prompted frames do not begin with 0, or no frames are said to be there.
        """
        if not self.prompted or min(self.prompted) != 0:
            raise UsageError(
                f"prompted frames must begin with 0, where tracking begins, not {self.prompted}"
            )
        if self.said_frames is not None and self.said_frames < 2:
            raise UsageError(f"said_frames must be at least 2, not {self.said_frames}")


class Memory(NamedTuple):
    """What is remembered of a frame.

    ``spatial [b, c, S / 16, S / 16]`` with c channels of memories; ``pointer [b, d]`` of each
    object.
    """

    spatial: Tensor
    pointer: Tensor


class _Pending(NamedTuple):
    """A frame whose memory has not been made: its features, gated masks, and pointers."""

    coarse: Tensor
    masks: Masks
    pointer: Tensor
    prompted: bool


class Tracker:
    """Follows b objects, frame by frame.

    Attributes:
        frame: Number of the next frame.
    """

    def __init__(self, sam2: Sam2, tokens: Tensor, tracking: Tracking) -> None:
        """Begin before the first frame.

        Args:
            sam2: In the mode in which it is to be used.
            tokens: ``[b, n, d]`` of each object.
            tracking: How.
        """
        self.frame = 0
        self._sam2, self._model, self._tracking = sam2, sam2.model, tracking
        self._prompt = sam2.appended(tokens) if tracking.append else tokens
        self._no_prompt = sam2.no_point_tokens(len(tokens))
        self._bank: dict[str, dict[int, dict[str, Any]]] = {
            "cond_frame_outputs": {},
            "non_cond_frame_outputs": {},
        }
        self._positions: list[Tensor] = []  # of cells in a memory; the same for all
        self._pending: _Pending | None = None

    def step(self, seen: FeatureMaps) -> Masks:
        """Masks on the next frame.

        Args:
            seen: Narrowed maps of the frame of each object, ``[b, ..]``.
        """
        self.remember()
        prompted = self.frame in self._tracking.prompted
        anything = len(self._prompt) > 0  # sam2's memory cannot be of no objects
        masks = self._sam2.decode(
            self._with_memory(seen.coarse, prompted) if anything else seen.coarse,
            seen,
            self._prompt if prompted else self._no_prompt,
            self._tracking.three_masks or not prompted,
        )
        gated = masks.gated()
        if anything:
            self._pending = _Pending(seen.coarse, gated, self._pointer(masks), prompted)
        self.frame += 1
        return gated if self._tracking.gated else masks

    def remember(self) -> Memory | None:
        """Make the memory of the last frame, which `step` does for the frame before it.

        Returns:
            It; ``None`` if there is no frame, or it has been made.
        """
        if self._pending is None:
            return None
        coarse, masks, pointer, prompted = self._pending
        self._pending = None
        side = self._sam2.image_size
        spatial, positions = self._model._encode_new_memory(
            [_flat(coarse)],
            [coarse.shape[-2:]],
            resized(masks.chosen, side, side)[:, None],
            masks.scores[:, None],
            is_mask_from_pts=prompted,  # which counts in eval mode only
        )
        if self._tracking.half_memory:
            spatial = spatial.to(torch.bfloat16)
        self._positions = self._positions or positions
        memory = Memory(spatial, pointer)
        self._store(self.frame - 1, prompted, memory)
        return memory

    def _with_memory(self, coarse: Tensor, prompted: bool) -> Tensor:
        """Coarse features conditioned on what is remembered: ``[b, d, S / 16, S / 16]``."""
        positions = self._model.image_encoder.neck.position_encoding(coarse)
        said = self._tracking.said_frames
        conditioned: Tensor = self._model._prepare_memory_conditioned_features(
            frame_idx=self.frame,
            is_init_cond_frame=prompted,
            current_vision_feats=[_flat(coarse)],
            current_vision_pos_embeds=[_flat(positions)],
            feat_sizes=[coarse.shape[-2:]],
            output_dict=self._bank,
            # pointers of frames from this number on are passed over, so it must not lag behind
            num_frames=max(said or self._model.max_obj_ptrs_in_encoder, self.frame + 1),
        )
        return conditioned

    def _pointer(self, masks: Masks) -> Tensor:
        """Object pointers ``[b, d]``; one of their own for objects that are not visible."""
        pointer = self._model.obj_ptr_proj(masks.at_best(masks.tokens))
        visible = (masks.scores > 0)[:, None]
        return torch.where(visible, pointer, self._model.no_obj_ptr.to(pointer.dtype))

    def _store(self, frame: int, prompted: bool, memory: Memory) -> None:
        """Keep a memory, and drop what no later frame looks at."""
        entry = {
            "maskmem_features": memory.spatial,
            "maskmem_pos_enc": self._positions,
            "obj_ptr": memory.pointer,
        }
        if prompted:
            self._bank["cond_frame_outputs"][frame] = entry
            return
        others = self._bank["non_cond_frame_outputs"]
        others[frame] = entry
        # the next frame is frame + 1: it attends to the last memories - 1 frames, and to pointers
        # of the last 15
        faded = others.get(frame + 1 - self._model.num_maskmem)
        if faded is not None:
            del faded["maskmem_features"], faded["maskmem_pos_enc"]
        others.pop(frame + 1 - self._model.max_obj_ptrs_in_encoder, None)


def track(
    sam2: Sam2, maps: FeatureMaps, tokens: Tensor, object_frames: Tensor, tracking: Tracking
) -> tuple[Masks, ...]:
    """Masks of objects through clips that are given at once; for training.

    Gradients reach the tokens from every frame, through spatial memories and pointers.

    Args:
        sam2: The model.
        maps: Of all frames of all clips, from `Sam2.encode`.
        tokens: ``[b, n, d]``.
        object_frames: ``[b, t]`` long: number in ``maps`` of each frame of each object. A clip that
            is shorter than others repeats its last one; what comes of that is to be left out, and
            changes no earlier frame.
        tracking: How.

    Returns:
        Of each of the t frames, as groups for the losses: the number of masks differs.
    """
    tracker, narrow = Tracker(sam2, tokens, tracking), sam2.narrow(maps)
    return tuple(tracker.step(narrow.rows(frames)) for frames in object_frames.unbind(1))


@torch.no_grad()  # torch turns gradients off while the generator runs, not between its frames
def stream(
    sam2: Sam2,
    maps: Iterable[FeatureMaps],
    tokens: Tensor,
    tracking: Tracking,
    object_videos: Tensor | None = None,
) -> Iterator[Masks]:
    """Masks of objects through a stream of frames, of any length; for inference.

    Args:
        sam2: The model, in eval mode.
        maps: Of one frame of each of f videos at a time, from `Sam2.encode_each` (f = 1) or kept.
        tokens: ``[b, n, d]``.
        tracking: How.
        object_videos: ``[b]`` long: which video shows each object; by default the first.

    Yields:
        Masks of each frame in order, as `track` gives them.
    """
    tracker = Tracker(sam2, tokens, tracking)
    if object_videos is None:
        object_videos = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    for frame in maps:
        yield tracker.step(sam2.narrow(frame).rows(object_videos))


def _flat(level: Tensor) -> Tensor:
    """``[b, c, h, w]`` to ``[h w, b, c]``, as the parts take it."""
    return level.flatten(2).permute(2, 0, 1)
