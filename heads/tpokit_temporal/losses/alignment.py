"""Loss terms that bring moments and sentences together, and dummies apart.

Source: wjun0830/CGDETR, cg_detr/model.py: SetCriterion, loss_ms_align, loss_moment2txt_sim_distill
and loss_orthogonal_dummy.

Legend: b samples, l clips (padded), s dummies and words (padded), n dummies, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tpokit_temporal.detector.outputs import Alignment, DetectorOutput
from tpokit_temporal.targets import TemporalTargets

_LEAST = 1e-6  # added to attention, which can be 0, before its logarithm is taken


def alignment_sums(
    output: DetectorOutput,
    alignment: Alignment,
    targets: TemporalTargets,
    released_quirks: bool,
) -> dict[str, Tensor]:
    """Sums of ``align_sentence``, ``align_dummy``, ``align_clips``, ``distill`` and
    ``orthogonal_dummy``.

    Args:
        output: Of the detector, float32.
        alignment: Of the same output, float32.
        targets: Of the same samples.
        released_quirks: See `tpokit_temporal.losses.terms`.
    """
    sentence, dummy = _contrast(alignment)
    return {
        "align_sentence": -sentence.diagonal().sum(),
        "align_dummy": _released_anything_else(dummy) if released_quirks else _anything_else(dummy),
        "align_clips": _clips(alignment, targets, released_quirks),
        "distill": _distill(output, alignment, targets, released_quirks),
        "orthogonal_dummy": _overlap(output.dummies).sum()
        + len(targets) * _overlap(output.global_tokens),
    }


def _contrast(alignment: Alignment) -> Tensor:
    """Log-probability ``[2, b, 2 b]`` that a row's moment belongs to each sentence, against the
    clips outside the moments belonging to it; the same for sentences of dummies.
    """
    clips = functional.normalize(torch.stack((alignment.moment, alignment.other)), dim=-1)
    words = functional.normalize(
        torch.stack((alignment.sentence, alignment.dummy_sentence)), dim=-1
    )
    return torch.cat([clips[0] @ words.mT, clips[1] @ words.mT], -1).log_softmax(-1)


def _anything_else(log_probability: Tensor) -> Tensor:
    """That a moment belongs to anything but its own dummies."""
    count = len(log_probability)
    own = torch.eye(count, 2 * count, dtype=torch.bool, device=log_probability.device)
    return -log_probability.masked_fill(own, -torch.inf).logsumexp(-1).sum()


def _released_anything_else(log_probability: Tensor) -> Tensor:
    """The same, where of all that is right only the first counts: 1 for row 0, else 0."""
    return -log_probability[:1, 1].sum() - log_probability[1:, 0].sum()


def _clips(alignment: Alignment, targets: TemporalTargets, released_quirks: bool) -> Tensor:
    """Cross-entropy of being inside a moment, by likeness to the summary of the moment."""
    likeness = (alignment.clips @ alignment.moment[..., None])[..., 0]  # [b, l]
    inside = targets.relevant.to(likeness.dtype)
    if released_quirks:
        cost = functional.binary_cross_entropy(likeness.sigmoid(), inside, reduction="none")
    else:
        cost = functional.binary_cross_entropy_with_logits(likeness, inside, reduction="none")
    return torch.where(targets.clip_mask, cost, 0.0).sum()


def _distill(
    output: DetectorOutput, alignment: Alignment, targets: TemporalTargets, released_quirks: bool
) -> Tensor:
    """How far the attention of relevant clips is from their likeness to encoded words."""
    there = output.text_mask[:, None]
    if released_quirks:
        there = torch.ones_like(there)
    likeness = alignment.moment_similarity.detach().masked_fill(~there, -torch.inf)
    wanted = likeness.log_softmax(-1).masked_fill(~there, 0.0)
    apart = wanted.exp() * (wanted - (output.text_attention + _LEAST).log())
    by_clip = torch.where(there, apart, 0.0).sum(-1) / there.sum(-1)
    return torch.where(targets.relevant, by_clip, 0.0).sum()


def _overlap(tokens: Tensor) -> Tensor:
    """Mean size of the cosines among tokens ``[..., n, d]``, those with themselves counting as 0:
    ``[...]``. Only one of each two is moved by it.
    """
    tokens = functional.normalize(tokens, dim=-1)
    cosines = tokens @ tokens.detach().mT
    itself = torch.eye(tokens.shape[-2], dtype=torch.bool, device=tokens.device)
    return cosines.masked_fill(itself, 0.0).abs().mean((-2, -1))
