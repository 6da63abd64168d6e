"""What a predicted mask costs, and how good it is: functions of logits and true masks.

Source: facebookresearch/sam2, training/loss_fns.py. There each is divided by the number of objects
and, for a single mask, summed; here they are the bare costs of each mask.

Legend: ``..`` whatever leads (objects, frames, masks), h, w pixels. Masks may have any leading
shape that broadcasts with that of the logits. Logits are float32: the caller sees to that.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def focal_cost(logits: Tensor, wanted: Tensor, alpha: float | None, gamma: float) -> Tensor:
    """Focal loss of each yes-or-no question, 0 or more, in the shape of ``logits``.

    ``a q^gamma (-ln(1 - q))`` with q the probability given to the wrong answer. Source: arXiv
    1708.02002 equation 5.

    Args:
        logits: ``[..]`` of the answer yes.
        wanted: ``[..]`` bool, the right answers.
        alpha: What a question counts whose right answer is yes, those of no counting ``1 - alpha``;
            ``None``: all count 1 (SAM 2: below 0).
        gamma: 0: cross-entropy.
    """
    against = logits * torch.where(wanted, -1.0, 1.0)
    cost = functional.softplus(against)
    if gamma:
        # q^gamma from its logarithm: a power of q has an infinite slope at q = 0 if gamma < 1
        cost = cost * (gamma * (against - cost)).exp()
    if alpha is not None:
        cost = cost * torch.where(wanted, alpha, 1.0 - alpha)
    return cost


def mask_focal(logits: Tensor, masks: Tensor, alpha: float | None, gamma: float) -> Tensor:
    """Mean of `focal_cost` over the pixels of each mask: ``[.., h, w]`` to ``[..]``."""
    return focal_cost(logits, masks, alpha, gamma).mean((-2, -1))


def mask_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - Dice coefficient of probabilities, from 0 to 1: ``[.., h, w]`` to ``[..]``.

    One pixel is added to both sides of the fraction, so that two empty masks cost nothing. It
    counts for more the smaller the masks are.
    """
    probability = logits.sigmoid()
    shared = torch.where(masks, probability, 0.0).sum((-2, -1))
    both = probability.sum((-2, -1)) + masks.sum((-2, -1))
    return 1 - (2 * shared + 1) / (both + 1)


@torch.no_grad()
def mask_iou(logits: Tensor, masks: Tensor) -> Tensor:
    """IoU with the true mask of the pixels with a logit above 0, ``[.., h, w]`` to ``[..]``.

    From 0 to 1, float32, without a gradient; 0 if both are empty.
    """
    found = logits > 0
    shared = (found & masks).sum((-2, -1))
    either = (found | masks).sum((-2, -1))
    return shared / either.clamp(min=1)
