"""The configuration of a VideoChat2 model in our format: the file ``videochat2.json``.

Sources of the defaults: OpenGVLab/Ask-Anything, video_chat2 (UMT ViT-L/16, Q-Former);
OpenGVLab/TPO. Imports no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from tpokit.errors import CheckpointError
from tpokit.options import Options

CONFIG_FILE = "videochat2.json"
FORMAT = 1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VisionOptions(Options):
    """Sizes of the vision tower.

    Attributes:
        image_size: Side of a frame in pixels.
        patch_size: Side of a patch in pixels.
        hidden_size: c, width.
        layers: Blocks that run; the release configures 24 and runs 23.
        heads: Of the attention.
        intermediate_size: Width inside the feed-forward layers.
        layer_norm_eps: Of the norms in the blocks.
        pretrained_frames: Frames for which the table of positions of videos is made.
        pretrained_grid: Patches along a side for which both tables of positions are made.
    """

    image_size: int = Field(default=224, ge=1)
    patch_size: int = Field(default=16, ge=1)
    hidden_size: int = Field(default=1024, ge=2)
    layers: int = Field(default=23, ge=1)
    heads: int = Field(default=16, ge=1)
    intermediate_size: int = Field(default=4096, ge=1)
    layer_norm_eps: float = Field(default=1e-6, gt=0)
    pretrained_frames: int = Field(default=4, ge=1)
    pretrained_grid: int = Field(default=14, ge=1)

    @model_validator(mode="after")
    def _fit(self) -> VisionOptions:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}"
            )
        return self

    @property
    def grid(self) -> int:
        """Patches along a side of a frame."""
        return self.image_size // self.patch_size


class ConnectorEntry(Options):
    """The model's own connector: its name, as offered by this package, and its options."""

    plugin: Literal["qformer", "mlp", "pool_adapter"] = "qformer"
    options: dict[str, Any] = Field(default_factory=dict)


class VideoChat2Config(Options):
    """All of it.

    Attributes:
        format: Version of the file.
        vision: Sizes of the vision tower.
        connector: The model's own connector.
        llm: Configuration of the LLM, a causal LM of transformers: its ``to_dict()`` with
            ``model_type``.
        image_mean, image_std: Of the pixels, values in [0, 1].
        media_token: The word whose place in a prompt a token of a medium takes.
    """

    format: Literal[1] = FORMAT
    vision: VisionOptions = Field(default_factory=VisionOptions)
    connector: ConnectorEntry = Field(default_factory=ConnectorEntry)
    llm: dict[str, Any]
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD
    media_token: str = Field(default="<unk>", min_length=1)

    @model_validator(mode="after")
    def _has_a_type(self) -> VideoChat2Config:
        if not isinstance(self.llm.get("model_type"), str):
            raise ValueError(  # noqa: TRY004 - pydantic reports only this
                "llm: must have a model_type of transformers, such as 'mistral'"
            )
        return self


def read_config(folder: Path) -> VideoChat2Config:
    """The configuration of a folder.

    Raises:
        CheckpointError: There is none, or it is wrong.
    """
    path = folder / CONFIG_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as cause:
        raise CheckpointError(
            f"{folder} is no VideoChat2 model in this format: it has no {CONFIG_FILE}; published "
            "weights become one by `tpokit weights import`"
        ) from cause
    try:
        return VideoChat2Config.model_validate_json(text)
    except ValidationError as cause:
        first = cause.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or "the file"
        raise CheckpointError(f"{path}: {place}: {first['msg']}") from cause


def write_config(config: VideoChat2Config, folder: Path) -> None:
    """Write the configuration into a folder."""
    text = json.dumps(config.model_dump(mode="json"), indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
