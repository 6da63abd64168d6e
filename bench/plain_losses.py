"""Losses of CG-DETR computed plainly, the way the released code does; see `plain_cg_detr.py`.

Written from a description of wjun0830/CGDETR (cg_detr/model.py: SetCriterion, cg_detr/matcher.py):
each decoder layer is matched by itself on the host, eleven grades are gone through one by one, rows
are picked by masks whose values the host must know.

Legend of all shapes: b samples, l clips, q queries, y decoder layers.
"""

from __future__ import annotations

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from tpokit_temporal.targets import TemporalTargets

BACKGROUND, MARGIN, TAU = 0.1, 0.2, 0.5
CURVE_WEIGHT = 4.0
_HIDDEN = -1e3


def total_loss(found: dict[str, Any], targets: TemporalTargets) -> Tensor:
    """The weighted sum of all losses, with the weights of the release of VideoChat-TPO."""
    lengths = targets.moment_counts
    moments = [targets.moments[row, :count] for row, count in enumerate(lengths)]
    layers = zip(found["logits"], found["moments"], strict=True)
    total = sum((_detection(logits, spans, moments) for logits, spans in layers), start=0.0)
    total = total + CURVE_WEIGHT * (
        _curve(found, "saliency", targets) + _curve(found, "attention", targets)
    )
    return total + _alignment(found, targets) + _distill(found) + _overlap(found)


def _ends(spans: Tensor) -> Tensor:
    return torch.stack([spans[:, 0] - spans[:, 1] / 2, spans[:, 0] + spans[:, 1] / 2], -1)


def _giou(one: Tensor, other: Tensor) -> Tensor:
    one, other = _ends(one), _ends(other)
    assert (one[:, 1] >= one[:, 0]).all()
    assert (other[:, 1] >= other[:, 0]).all()
    left = torch.max(one[:, None, 0], other[None, :, 0])
    right = torch.min(one[:, None, 1], other[None, :, 1])
    both = (right - left).clamp(min=0)
    union = (one[:, 1] - one[:, 0])[:, None] + (other[:, 1] - other[:, 0])[None] - both
    hull = torch.max(one[:, None, 1], other[None, :, 1]) - torch.min(
        one[:, None, 0], other[None, :, 0]
    )
    return both / union - (hull - union) / hull


@torch.no_grad()
def _match(logits: Tensor, spans: Tensor, moments: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    b, q = spans.shape[:2]
    flat, every = spans.flatten(0, 1), torch.cat(moments)
    cost = 10 * torch.cdist(flat, every, p=1) - _giou(flat, every)
    cost = (cost - 4 * logits.flatten(0, 1).softmax(-1)[:, :1]).view(b, q, -1).cpu()
    parts = cost.split([len(of_sample) for of_sample in moments], -1)
    pairs = [linear_sum_assignment(part[row]) for row, part in enumerate(parts)]
    return [(torch.as_tensor(query), torch.as_tensor(target)) for query, target in pairs]


def _detection(logits: Tensor, spans: Tensor, moments: list[Tensor]) -> Tensor:
    pairs = _match(logits, spans, moments)
    rows = torch.cat([torch.full_like(query, row) for row, (query, _) in enumerate(pairs)])
    queries = torch.cat([query for query, _ in pairs])
    predicted = spans[rows, queries]
    expected = torch.cat([moments[row][target] for row, (_, target) in enumerate(pairs)])
    classes = torch.ones(logits.shape[:2], dtype=torch.int64, device=logits.device)
    classes[rows, queries] = 0
    weight = torch.tensor([1.0, BACKGROUND], device=logits.device)
    label = functional.cross_entropy(logits.transpose(1, 2), classes, weight, reduction="none")
    giou = 1 - torch.diag(_giou(predicted, expected))
    return 10 * functional.l1_loss(predicted, expected) + giou.mean() + 4 * label.mean()


def _rank(scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
    scores = mask * scores + (1 - mask) * _HIDDEN
    total = scores.new_zeros(())
    for grade in range(1, 12):
        positive = grades >= grade
        if positive.sum() == 0:
            continue
        logits = scores / TAU - (scores / TAU).max(1, keepdim=True)[0]
        log_share = logits - torch.log(torch.exp(logits).sum(1, keepdim=True) + 1e-6)
        mean = (positive * log_share * mask).sum(1) / (positive.sum(1) + 1e-6)
        total = total + (-mean * (positive.sum(1) > 0)).mean()
    return total / 12


def _curve(found: dict[str, Any], name: str, targets: TemporalTargets) -> Tensor:
    scores, mask, grades = found[name], targets.clip_mask.float(), targets.saliency
    rows = torch.arange(len(scores), device=scores.device)
    better, worse = (
        torch.stack([scores[rows, targets.pairs[:, pair, side]] for pair in range(2)], 1)
        for side in range(2)
    )
    loss = (MARGIN + worse - better).clamp(min=0).sum() / better.numel() * 2
    if name == "attention":
        labels = grades.clamp(0, 1)
        loss = loss + functional.binary_cross_entropy(scores.reshape(-1), labels.reshape(-1))
    if f"{name}_negative" not in found:
        return loss + _rank(scores, grades, mask)
    real, away = found["real"], found[f"{name}_negative"]
    share = torch.sigmoid(away) if name == "saliency" else away
    low = (-torch.log(1 - share) * mask[real]).sum(1).mean()
    both = torch.cat([scores[real], away], 1)
    none = torch.cat([grades[real], torch.zeros_like(grades[real])], 1)
    return loss + low + _rank(both, none, mask[real].repeat(1, 2))


def _alignment(found: dict[str, Any], targets: TemporalTargets) -> Tensor:
    moment, other, sentence, dummy = (
        functional.normalize(found[name], dim=1)
        for name in ("moment", "other", "sentence", "dummy_sentence")
    )
    b = len(moment)
    own = torch.eye(b, device=moment.device)
    labels = torch.cat([own, torch.zeros_like(own)], 1).max(1)[1]
    loss = functional.cross_entropy(torch.cat([moment @ sentence.T, other @ sentence.T], 1), labels)
    labels = torch.cat([1 - own, torch.ones_like(own)], 1).max(1)[1]
    loss = loss + functional.cross_entropy(
        torch.cat([moment @ dummy.T, other @ dummy.T], 1), labels
    )
    inside = (found["moment"].unsqueeze(1) @ found["clips"].transpose(1, 2)).sigmoid()
    labels = targets.saliency.clamp(0, 1).reshape(-1)
    cost = functional.binary_cross_entropy(inside.reshape(-1), labels, reduction="none")
    return loss + (cost * targets.clip_mask.reshape(-1)).mean()


def _distill(found: dict[str, Any]) -> Tensor:
    shares, inside = found["text_attention"].flatten(0, 1), found["inside"].reshape(-1).int()
    teacher = torch.softmax(found["similarity"], -1).clone().detach().flatten(0, 1)
    distance = functional.kl_div(torch.log(shares + 1e-6), teacher, reduction="none").mean(1)
    return (distance * inside).sum() / inside.sum()


def _overlap(found: dict[str, Any]) -> Tensor:
    dummies = found["dummies"] / found["dummies"].norm(dim=2, keepdim=True)
    likeness = dummies @ dummies.transpose(1, 2).detach()
    for row in range(len(likeness)):
        likeness[row].fill_diagonal_(0)
    pool = found["pool"] / found["pool"].norm(dim=1, keepdim=True)
    pool_likeness = pool @ pool.T.detach()
    pool_likeness.fill_diagonal_(0)
    return likeness.abs().mean() + pool_likeness.abs().mean()
