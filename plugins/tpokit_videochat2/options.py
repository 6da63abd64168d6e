"""What a recipe may set on the backbone; imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tpokit.options import Options


class VideoChat2Options(Options):
    """Which VideoChat2, and how it looks at media.

    Attributes:
        model: A folder (relative to the recipe) with ``videochat2.json``, as ``tpokit weights
            import`` writes it, ``package://PACKAGE/FOLDER`` for one inside an installed package, or
            the id of a hub repository of that form.
        revision: Branch, tag or commit of a hub repository.
        weights: ``random``: only configuration and tokenizer are read, weights are drawn from the
            recipe's seed.
        start: With random weights: as the libraries draw them, or ``balanced``, so that a small
            model learns from scratch.
        frames: Frames of a video that the backbone sees; or
        rate: frames a second, at most ``frames_max``. ``frames`` is 16 if neither is given.
        frames_max: See ``rate``.
        pick: Which frame of each of the equal parts of a video: the ``middle`` one, or in training
            a ``random`` one.
        short_videos: What happens to a video with fewer frames than ``frames``: an ``error``,
            frames are seen more than once (``repeat``, as in the released loop), or only those that
            are there are seen (``fewer``).
        template: The prompt: ``chat`` and ``app`` as the two of TPO's release, ``videochat2`` as
            in the training of VideoChat2.
        timestamps: Whether the prompt says when the frames were taken: when the question ``asked``
            for a timestamp (released), ``always`` or ``never``.
        instruction: What a connector that reads an instruction is given: ``none``, the ``system``
            turn, or that and the first ``question``.
        lora_output: Whether LoRA is also on the output layer, as released.
        attention: Implementation of attention, by transformers' name; ``auto``: flash attention if
            it is installed, on a GPU with weights of 16 bits, else ``sdpa``.
        dtype: Number format of the weights in memory; ``auto``: as the files have them.
    """

    model: str = Field(min_length=1)
    revision: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    start: Literal["library", "balanced"] = "library"
    frames: int | None = Field(default=None, ge=1)
    rate: float | None = Field(default=None, gt=0)
    frames_max: int = Field(default=64, ge=1)
    pick: Literal["middle", "random"] = "middle"
    short_videos: Literal["error", "repeat", "fewer"] = "error"
    template: Literal["chat", "app", "videochat2"] = "chat"
    timestamps: Literal["asked", "always", "never"] = "asked"
    instruction: Literal["none", "system", "question"] = "none"
    lora_output: bool = True
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"

    @model_validator(mode="after")
    def _one_count_of_frames(self) -> VideoChat2Options:
        if self.frames is not None and self.rate is not None:
            raise ValueError("frames and rate cannot both be given")
        return self
