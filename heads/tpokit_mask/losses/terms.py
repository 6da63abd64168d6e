"""All loss terms of the mask head, each as a sum with its count.

Sources: facebookresearch/sam2, training/loss_fns.py: MultiStepMultiMasksAndIous, for what the mask
decoder gives; OpenGVLab/TPO, modeling_videochate.py, for the box.
`tpokit_mask.losses.weights` has their published weights. The terms:

- ``focal``: focal loss of a mask, mean over its pixels; ``dice``: 1 - Dice coefficient. Where the
  decoder gives several masks of an object, only the one with the smallest
  ``choice_focal focal + choice_dice dice`` learns.
- ``iou``: difference of the predicted IoU from that of the predicted mask, by default its size,
  mean over the masks.
- ``object_score``: whether the object is visible, by default cross-entropy.
- ``box_tokens``: mean absolute difference of prompt tokens from those that SAM 2's own prompt
  encoder gives for the true box.
- ``box_l1``: mean absolute difference of the four numbers of a box.

An object that is not visible costs its score only, unless the options say otherwise. It is visible
on a frame if any pixel of its true mask is.

**What is counted.** The four terms of SAM 2 are sums over objects, frames and steps of prediction,
and their count is the number of *objects*, visible or not, on however many frames: a clip of eight
frames counts eight times as much as an image, as in the release. There each rank divides by
``num_objects``, the objects of its batch averaged over ranks, and gradients are averaged over
ranks; so in all the sum over all ranks is divided by the objects of all ranks, which is what a
sum with its count comes to. We differ where gradients are accumulated: the count is that of the
whole step, where the release would take the mean of quotients. Who wants a mean over objects *and*
frames gives their number as the count. The terms of the box are sums over boxes.

**Gating.** SAM 2 sets all logits of an object to -1024 where its score says that it is not
visible, which cuts every gradient but that of the score. Both kinds of logits can be given here;
which of them is the caller's choice.

How we differ in computing: all masks are looked at without a graph, and only the chosen one is
resized and taken through the losses once more with a graph, which gives the same gradients and
keeps a third of what is held for them. All is computed in float32, also from 16-bit predictions
and under autocast, which leaves float32 alone in all that is used here. Nothing waits for the
device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tpokit.errors import TpokitError
from tpokit.types import LossTerm
from tpokit_mask.losses.masks import focal_cost, mask_dice, mask_focal, mask_iou
from tpokit_mask.losses.options import LossOptions
from tpokit_mask.losses.weights import BOX_TERMS, MASK_TERMS
from tpokit_mask.resizing import resized


class DecodedMasks(NamedTuple):
    """What the mask decoder gave for objects on frames in one step.

    Legend: ``..`` objects and frames in any layout, the same in all; m masks of each, h, w pixels.

    ``logits [.., m, h, w]`` of the masks, of any size. ``ious [.., m]``: predicted IoU of each.
    ``scores [..]``: logit of the object being visible. Float of any width.
    """

    logits: Tensor
    ious: Tensor
    scores: Tensor


class WantedMasks(NamedTuple):
    """What is right for the same objects on the same frames.

    ``masks [.., h, w]`` bool, of the size at which masks are compared. ``there [..]`` bool: whether
    this object of this frame is one that was annotated; false for padding and for frames without
    annotation, which cost nothing, whatever stands in their place.
    """

    masks: Tensor
    there: Tensor


def term_counts(object_count: float, box_count: float) -> dict[str, float]:
    """What each term is divided by, from the targets alone.

    Args:
        object_count: Objects of the batch that have an annotated mask on a frame, be it an empty
            one.
        box_count: Boxes of the batch.
    """
    return dict.fromkeys(MASK_TERMS, float(object_count)) | dict.fromkeys(
        BOX_TERMS, float(box_count)
    )


def mask_terms(
    decoded: Sequence[DecodedMasks],
    wanted: Sequence[WantedMasks],
    object_count: float,
    options: LossOptions,
) -> dict[str, LossTerm]:
    """The terms `MASK_TERMS`, unweighted.

    Args:
        decoded: At least one group. The decoder gives one mask on some frames and three on others,
            so what has as many masks is one group: all frames of a kind, a frame, or a step of
            correction. How the objects are grouped and laid out changes nothing. A group may have
            no objects.
        wanted: Of each group.
        object_count: See the module.
        options: Of the losses.

    Returns:
        Each sum has a graph, and is 0 where nothing is there.

    Raises:
        TpokitError: There is no group, shapes do not fit, or what should be bool is not.
    """
    if not decoded or len(decoded) != len(wanted):
        raise TpokitError(
            f"mask losses: {len(decoded)} groups of predicted masks and {len(wanted)} of true ones;"
            " there must be as many, and at least one (it may have no objects)"
        )
    for group, right in zip(decoded, wanted, strict=True):
        _check(group, right)
    sums = sum(_sums(group, right, options) for group, right in zip(decoded, wanted, strict=True))
    assert isinstance(sums, Tensor)
    return {
        name: LossTerm(total, float(object_count))
        for name, total in zip(MASK_TERMS, sums.unbind(), strict=True)
    }


def box_tokens_term(tokens: Tensor, wanted: Tensor, there: Tensor, box_count: float) -> LossTerm:
    """The term ``box_tokens``.

    Args:
        tokens: ``[.., k, d]`` predicted prompt tokens, k for each object, d the width of SAM 2.
        wanted: ``[.., k, d]`` those of SAM 2's prompt encoder for the true box; they get no
            gradient.
        there: ``[..]`` bool, false for padding and objects without a box.
        box_count: How many are true.

    Raises:
        TpokitError: Shapes do not fit.
    """
    return _mean_difference(tokens, wanted, there, box_count)


def box_l1_term(boxes: Tensor, wanted: Tensor, there: Tensor, box_count: float) -> LossTerm:
    """The term ``box_l1``.

    Args:
        boxes: ``[.., 4]`` predicted: corners x0, y0, x1, y1 as fractions of the image, not clamped.
        wanted: ``[.., 4]`` the true ones.
        there: ``[..]`` bool, false for padding and objects without a box.
        box_count: How many are true.

    Raises:
        TpokitError: Shapes do not fit.
    """
    return _mean_difference(boxes, wanted, there, box_count)


def _sums(decoded: DecodedMasks, wanted: WantedMasks, options: LossOptions) -> Tensor:
    """Sums of `MASK_TERMS` over the objects of a group: ``[4]``."""
    masks, there = wanted
    visible = masks.flatten(-2).any(-1) & there
    costing = there if options.absent_masks else visible
    survey = _survey(decoded.logits, masks, options)
    # what costs nothing is overwritten before it is computed with: were it not finite, its gradient
    # would be 0 times that
    chosen = _of_best(decoded.logits, survey.best)
    chosen = chosen.masked_fill(~costing[..., None, None], 0.0)
    chosen = resized(chosen, masks.shape[-2], masks.shape[-1])
    focal = mask_focal(chosen, masks, options.focal_alpha, options.focal_gamma)
    dice = mask_dice(chosen, masks)
    missed = decoded.ious.float().masked_fill(~costing[..., None], 0.0) - survey.ious
    missed = missed.abs() if options.iou_error == "l1" else missed.square()
    iou = missed.mean(-1) if options.iou_masks == "all" else _of_best(missed, survey.best)
    scores = decoded.scores.float().masked_fill(~there, 0.0)
    score = focal_cost(scores, visible, options.score_alpha, options.score_gamma)
    costs = torch.stack((focal, dice, iou, score))
    counted = torch.stack((costing, costing, costing, there))
    return torch.where(counted, costs, 0.0).flatten(1).sum(1)


class _Survey(NamedTuple):
    """``best [..]``: which of the m masks learns; ``ious [.., m]`` of them with the true mask."""

    best: Tensor
    ious: Tensor


@torch.no_grad()
def _survey(logits: Tensor, masks: Tensor, options: LossOptions) -> _Survey:
    """Look at all masks ``[.., m, h, w]`` of each object."""
    full = resized(logits, masks.shape[-2], masks.shape[-1])
    masks = masks[..., None, :, :]
    ious = mask_iou(full, masks)
    if full.shape[-3] == 1:
        return _Survey(torch.zeros_like(ious[..., 0], dtype=torch.long), ious)
    focal = mask_focal(full, masks, options.focal_alpha, options.focal_gamma)
    cost = options.choice_focal * focal + options.choice_dice * mask_dice(full, masks)
    return _Survey(cost.argmin(-1), ious)


def _of_best(values: Tensor, best: Tensor) -> Tensor:
    """``[.., c..]`` of the best mask, from ``[.., m, c..]`` of each."""
    leading = best.dim()
    rest = values.shape[leading + 1 :]
    place = best.reshape(*best.shape, 1, *(1 for _ in rest)).expand(*best.shape, 1, *rest)
    return values.gather(leading, place).squeeze(leading)


def _mean_difference(found: Tensor, wanted: Tensor, there: Tensor, count: float) -> LossTerm:
    """Mean absolute difference over the numbers of each object, summed over objects."""
    leading = there.dim()
    fits = found.shape == wanted.shape and found.shape[:leading] == there.shape
    if not fits or found.dim() == leading:
        raise TpokitError(
            f"box losses: predicted {list(found.shape)} and true {list(wanted.shape)} must be "
            f"equally large and begin like the mask of what is there, {list(there.shape)}"
        )
    difference = (found.float() - wanted.detach().float()).flatten(leading)
    difference = difference.masked_fill(~there[..., None], 0.0)
    return LossTerm(difference.abs().mean(-1).sum(), float(count))


def _check(decoded: DecodedMasks, wanted: WantedMasks) -> None:
    """Shapes and kinds of a group fit.

    Raises:
        TpokitError: They do not.
    """
    logits, ious, scores = (list(tensor.shape) for tensor in decoded)
    masks, there = (list(tensor.shape) for tensor in wanted)
    if len(logits) < 3 or logits[:-2] != ious or ious[:-1] != scores:
        raise TpokitError(
            f"mask losses: logits {logits}, IoU {ious} and scores {scores} of one group must be "
            "[.., masks, height, width], [.., masks] and [..]"
        )
    if masks[:-2] != scores or there != scores or len(masks) != len(scores) + 2:
        raise TpokitError(
            f"mask losses: true masks {masks} and what is there {there} must be "
            f"[.., height, width] and [..], where .. is {scores}, as predicted"
        )
    if {tensor.dtype for tensor in wanted} != {torch.bool}:
        raise TpokitError(
            f"mask losses: true masks ({wanted.masks.dtype}) and what is there "
            f"({wanted.there.dtype}) must be bool"
        )
