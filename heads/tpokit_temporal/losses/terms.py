"""All loss terms of the temporal head, each as a sum with its count.

Source: wjun0830/CGDETR, cg_detr/model.py: SetCriterion (OpenGVLab/TPO has the same);
`tpokit_temporal.losses.weights` has their published weights. The terms, and what each is a mean
over:

- ``moment_l1``: mean difference of centre and width; ``moment_giou``: 1 - GIoU. Over moments that
  have a query.
- ``label``: cross-entropy of foreground, queries without a moment weighted by ``background``, mean
  over queries. Over samples.
- ``aux_moment_l1``, ``aux_moment_giou``, ``aux_label``: the same summed over the decoder layers
  before the last, each matched by itself.
- ``saliency_hinge``, ``attention_hinge``: by how much the better clip of a pair fails to be ahead
  by ``margin``, sum of the two pairs. Over samples.
- ``saliency_rank``, ``attention_rank``: cross-entropy of the clips that have at least a grade,
  against all clips of the video and, where the next sample is about another video, the same clips
  with that sample's query; mean over the grades. Over samples.
- ``saliency_negative``, ``attention_negative``: what is left with the query of the next sample, sum
  over clips. Over samples where that is about another video.
- ``attention_bce``: cross-entropy of attention as the probability of being relevant. Over clips.
- ``align_sentence``: cross-entropy of a moment with its own sentence against those of the other
  samples and against the clips outside moments; ``align_dummy``: that it is anything but its own
  dummies. Over samples; by nature they depend on the other samples of the batch.
- ``align_clips``: cross-entropy of a clip being inside, by its likeness to the moment. Over clips.
- ``distill``: Kullback-Leibler divergence of attention from likeness to the encoded words, mean
  over dummies and words. Over relevant clips.
- ``orthogonal_dummy``: mean cosine among dummies, plus that among global tokens. Over samples.

What we do otherwise than the release, whose way ``released_quirks`` brings back:

- Pad clips do not count in ``attention_bce`` (there as irrelevant) nor in the number of clips that
  it and ``align_clips`` are divided by; pad words do not count in ``distill``.
- ``saliency_rank`` and ``attention_rank`` are means over all samples. There, samples with and
  without a real negative have a mean each, and both are added up; if just one sample has none, its
  saliency is ranked along the wrong axis, which is always right; and the attention of those without
  is computed but not used.
- The ranking also asks for the top grade, 12. There it has grades 1 to 11, but divides by 12.
- ``align_dummy`` takes everything else as right; there only class 1 for the first sample and class
  0 for the others.
- ``align_clips`` is computed from logits. There it is the logarithm of a sigmoid, cut at -100: in
  float32, logits above about 17 cost 100 and have no gradient, and most are when training starts.
- Where attention is exactly 1, ``attention_bce`` and ``attention_negative`` have a bounded
  gradient (there up to 1e12, and the latter is infinite): 1e-6 is added before the logarithm.

Also with ``released_quirks`` all is computed in float32, even from bfloat16 predictions (there in
the type of the predictions), and where nothing can be averaged the sum and the count are 0 (there
NaN: ``distill`` in a batch without a relevant clip). Not there: ``class_error``, which is for
reading only, and ``contrastive_align``, which is switched off everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tpokit.errors import TpokitError
from tpokit.types import LossTerm
from tpokit_temporal.detector.outputs import DetectorOutput, Negative
from tpokit_temporal.losses.alignment import alignment_sums
from tpokit_temporal.losses.curves import curve_sums
from tpokit_temporal.losses.moments import moment_sums
from tpokit_temporal.losses.weights import TERMS
from tpokit_temporal.matching import MatchingCosts, match
from tpokit_temporal.targets import TemporalTargets


@dataclass(frozen=True)
class LossSettings:
    """What can be set on the losses; defaults as released.

    Attributes:
        background: Weight of queries without a moment in ``label``; released: ``eos_coef``.
        margin: Of the hinges; released: ``saliency_margin``.
        costs: Of matching.
        released_quirks: See the module.
    """

    background: float = 0.1
    margin: float = 0.2
    costs: MatchingCosts = field(default_factory=MatchingCosts)
    released_quirks: bool = False


def temporal_terms(
    output: DetectorOutput, targets: TemporalTargets, settings: LossSettings
) -> dict[str, LossTerm]:
    """Every term of `TERMS`, unweighted, of n samples.

    Needs the alignment, and the negatives if a sample has a real one. Each sum has a graph, and is
    0 where its count is 0. No device waits for the host, unless a sample has more moments than
    `tpokit_temporal.matching.FEW`.
    """
    counts = term_counts(targets, output.logits.shape[2], settings.released_quirks)
    with torch.autocast(output.saliency.device.type, enabled=False):
        sums = _sums(_full(output), targets, settings)
    return {name: LossTerm(sums[name], counts[name]) for name in TERMS}


def term_counts(
    targets: TemporalTargets, queries: int, released_quirks: bool = False
) -> dict[str, float]:
    """How many items each term sums over, from the targets alone; ``queries`` of the detector."""
    clips = targets.saliency.numel() if released_quirks else targets.clip_count
    matched = sum(min(count, queries) for count in targets.moment_counts)
    different = {
        "moment_l1": matched,
        "moment_giou": matched,
        "aux_moment_l1": matched,
        "aux_moment_giou": matched,
        "saliency_negative": targets.real_count,
        "attention_negative": targets.real_count,
        "attention_bce": clips,
        "align_clips": clips,
        "distill": targets.relevant_count,
    }
    return {name: float(different.get(name, len(targets))) for name in TERMS}


def _sums(
    output: DetectorOutput, targets: TemporalTargets, settings: LossSettings
) -> dict[str, Tensor]:
    if len(targets) == 0:
        return dict.fromkeys(TERMS, output.saliency.sum())
    if output.alignment is None or (output.negative is None and targets.real_count):
        raise TpokitError(
            "the detector was not run for training: its output has no "
            + ("alignment" if output.alignment is None else "negatives")
        )
    matching = match(
        output.logits, output.moments, targets.moments, targets.moment_mask, settings.costs
    )
    quirks = settings.released_quirks
    return {
        **moment_sums(output, targets, matching, settings.background),
        **curve_sums(output, targets, settings.margin, quirks),
        **alignment_sums(output, output.alignment, targets, quirks),
    }


def _full(value: Any) -> Any:
    """The same with 16-bit floats as float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, tuple):
        return type(value)(*(_full(inner) for inner in value))
    if isinstance(value, Negative):
        return Negative(_full(value.saliency), _full(value.attention), value.is_real)
    return value
