"""Loss terms of predicted moments and their labels.

Source: wjun0830/CGDETR, cg_detr/model.py: SetCriterion (after facebookresearch/detr).

Legend: y decoder layers, the last of which is the result, b samples, q queries, m moments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpokit_temporal.detector.outputs import DetectorOutput
from tpokit_temporal.matching import Matching, moment_giou
from tpokit_temporal.targets import TemporalTargets


def moment_sums(
    output: DetectorOutput, targets: TemporalTargets, matching: Matching, background: float
) -> dict[str, Tensor]:
    """Sums of ``moment_l1``, ``moment_giou`` and ``label``, and the same with ``aux_``.

    Args:
        output: Of the detector, float32.
        targets: Of the same samples.
        matching: Which query answers for which moment, in each decoder layer.
        background: Weight of queries without a moment in ``label``; released: ``eos_coef``.
    """
    index = matching.queries[..., None].expand(-1, -1, -1, 2)
    predicted = output.moments.gather(2, index)  # [y, b, m, 2]
    l1 = (predicted - targets.moments).abs().mean(-1)
    giou = 1 - moment_giou(predicted, targets.moments)
    by_layer = {
        "moment_l1": torch.where(matching.matched, l1, 0.0).sum((1, 2)),
        "moment_giou": torch.where(matching.matched, giou, 0.0).sum((1, 2)),
        "label": _label(output.logits, matching, background),
    }
    main = {name: sums[-1] for name, sums in by_layer.items()}
    return main | {f"aux_{name}": sums[:-1].sum() for name, sums in by_layer.items()}


def _label(logits: Tensor, matching: Matching, background: float) -> Tensor:
    """Weighted cross-entropy, mean over the queries of a sample, summed over samples: ``[y]``."""
    queries = torch.arange(logits.shape[2], device=logits.device)
    hits = (matching.queries[..., None] == queries) & matching.matched[..., None]
    surprise = -logits.log_softmax(-1)
    cost = torch.where(hits.any(2), surprise[..., 0], background * surprise[..., 1])
    return cost.mean(-1).sum(-1)
