"""What is right, as the losses take it: masks at the frames that are trained on.

Legend: n calls, t most frames of a call, L side at which masks are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tpokit.data.boxes import Corners
from tpokit.errors import DataError
from tpokit_mask.annotations import MaskTarget
from tpokit_mask.options import BoxOfMask

_NOWHERE: Corners = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class CallTarget:
    """What is right of one call.

    Attributes:
        truth: As it was annotated.
        masks: bool ``[t, L, L]`` at the frames that are trained on; ``None`` where there are none.
        there: ``[t]`` whether each of them is annotated with a mask.
        box: Of the object on the first frame where it is to be seen, as fractions; ``None``: on
            none.
    """

    truth: MaskTarget
    masks: Tensor | None = None
    there: tuple[bool, ...] = ()
    box: Corners | None = None


class MaskTargets(NamedTuple):
    """Targets of n calls.

    Attributes:
        masks: bool ``[n, t, L, L]``.
        there: bool ``[n, t]``; false for frames without a mask and for padding.
        boxes: ``[n, 4]`` corners as fractions.
        box_there: bool ``[n]``.
        object_count: Calls with a mask on some frame, be it an empty one.
        box_count: Calls with a box.
    """

    masks: Tensor
    there: Tensor
    boxes: Tensor
    box_there: Tensor
    object_count: float
    box_count: float


def at_frames(
    truth: MaskTarget, times_s: Sequence[float], side: int, drawn: BoxOfMask = "tight"
) -> CallTarget:
    """The target at the frames that a call is trained on.

    Args:
        truth: What was annotated.
        times_s: When the frames are shown; none: only the box counts.
        side: L.
        drawn: How a box is drawn around a mask, where none is given.

    A frame of a track of boxes that does not show the object says nothing here: nobody would say
    that others do, and the object score would only ever learn that it is absent.

    Raises:
        DataError: A mask is broken, or of another size than the medium; or there are masks, but on
            none of these frames.
    """
    if not times_s:
        return CallTarget(truth, box=_first_box(truth, range(len(truth.frames)), drawn))
    nearest = truth.nearest(times_s)
    masks = torch.zeros(len(times_s), side, side, dtype=torch.bool)
    there = [False] * len(times_s)
    of_boxes = any(frame.spec is None and frame.box is not None for frame in truth.frames)
    for frame, index in enumerate(nearest):
        unknown = index is None or (of_boxes and truth.frames[index].spec is None)
        mask = None if index is None or unknown else truth.mask(index)
        if mask is not None:
            there[frame] = True
            masks[frame] = smaller_mask(mask, side)
    if truth.frames and not of_boxes and not any(there):
        looked_at = ", ".join(f"{time_s:.3g}" for time_s in times_s)
        raise DataError(
            f"{truth.where}: none of the annotated frames, from {truth.frames[0].time_s:.3g} to "
            f"{truth.frames[-1].time_s:.3g} s, is one of those that are trained on ({looked_at} "
            "s); name the part of the video that is annotated (start_s, end_s), or raise frames"
        )
    looked_at_indices = [index for index in nearest if index is not None]
    box = _first_box(truth, looked_at_indices or range(len(truth.frames)), drawn)
    return CallTarget(truth, masks, tuple(there), box)


def smaller_mask(mask: np.ndarray, side: int) -> Tensor:
    """A mask ``[h, w]`` at another size, bool ``[side, side]``: the pixels nearest to the new ones.

    An object that falls between them keeps the pixels that it touches, as it would else count as
    not visible.
    """
    full = torch.from_numpy(np.ascontiguousarray(mask))
    if full.shape == (side, side):
        return full.bool()
    shaped = full[None, None].float()
    nearest = functional.interpolate(shaped, (side, side), mode="nearest-exact")[0, 0] > 0
    if bool(nearest.any()) or not bool(full.any()):
        return nearest
    return functional.adaptive_max_pool2d(shaped, (side, side))[0, 0] > 0


def collate_targets(targets: Sequence[CallTarget], side: int) -> MaskTargets:
    """Targets side by side; ``side`` is L."""
    frames = max([1, *(len(target.there) for target in targets)])
    masks = torch.zeros(len(targets), frames, side, side, dtype=torch.bool)
    there = torch.zeros(len(targets), frames, dtype=torch.bool)
    for place, target in enumerate(targets):
        if target.masks is not None:
            masks[place, : len(target.there)] = target.masks
            there[place, : len(target.there)] = torch.tensor(target.there)
    boxes = torch.tensor([target.box or _NOWHERE for target in targets]).reshape(-1, 4)
    known = torch.tensor([target.box is not None for target in targets], dtype=torch.bool)
    return MaskTargets(masks, there, boxes, known, float(there.any(1).sum()), float(known.sum()))


def _first_box(truth: MaskTarget, indices: Sequence[int], drawn: BoxOfMask) -> Corners | None:
    """Box on the first of some annotated frames that shows the object."""
    boxes = (truth.box(index, drawn) for index in indices)
    return next((box for box in boxes if box is not None), None)
