"""What a VideoChat2 is made after: configuration, tokenizer and connector, checked against each
other before any weight is made or read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tpokit
from tpokit.interfaces import ConnectorChoice, ConnectorHost
from tpokit.pretrained import quiet_transformers
from tpokit_videochat2.checkpoint import find_folder
from tpokit_videochat2.config import CONFIG_FILE, VideoChat2Config, read_config
from tpokit_videochat2.options import VideoChat2Options
from tpokit_videochat2.own_connector import own_connector
from tpokit_videochat2.processor import VideoChat2Processor
from tpokit_videochat2.sizes import small_config
from tpokit_videochat2.tokenizer import load_tokenizer

INSTRUCTION_TOKENIZER = "instruction_tokenizer"
"""Folder, in that of a model, with the tokenizer of instructions."""
_FRAMES = 16
"""Frames of a video, as released."""


@dataclass(frozen=True)
class Plan:
    """All that a model is made after.

    Attributes:
        options: Of the recipe.
        folder: Of the model.
        config: Of the model.
        choice: The connector.
        foreign: Whether the recipe puts it in place of the model's own.
        host: What it stands between.
        rows: Of the LLM's word table.
        processor: Template, tokenizer, pixels.
    """

    options: VideoChat2Options
    folder: Path
    config: VideoChat2Config
    choice: ConnectorChoice
    foreign: bool
    host: ConnectorHost
    rows: int
    processor: VideoChat2Processor

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the weights in memory; ``None``: as they are."""
        name = self.options.dtype
        return None if name == "auto" else getattr(torch, name)

    def copy_tokenizers(self, folder: Path) -> None:
        """Write the tokenizers into another folder, as they were before they learnt task tokens."""
        load_tokenizer(self.folder).save_pretrained(folder)
        instructions = self.folder / INSTRUCTION_TOKENIZER
        if instructions.is_dir():
            load_tokenizer(instructions).save_pretrained(folder / INSTRUCTION_TOKENIZER)


def plan_of(
    options: VideoChat2Options,
    recipe_folder: Path,
    choice: ConnectorChoice | None,
    small: bool = False,
) -> Plan:
    """Find and check what the options name.

    Args:
        options: Of the recipe.
        recipe_folder: Relative paths start here.
        choice: The connector of the recipe; ``None``: the model's own.
        small: Make it small, as `tpokit_videochat2.sizes.small_config` says.

    Raises:
        UsageError: There is no such folder, or the connector does not fit the model.
        CheckpointError: A file is missing, or files do not fit each other.
    """
    folder = find_folder(options, recipe_folder)
    config = read_config(folder)
    own = own_connector(config.connector)
    chosen = own if choice is None or choice.description == own.description else choice
    foreign = chosen is not own
    if small:
        chosen = chosen.small()
        config = small_config(config, chosen.feature_need().layers)
    llm = llm_config(config.llm)
    if options.instruction != "none" and not chosen.reads_instruction():
        raise tpokit.UsageError(
            f"backbone.options.instruction is {options.instruction!r}, but the connector reads no "
            "instruction (a Q-Former does with a vocabulary); leave it out"
        )
    side = config.vision.image_size // config.vision.patch_size
    host = ConnectorHost(config.vision.hidden_size, llm.hidden_size, (side, side), 0, folder)
    processor = VideoChat2Processor(
        tokenizer=load_tokenizer(folder),
        template=options.template,
        timestamps=options.timestamps,
        media_token=config.media_token,
        image_size=config.vision.image_size,
        mean=config.image_mean,
        std=config.image_std,
        rows=llm.vocab_size,
        max_length=llm.max_position_embeddings,
        need=_media_need(options),
        connector=(chosen, host),
        instruction=options.instruction,
        instruction_tokenizer=_instruction_tokenizer(options, folder),
    )
    return Plan(options, folder, config, chosen, foreign, host, llm.vocab_size, processor)


def llm_config(described: dict[str, Any]) -> Any:
    """Transformers' configuration of the LLM.

    Raises:
        CheckpointError: It is of no class of causal LMs, or wrong.
    """
    try:
        return AutoConfig.for_model(**described)
    except (KeyError, ValueError, TypeError) as cause:
        raise tpokit.CheckpointError(f"{CONFIG_FILE}: llm: {cause}") from cause


def make_llm(described: dict[str, Any], attention: str) -> Any:
    """The LLM of a configuration, with random weights from torch's global generator, float32.

    Raises:
        UsageError: The attention implementation is not installed.
    """
    try:
        with quiet_transformers():
            return AutoModelForCausalLM.from_config(
                llm_config(described), dtype=torch.float32, attn_implementation=attention
            )
    except ImportError as cause:
        raise tpokit.UsageError(f"attention {attention!r} cannot be used here: {cause}") from cause


def _media_need(options: VideoChat2Options) -> tpokit.MediaNeed:
    if options.rate is not None:
        return tpokit.MediaNeed(rate=options.rate, frames_max=options.frames_max, pick=options.pick)
    return tpokit.MediaNeed(
        frames=options.frames or _FRAMES, pick=options.pick, short=options.short_videos
    )


def _instruction_tokenizer(options: VideoChat2Options, folder: Path) -> Any:
    if options.instruction == "none":
        return None
    return load_tokenizer(folder / INSTRUCTION_TOKENIZER)
