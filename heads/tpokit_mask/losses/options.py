"""What a recipe may set on the losses of the mask head; does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tpokit.options import Options


class LossOptions(Options):
    """Options of the losses; the defaults are those of SAM 2's released training configuration.

    The class of SAM 2's losses has other defaults, which are: ``iou_masks: chosen``,
    ``iou_error: squared``, ``absent_masks: true``, and no loss on the object score, which is its
    weight of 0 in the recipe.

    Attributes:
        focal_alpha: What pixels of the object count in ``focal``, those beside it counting
            ``1 - focal_alpha``; null: all count 1.
        focal_gamma: How much less pixels count that are nearly right; 0: not, which is
            cross-entropy.
        iou_masks: Whether the predicted IoU of all masks of the decoder is taught (mean over them),
            or of the chosen one only. Which mask to answer with is read from them, so all.
        iou_error: Absolute or squared difference of IoU.
        score_alpha: As ``focal_alpha``, for the object score: what visible objects count.
        score_gamma: As ``focal_gamma``, for the object score; with the defaults of both its loss is
            cross-entropy.
        absent_masks: Whether ``focal``, ``dice`` and ``iou`` are also taken where the object is not
            visible, towards the empty mask. Otherwise only the score says so.
        choice_focal: Weight of ``focal`` where the decoder gives several masks of an object and the
            one that costs least is to learn.
        choice_dice: Weight of ``dice`` there. SAM 2 chooses by the weights of the loss; a recipe
            that changes those may want to change these too.
    """

    focal_alpha: float | None = Field(default=0.25, ge=0, le=1)
    focal_gamma: float = Field(default=2.0, ge=0)
    iou_masks: Literal["all", "chosen"] = "all"
    iou_error: Literal["l1", "squared"] = "l1"
    score_alpha: float | None = Field(default=None, ge=0, le=1)
    score_gamma: float = Field(default=0.0, ge=0)
    absent_masks: bool = False
    choice_focal: float = Field(default=20.0, ge=0)
    choice_dice: float = Field(default=1.0, ge=0)
