"""What a recipe may set on the mask head; does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tpokit.errors import UsageError
from tpokit.options import Options
from tpokit_mask.losses.options import LossOptions
from tpokit_mask.sam2.sizes import RELEASED, Sam2Sizes

RANDOM = "random"
"""In place of a checkpoint: random weights, for tests and for training from nothing."""


BoxOfMask = Literal["tight", "outer"]
BOX_TOKENS = 3
"""Prompt tokens that stand for a box in SAM 2."""


class Sam2Options(Options):
    """Which SAM 2, and what of it learns.

    Attributes:
        size: Name of a released one (`RELEASED`), or sizes of one's own (`Sam2Sizes`).
        checkpoint: Its weights: a published ``.pt``, a ``.safetensors`` with the same names, or
            ``package://PACKAGE/FOLDER/FILE``; ``random``: random ones.
        image_size: Side of the square images in pixels, if not that of the size (released: 1024).
        trained: What learns when the head does: ``nothing`` (as in the paper), the mask
            ``decoder`` (as in Sa2VA), or ``everything``.
        postprocessing: In inference, what sam2's own predictors do by default; see
            `tpokit_mask.sam2.build`.
        encode_batch: Frames that go through the image encoder at once; ``None``: as many as suit
            their size and the device (`tpokit_mask.sam2_port.Sam2.frames_at_once`).
        cache: Folder in which features of a frozen encoder are kept, relative to the recipe; false:
            they are worked out anew each time. At 1024 pixels a frame takes 8 MB.
    """

    size: str | Sam2Sizes = "sam2.1_hiera_tiny"
    checkpoint: str
    image_size: int | None = Field(default=None, ge=32)
    trained: Literal["nothing", "decoder", "everything"] = "nothing"
    postprocessing: bool = False
    encode_batch: int | None = Field(default=None, ge=1)
    cache: Path | Literal[False] = False

    @field_validator("size", mode="before")
    @classmethod
    def _known_size(cls, size: Any) -> Any:
        if isinstance(size, str) and size not in RELEASED:
            raise ValueError(f"no SAM 2 of size {size!r}; released are {', '.join(RELEASED)}")
        if not isinstance(size, dict):
            return size
        try:
            sizes: dict[str, Any] = {
                key: tuple(v) if isinstance(v, list) else v for key, v in size.items()
            }
            return Sam2Sizes(**sizes)
        except (UsageError, TypeError) as cause:
            raise ValueError(str(cause).replace("Sam2Sizes.__init__() ", "")) from cause

    @model_validator(mode="after")
    def _cache_holds_what_stays(self) -> Sam2Options:
        if self.cache and self.checkpoint == RANDOM:
            raise ValueError("cache: features of random weights are not worth keeping")
        if self.cache and self.trained == "everything":
            raise ValueError(
                "cache: the image encoder learns, so its features do not stay the same"
            )
        return self


class TrackingOptions(Options):
    """How an object is followed through a video, in training and inference alike.

    Attributes:
        prompted: Frames from the start on which the slot prompts: 1 as in TPO, 5 in Sa2VA. A
            prompted frame is looked at without memory.
        append: The prompt follows SAM 2's two "not a point" tokens (Sa2VA) instead of standing
            alone (TPO).
        three_masks: Three masks on prompted frames, of which the predicted IoU chooses (Sa2VA),
            instead of one (TPO). Other frames always have three.
        gated_loss: Masks of objects that SAM 2 takes to be absent enter the losses as it would
            answer them, empty and without a gradient. Default: as they were before that.
        said_frames: See `tpokit_mask.sam2.tracking.Tracking`.
        half_memory: In inference, keep memories in bfloat16, as sam2's video predictor does.
        rate: Frames a second that are looked at in inference; default: every frame.
        videos_at_once: Videos that are followed side by side when several are asked about.
    """

    prompted: int = Field(default=1, ge=1)
    append: bool = False
    three_masks: bool = False
    gated_loss: bool = False
    said_frames: int | None = Field(default=None, ge=2)
    half_memory: bool = False
    rate: float | None = Field(default=None, gt=0)
    videos_at_once: int = Field(default=8, ge=1)


class MaskOptions(Options):
    """Options of the mask head.

    Attributes:
        sam2: Which SAM 2.
        adapter: From slots to prompt tokens: ``mlp`` of two layers (release), ``linear`` (paper).
        slots: Slots of each call.
        tokens_per_slot: Prompt tokens of each slot, with ``mlp``.
        frames: Frames of a video in training, spread evenly over the part that a sample is about.
        learn: From ``masks``, or from the ``box`` of the object alone, as the released code does;
            then no frame is looked at in training, and the terms of the masks are 0.
        loss_side: Side in pixels at which masks are compared in the losses; default that of the
            images, as in SAM 2. Less of it saves time and memory.
        box_of_mask: How the box of an object is drawn around its mask where the data give none, for
            the terms of the box: ``tight``, or ``outer`` as in the release, a pixel wider on each
            side.
        given: Whether a question can hold a box (``<mask>`` in the question).
        given_hidden: Width of the hidden layer that encodes it; default half that of the backbone.
        tracking: How objects are followed.
        losses: Of the losses.
    """

    sam2: Sam2Options
    adapter: Literal["mlp", "linear"] = "mlp"
    slots: int = Field(default=1, ge=1, le=32)
    tokens_per_slot: int = Field(default=3, ge=1, le=32)
    frames: int = Field(default=8, ge=1, le=64)
    learn: Literal["masks", "box"] = "masks"
    loss_side: int | None = Field(default=None, ge=8)
    box_of_mask: BoxOfMask = "tight"
    given: bool = True
    given_hidden: int | None = Field(default=None, ge=1)
    tracking: TrackingOptions = TrackingOptions()
    losses: LossOptions = LossOptions()

    @model_validator(mode="after")
    def _all_that_is_asked_for_is_used(self) -> MaskOptions:
        learns = self.sam2.trained != "nothing"
        tokens = self.slots * (self.tokens_per_slot if self.adapter == "mlp" else 1)
        if self.learn == "box" and learns:
            raise ValueError("learn: box runs no SAM 2, so sam2.trained must be nothing")
        if self.learn == "box" and tokens != BOX_TOKENS:
            raise ValueError(
                f"learn: box compares {BOX_TOKENS} prompt tokens with those of a box, but slots "
                f"and adapter make {tokens}"
            )
        if self.sam2.trained == "everything" and 1 < self.frames <= self.tracking.prompted:
            raise ValueError(
                "tracking.prompted: if all frames in training are prompted, the memory learns "
                f"nothing; it must be below frames = {self.frames}"
            )
        said = self.tracking.said_frames
        if said is not None and said < self.frames:
            raise ValueError(f"tracking.said_frames must be at least frames = {self.frames}")
        return self


def without_weights(options: MaskOptions) -> MaskOptions:
    """The same, but no file of weights is asked for."""
    return options.model_copy(
        update={"sam2": options.sam2.model_copy(update={"checkpoint": RANDOM, "cache": False})}
    )


def small_options(options: MaskOptions) -> MaskOptions:
    """The same with a SAM 2 that is small enough for a laptop, and no file of weights."""
    given = options.sam2.size
    version = given.version if isinstance(given, Sam2Sizes) else RELEASED[given].version
    small = Sam2Sizes(version="2.0" if version == "2.0" else "2.1")
    plain = without_weights(options)
    sam2 = plain.sam2.model_copy(update={"size": small, "image_size": None, "encode_batch": None})
    return plain.model_copy(update={"sam2": sam2, "loss_side": None, "given_hidden": None})
