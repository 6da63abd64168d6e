"""Names of the loss terms and their published weights; does not import torch."""

from __future__ import annotations

TERMS = (
    "moment_l1",
    "moment_giou",
    "label",
    "aux_moment_l1",
    "aux_moment_giou",
    "aux_label",
    "saliency_hinge",
    "saliency_rank",
    "saliency_negative",
    "attention_hinge",
    "attention_rank",
    "attention_bce",
    "attention_negative",
    "align_sentence",
    "align_dummy",
    "align_clips",
    "distill",
    "orthogonal_dummy",
)
"""Every term of the temporal head; `tpokit_temporal.losses.terms` says what they are."""

_CURVES = ("saliency", "attention")
_DETECTION = {"moment_l1": 10.0, "moment_giou": 1.0, "label": 4.0}


def released_weights(saliency: float, attention: float = 1.0) -> dict[str, float]:
    """Weights with which the terms, each divided by its count, add up to the released loss.

    Args:
        saliency: Of all terms of saliency and attention; released: ``lw_saliency``.
        attention: Of the terms of attention among them; released: ``lw_wattn``.
    """
    weights = dict.fromkeys(TERMS, 1.0) | _DETECTION
    weights |= {f"aux_{name}": weight for name, weight in _DETECTION.items()}
    curves = [name for name in TERMS if name.startswith(_CURVES)]
    weights |= dict.fromkeys(curves, saliency)
    weights |= {name: saliency * attention for name in curves if name.startswith("attention")}
    return weights


RELEASED_WEIGHTS: dict[str, dict[str, float]] = {
    "qvhighlights": released_weights(saliency=1.0),
    "charades_sta": released_weights(saliency=4.0),
    "tacos": released_weights(saliency=4.0),
    "videochat_tpo": released_weights(saliency=4.0),
}
"""By preset of the head. Sources: wjun0830/CGDETR, cg_detr/scripts; OpenGVLab/TPO,
modeling_videochate.py. When the head is trained inside the language model, the latter multiplies
the whole by 0.05: the weight of the task."""
