"""Names of the loss terms and their published weights; does not import torch."""

from __future__ import annotations

MASK_TERMS = ("focal", "dice", "iou", "object_score")
"""Terms of SAM 2, from what its decoder gives."""
BOX_TERMS = ("box_tokens", "box_l1")
"""Terms of the released VideoChat-TPO, which need no image and no decoder."""
TERMS = MASK_TERMS + BOX_TERMS
"""Every term of the mask head; `tpokit_mask.losses.terms` says what they are."""

RELEASED_WEIGHTS: dict[str, dict[str, float]] = {
    "sam2": {
        "focal": 20.0,
        "dice": 1.0,
        "iou": 1.0,
        "object_score": 1.0,
        "box_tokens": 0.0,
        "box_l1": 0.0,
    },
    "videochat_tpo": dict.fromkeys(MASK_TERMS, 0.0) | dict.fromkeys(BOX_TERMS, 1.0),
}
"""By published run; the first is the default. Sources: facebookresearch/sam2, the configuration of
its fine-tuning on MOSE in sam2/configs/sam2.1_training; OpenGVLab/TPO, modeling_videochate.py (its
paper speaks of the losses of SAM 2, but the code takes the two of the box).
"""
