"""Models and data of `gpu_step.py`: descriptions without weights, and a recipe."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import LlavaOnevisionConfig, MistralConfig

from tpokit_shapes_world.tiny_model import TinyShape, write_tiny
from tpokit_shapes_world.vocabulary import VIDEO

CLIPS = {
    "talk": {},
    "boxes": {"kinds": {"region": 1.0}},
    "moments": {"kinds": {"moment": 1.0}},
    "tracks": {"kinds": {"track": 1.0}, "from_start": True},
}
"""Data entry to its options of the shapes world; all are clips."""


@dataclass(frozen=True)
class Size:
    """Of both models.

    Attributes:
        shape: What they have in common with the tiny ones.
        onevision: What differs in the configuration of LLaVA-OneVision: of the whole, of its LLM
            and of its vision tower.
        videochat2: The configuration of VideoChat2; ``None``: that of the shape.
        temporal: Options of the temporal head; empty: the released sizes.
        sam2: Sizes of the mask head's SAM 2; ``None``: as the command line says.
        side: Of the frames on the disk, in pixels.
    """

    shape: TinyShape
    onevision: dict[str, dict[str, Any]]
    videochat2: dict[str, Any] | None
    temporal: dict[str, Any]
    sam2: dict[str, int] | None
    side: int


_QWEN2_7B = {"vocab_size": 152_128, "num_key_value_heads": 4, "max_position_embeddings": 32_768}
_MISTRAL_7B = MistralConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=32_768,
    sliding_window=None,
    tie_word_embeddings=False,
)

_SMALL_TEMPORAL = {"width": 64, "feed_forward": 128, "encoder_layers": 2, "decoder_layers": 2}
_SMALL_SAM2 = {"image_size": 128, "width": 32, "memory_width": 16, "trunk_width": 16}

SIZES = {
    "tiny": Size(TinyShape(), {}, None, _SMALL_TEMPORAL, _SMALL_SAM2, side=64),
    "7b": Size(
        TinyShape(
            tile_side=384,
            patch=14,
            vision_width=1152,
            vision_layers=26,
            vision_inner=4304,
            width=3584,
            layers=28,
            inner=18_944,
            heads=28,
            positions=32_768,
        ),
        {"text_config": _QWEN2_7B, "vision_config": {"num_attention_heads": 16}},
        {
            "format": 1,
            "llm": json.loads(_MISTRAL_7B.to_json_string(use_diff=False)),
            "media_token": VIDEO,
        },
        {},
        None,
        side=256,
    ),
}


def write_recipe(folder: Path, backbone: str, options: argparse.Namespace, masks: bool) -> Path:
    """Write a model's description and a recipe for it; returns the path of the recipe.

    Args:
        folder: Where everything goes.
        backbone: Name of the plugin.
        options: Of the command line.
        masks: With the mask head.
    """
    size = SIZES[options.size]
    write_model(size, folder / "model")
    gpu = options.device == "cuda"
    heads: dict[str, Any] = {
        "region": {"plugin": "region"},
        "temporal": {"plugin": "temporal", "options": size.temporal},
    }
    if masks:
        mask = {"sam2": {"size": size.sam2 or options.sam2, "checkpoint": "random"}, "frames": 4}
        heads["mask"] = {"plugin": "mask", "options": mask}
    shared = {"frames": options.frames, "side": size.side, "folder": str(folder / "clips")}
    scenes = {"scenes": options.batch * options.batches, "interval": [2, options.frames]}
    data = {
        name: {"source": "shapes_world", "options": {**shared, **scenes, **own}}
        for name, own in CLIPS.items()
        if masks or name != "tracks"
    }
    stage = {
        "name": "joint",
        "train": {"llm": "lora", "connector": "full", "bridge": "full"}
        | dict.fromkeys(heads, "full"),
        "learning_rate": 2e-5,
        "mix": dict.fromkeys(data, 1 / len(data)),
        "samples_per_step": options.batch,
        "steps": 1,
    }
    recipe = {
        "recipe": 1,
        "name": f"gpu step of {backbone}",
        "output": str(folder / "run"),
        "backbone": {
            "plugin": backbone,
            "options": {
                "model": str(folder / "model"),
                "weights": "random",
                "frames": options.frames,
                "attention": options.attention,
                "dtype": "bfloat16" if gpu else "float32",
            },
        },
        "heads": heads,
        "data": data,
        "lora": {"rank": 16, "alpha": 32.0},
        "stages": [stage],
        "run": {"precision": "bfloat16" if gpu else "float32"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def write_model(size: Size, folder: Path) -> None:
    """Write configurations, tokenizer and processor of both models."""
    write_tiny(folder, size.shape)
    config = LlavaOnevisionConfig.from_pretrained(folder)
    for part, changed in size.onevision.items():
        for name, value in changed.items():
            setattr(getattr(config, part), name, value)
    config.save_pretrained(folder)
    if size.videochat2 is not None:
        text = json.dumps(size.videochat2, indent=2)
        (folder / "videochat2.json").write_text(text, encoding="utf-8")
        _fill_vocabulary(folder / "tokenizer.json", size.videochat2["llm"]["vocab_size"])


def _fill_vocabulary(path: Path, rows: int) -> None:
    """Give a tokenizer as many words as a table has rows, which VideoChat2 compares."""
    described = json.loads(path.read_text(encoding="utf-8"))
    words = described["model"]["vocab"]
    words.update({f"unused{place}": place for place in range(len(words), rows)})
    path.write_text(json.dumps(described), encoding="utf-8")
