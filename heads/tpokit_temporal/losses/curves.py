"""Loss terms of the two curves over the clips of a video: saliency, and attention to the words.

Both are taught the same: to be higher at the better clip of a pair, to rank clips by grade, and to
be low where the query is about another video. Source: wjun0830/CGDETR, cg_detr/model.py:
SetCriterion.loss_saliency.

Legend: 2 curves, saliency first, b samples, l clips (padded).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tpokit_temporal.detector.outputs import DetectorOutput
from tpokit_temporal.labels import GRADES
from tpokit_temporal.targets import TemporalTargets

_TEMPERATURE = 0.5  # of the ranking
_PADDING = -1000.0  # a score that no softmax gives any weight
_LEAST = 1e-6  # added where attention can be exactly 1 and the logarithm of the rest is taken


def curve_sums(
    output: DetectorOutput, targets: TemporalTargets, margin: float, released_quirks: bool
) -> dict[str, Tensor]:
    """Sums of the terms whose names begin with ``saliency_`` and ``attention_``.

    Args:
        output: Of the detector, float32.
        targets: Of the same samples.
        margin: By how much the better clip of a pair is to be ahead.
        released_quirks: See `tpokit_temporal.losses.terms`.
    """
    own = torch.stack((output.saliency, output.attention))  # [2, b, l]
    mask = targets.clip_mask
    real = targets.is_real[:, None] & mask
    compared, compared_mask = own, mask
    lowered = [curve[:0].sum() for curve in own]  # nothing, with a graph
    if output.negative is not None:
        away = torch.stack((output.negative.saliency, output.negative.attention))
        compared, compared_mask = torch.cat([own, away], -1), torch.cat([mask, real], -1)
        lowered = [_low_saliency(away[0], real), _low_attention(away[1], real, released_quirks)]
    weights = _grade_weights(targets.saliency, GRADES - 1 if released_quirks else GRADES)
    ranks = _rank(compared, weights, compared_mask)
    if released_quirks:
        ranks = ranks * _shares(targets)
    hinges, ranks = _hinge(own, targets.pairs, margin).sum(-1), ranks.sum(-1)
    return {
        "saliency_hinge": hinges[0],
        "saliency_rank": ranks[0],
        "saliency_negative": lowered[0],
        "attention_hinge": hinges[1],
        "attention_rank": ranks[1],
        "attention_bce": _relevance(output.attention, targets, released_quirks),
        "attention_negative": lowered[1],
    }


def _hinge(curves: Tensor, pairs: Tensor, margin: float) -> Tensor:
    """Of each sample, ``[2, b]`` from ``[2, b, l]``."""
    places = pairs.flatten(1).expand(len(curves), -1, -1)
    better, worse = curves.gather(-1, places).view(-1, *pairs.shape).unbind(-1)
    return (margin + worse - better).clamp(min=0).sum(-1)


def _rank(curves: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Of each sample, ``[2, b]``; clips with another query compete, but are never wanted."""
    surprise = -(curves.masked_fill(~mask, _PADDING) / _TEMPERATURE).log_softmax(-1)
    return (weights * surprise[..., : weights.shape[-1]]).sum(-1)


def _grade_weights(saliency: Tensor, highest: int) -> Tensor:
    """What each clip counts in the ranking, ``[b, l]``.

    For every grade, the clips that have at least that much are one set of which each is a right
    answer; the term is the mean over the grades of the mean over the set. A grade that no clip has
    gives 0.
    """
    grades = torch.arange(1, highest + 1, device=saliency.device)
    wanted = (saliency[:, None] >= grades[:, None]).to(saliency.dtype)  # [b, grade, l]
    return (wanted / wanted.sum(-1, keepdim=True).clamp(min=1)).sum(1) / GRADES


def _shares(targets: TemporalTargets) -> Tensor:
    """What the ranking of each sample counts in the release, ``[2, b]``.

    There, samples with and without a real negative have a mean of their own; of the latter that of
    saliency is lost if there is just one of them, and that of attention always.
    """
    count, real = len(targets), targets.real_count
    false = count - real
    to_real, to_false = count / max(real, 1), count / max(false, 1)
    lost = [real > 0 and false == 1, real > 0]
    return torch.stack(
        [torch.where(targets.is_real, to_real, 0.0 if gone else to_false) for gone in lost]
    )


def _relevance(attention: Tensor, targets: TemporalTargets, released_quirks: bool) -> Tensor:
    """Cross-entropy of attention as the probability that a clip is relevant."""
    wanted = targets.saliency.clamp(0, 1)
    if released_quirks:
        return functional.binary_cross_entropy(attention, wanted, reduction="sum")
    yes = attention.clamp(min=torch.finfo(attention.dtype).tiny).log()
    no = (1 - attention + _LEAST).log()
    cost = -(wanted * yes + (1 - wanted) * no)
    return torch.where(targets.clip_mask, cost, 0.0).sum()


def _low_saliency(away: Tensor, real: Tensor) -> Tensor:
    """-ln(1 - sigmoid) in its exact form; the release is infinite from scores of about 17."""
    return torch.where(real, functional.softplus(away), 0.0).sum()


def _low_attention(away: Tensor, real: Tensor, released_quirks: bool) -> Tensor:
    rest = 1 - away.masked_fill(~real, 0.0)
    cost = -(rest if released_quirks else rest + _LEAST).log()
    return torch.where(real, cost, 0.0).sum()
