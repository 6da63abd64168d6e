"""Tiny real models for the shapes world: one folder, as a hub checkpoint has it.

The folder holds configuration, tokenizer, processor and chat template of transformers' own
``LlavaOnevisionForConditionalGeneration``, so ``AutoProcessor.from_pretrained`` works offline. It
holds no weights: ``examples/shapes_world_base.yaml`` trains them from random ones.

Beside them stands the configuration of a VideoChat2 of the same size (``videochat2.json``, the form
of the backbone ``videochat2``), which shares the tokenizer: so the backbone of a recipe can be
exchanged by its name.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpokit_shapes_world.vocabulary import (
    IMAGE,
    PAD,
    SPECIAL_WORDS,
    TURN_END,
    TURN_START,
    UNKNOWN,
    VIDEO,
    WORDS,
)

if TYPE_CHECKING:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionProcessor,
        PreTrainedTokenizerFast,
    )

# The form of released LLaVA-OneVision checkpoints: ChatML, media before the words of a turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% if message['content'] is string %}{{ '\\n' + message['content'] }}{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + part['text'] }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_TABLE_MULTIPLE = 32  # rows of the word table are padded to it, as released checkpoints do


@dataclass(frozen=True)
class TinyShape:
    """Sizes of the tiny model; the defaults are those of the trained base."""

    tile_side: int = 64  # pixels of the one crop that the vision tower sees
    patch: int = 16  # pixels
    vision_width: int = 128
    vision_layers: int = 3
    vision_inner: int = 384
    width: int = 128
    layers: int = 4
    inner: int = 384
    heads: int = 4
    positions: int = 2048

    @property
    def tile_tokens(self) -> int:
        """Visual tokens of one crop."""
        return (self.tile_side // self.patch) ** 2

    @property
    def image_tokens(self) -> int:
        """Tokens of one square image: base, one crop of the same size, a newline for each row."""
        return 2 * self.tile_tokens + self.tile_side // self.patch


def write_tiny(folder: str | os.PathLike[str], shape: TinyShape | None = None) -> Path:
    """Write everything but weights of a tiny LLaVA-OneVision and of a tiny VideoChat2; returns the
    folder.
    """
    shape = shape or TinyShape()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tiny_config(shape).save_pretrained(folder)
    tiny_processor(shape).save_pretrained(folder)
    text = json.dumps(tiny_videochat2(shape), indent=2) + "\n"
    (folder / "videochat2.json").write_text(text, encoding="utf-8")
    return folder


def tiny_videochat2(shape: TinyShape) -> dict[str, Any]:
    """The configuration of a VideoChat2 of these sizes: a Q-Former, and a Mistral as the LLM."""
    from transformers import MistralConfig

    side = shape.tile_side // shape.patch
    llm = MistralConfig(sliding_window=None, **_llm_settings(shape))
    return {
        "format": 1,
        "vision": {
            "image_size": shape.tile_side,
            "patch_size": shape.patch,
            "hidden_size": shape.vision_width,
            "layers": shape.vision_layers,
            "heads": shape.heads,
            "intermediate_size": shape.vision_inner,
            "pretrained_frames": 4,
            "pretrained_grid": side,
        },
        "connector": {
            "plugin": "qformer",
            "options": {
                "queries": shape.tile_tokens,
                "extra_queries": shape.tile_tokens,
                "layers": 2,
                "width": shape.width,
                "heads": shape.heads,
                "intermediate": 2 * shape.width,
                "dropout": 0.0,
            },
        },
        "llm": json.loads(llm.to_json_string()),
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "media_token": VIDEO,
    }


def _llm_settings(shape: TinyShape) -> dict[str, Any]:
    """What configurations of transformers' LLMs have in common."""
    return {
        "vocab_size": -(-len(WORDS) // _TABLE_MULTIPLE) * _TABLE_MULTIPLE,
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "max_position_embeddings": shape.positions,
        "initializer_range": shape.width**-0.5,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": WORDS.index(TURN_START),
        "eos_token_id": WORDS.index(TURN_END),
        "pad_token_id": WORDS.index(PAD),
    }


def tiny_config(shape: TinyShape) -> LlavaOnevisionConfig:
    """The configuration; a word's id is its place in ``vocabulary.WORDS``."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=shape.vision_inner,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.heads,
        image_size=shape.tile_side,
        patch_size=shape.patch,
        vision_use_head=False,
    )
    text = Qwen2Config(**_llm_settings(shape))
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=WORDS.index(IMAGE),
        video_token_index=WORDS.index(VIDEO),
        image_grid_pinpoints=[[shape.tile_side, shape.tile_side]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
        initializer_range=shape.width**-0.5,
        architectures=["LlavaOnevisionForConditionalGeneration"],
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of the closed vocabulary, lower-cased, punctuation apart."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token=UNKNOWN)
    )
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    words.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # "red , blue" to "red, blue"
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token=UNKNOWN,
        pad_token=PAD,
        bos_token=TURN_START,
        eos_token=TURN_END,
        additional_special_tokens=list(SPECIAL_WORDS),
        model_max_length=2048,
    )


def tiny_processor(shape: TinyShape) -> LlavaOnevisionProcessor:
    """Processor whose token counts fit :func:`tiny_config`; square images and any clip."""
    from transformers import (
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    size = {"height": shape.tile_side, "width": shape.tile_side}
    # SigLIP's normalisation to -1..1; the classes default to CLIP's
    look = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            image_grid_pinpoints=[[shape.tile_side, shape.tile_side]], **look
        ),
        tokenizer=tiny_tokenizer(),
        video_processor=LlavaOnevisionVideoProcessor(**look),
        num_image_tokens=shape.tile_tokens,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
