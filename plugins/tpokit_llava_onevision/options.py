"""What a recipe may set on the backbone; imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tpokit.options import Options

Crops = Literal["anyres", "single"]


class LlavaOnevisionOptions(Options):
    """Which LLaVA-OneVision, and how it looks at media."""

    model: str = Field(
        min_length=1,
        description="A folder (relative to the recipe), package://PACKAGE/FOLDER for one inside an "
        "installed package, or the id of a hub repository such as owner/name.",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of a hub repository; a commit is exact."
    )
    weights: Literal["pretrained", "random"] = Field(
        default="pretrained",
        description="random: only the configuration and the tokenizer are read, weights are drawn "
        "from the recipe's seed.",
    )
    start: Literal["library", "balanced"] = Field(
        default="library",
        description="With random weights: as transformers draws them, or rescaled so that a small "
        "model learns from scratch (see tpokit_llava_onevision.start).",
    )
    frames: int = Field(default=16, ge=1, description="Frames of a video that the backbone sees.")
    crops: Crops = Field(
        default="anyres",
        description="anyres: a lone image as overview and crops, as the checkpoint was trained; "
        "single: every image as one padded crop (730 tokens at full size instead of 1485 to 7371).",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto",
        description="Implementation of attention, by transformers' name; auto: flash attention if "
        "it is installed, on a GPU with weights of 16 bits, else sdpa.",
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        default="float32",
        description="Number format of the weights in memory; auto: as the checkpoint has them.",
    )
