"""Which query answers for which moment: the assignment of least total cost.

Source: wjun0830/CGDETR, cg_detr/matcher.py (after facebookresearch/detr). We differ in how it is
solved, not in what: all decoder layers in one go, and for few moments on the device, so that
nothing is copied to the host. Where assignments tie, ours may be another of the best ones.

Legend: y decoder layers, b samples, q queries, m moments of the sample that has most.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor

FEW = 5
"""Up to so many moments a sample they are matched on the device, by trying all 120 orders of 5. The
released settings keep at most 5 of a sample."""
_LEAST_LENGTH = 1e-12  # divisors are at least this, so that two moments without length give no NaN
_NO_COST = 1e6  # stands for a cost that is not finite; the loss then tells what is wrong


@dataclass(frozen=True)
class MatchingCosts:
    """How much each part of a cost counts.

    Attributes:
        l1: Of the sum of the differences of centre and width.
        giou: Of the generalised intersection over union, which is subtracted.
        label: Of the probability of foreground, which is subtracted.
        bfloat16_l1: Round the L1 part to bfloat16 before and after it is weighted, as the code of
            OpenGVLab/TPO does also with float32 predictions; matters where costs nearly tie.
    """

    l1: float = 10.0
    giou: float = 1.0
    label: float = 4.0
    bfloat16_l1: bool = False


class Matching(NamedTuple):
    """The query of each moment.

    Attributes:
        queries: ``[y, b, m]`` int64, distinct among the matched ones of a sample; any number where
            not matched.
        matched: ``[y, b, m]`` bool; false for padding, and for moments that got no query because
            there are more of them than queries.
    """

    queries: Tensor
    matched: Tensor


def moment_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised intersection over union of moments, as stretches of time, not clipped.

    Args:
        first, second: ``[..., 2]`` centre and width in one unit; they broadcast.

    Returns:
        ``[...]`` in [-1, 1]: intersection over union, less the share of the hull (the shortest
        stretch around both) that neither covers. Finite, also its gradient, for widths of 0.
    """
    first_start, first_end = _edges(first)
    second_start, second_end = _edges(second)
    shared = torch.minimum(first_end, second_end) - torch.maximum(first_start, second_start)
    shared = shared.clamp(min=0)
    union = (first_end - first_start) + (second_end - second_start) - shared
    hull = torch.maximum(first_end, second_end) - torch.minimum(first_start, second_start)
    iou = shared / union.clamp(min=_LEAST_LENGTH)
    return iou - (hull - union) / hull.clamp(min=_LEAST_LENGTH)


def matching_costs(
    logits: Tensor, moments: Tensor, targets: Tensor, weights: MatchingCosts
) -> Tensor:
    """What it would cost to give each moment to each query.

    Args:
        logits: ``[y, b, q, 2]``, class 0 is foreground.
        moments: ``[y, b, q, 2]`` predicted centre and width.
        targets: ``[b, m, 2]``, padded with anything finite.
        weights: Of the parts.

    Returns:
        ``[y, b, q, m]`` float32.
    """
    probability = logits.float().softmax(-1)[..., :1]
    predicted, wanted = moments.float()[..., None, :], targets.float()[None, :, None]
    l1 = (predicted - wanted).abs().sum(-1)
    l1 = weights.l1 * (l1.bfloat16() if weights.bfloat16_l1 else l1)
    giou = moment_giou(predicted, wanted)
    return l1 - weights.giou * giou - weights.label * probability


@torch.no_grad()
def match(
    logits: Tensor,
    moments: Tensor,
    targets: Tensor,
    mask: Tensor,
    weights: MatchingCosts,
) -> Matching:
    """The assignment of least total cost for each decoder layer and sample.

    Args:
        logits, moments, targets, weights: As in `matching_costs`.
        mask: ``[b, m]`` bool, false where targets are padding.

    Returns:
        A `Matching`; of k moments of a sample min(q, k) are matched.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return assign(matching_costs(logits, moments, targets, weights), mask)


def assign(costs: Tensor, mask: Tensor) -> Matching:
    """Solve from ``costs`` ``[y, b, q, m]``; ``mask`` as in `match`.

    With more than `FEW` moments in a sample, or more than queries, the costs are copied to the
    host and solved one by one with scipy; else they stay where they are.
    """
    queries, most = costs.shape[-2:]
    costs = costs.double().nan_to_num(_NO_COST, _NO_COST, -_NO_COST)
    if not 0 < most <= min(FEW, queries):
        return _assign_on_host(costs, mask)
    costs = costs.masked_fill(~mask[:, None], 0.0)  # padding takes whatever the others leave
    chosen = _let_choose(costs.flatten(0, 1)).view(*costs.shape[:2], most)
    return Matching(chosen, mask.expand_as(chosen))


def _let_choose(costs: Tensor) -> Tensor:
    """Queries ``[p, m]`` of least total cost, from ``[p, q, m]`` of p problems; m at most q.

    Let the moments choose one after another, each the cheapest query that is left. Of all m! orders
    one gives the assignment of least total cost: in that assignment somebody has its cheapest query
    (else some could exchange theirs in a ring and all be better off); let it go first, and the same
    holds for the others.
    """
    orders = _orders(costs.shape[-1], costs.device)  # [o, m]
    by_moment = costs.transpose(1, 2)  # [p, m, q]
    total = costs.new_zeros(len(costs), len(orders))
    taken = torch.zeros(*total.shape, costs.shape[1], dtype=torch.bool, device=costs.device)
    picks = []
    for turn in range(orders.shape[1]):
        offered = by_moment.index_select(1, orders[:, turn]).masked_fill(taken, torch.inf)
        cost, query = offered.min(-1)  # [p, o]
        total = total + cost
        taken = taken.scatter(-1, query[..., None], True)
        picks.append(query)
    best = total.argmin(-1)
    by_turn = torch.stack(picks, -1).gather(1, best[:, None, None].expand(-1, 1, len(picks)))[:, 0]
    return torch.zeros_like(by_turn).scatter(1, orders[best], by_turn)


@cache
def _orders(moments: int, device: torch.device) -> Tensor:
    """All orders ``[o, m]`` of m moments; kept, so that they are copied to the device once."""
    return torch.tensor(list(permutations(range(moments))), device=device)


def _assign_on_host(costs: Tensor, mask: Tensor) -> Matching:
    on_host, there = costs.cpu().numpy(), mask.cpu().numpy()  # the only copy
    queries = np.zeros((*on_host.shape[:2], on_host.shape[-1]), dtype=np.int64)
    matched = np.zeros(queries.shape, dtype=bool)
    for layer, sample in np.ndindex(on_host.shape[:2]):
        targets = np.flatnonzero(there[sample])
        rows, columns = linear_sum_assignment(on_host[layer, sample][:, targets])
        queries[layer, sample, targets[columns]] = rows
        matched[layer, sample, targets[columns]] = True
    return Matching(
        torch.from_numpy(queries).to(costs.device), torch.from_numpy(matched).to(costs.device)
    )


def _edges(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Start and end ``[...]`` of moments ``[..., 2]``."""
    centre, width = moments.unbind(-1)
    return centre - width / 2, centre + width / 2
