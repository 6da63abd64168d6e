"""A tiny LLaVA-OneVision with all files of a checkpoint, and batches for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

import tpokit
from tpokit.batch import LabelIndex, TokenIndex
from tpokit_llava_onevision.backbone import LlavaOnevisionBackbone
from tpokit_llava_onevision.options import LlavaOnevisionOptions

SIDE = 56
ROWS = 200
IMAGE, VIDEO = 190, 191
PINPOINTS = [[56, 56], [56, 112], [112, 56], [112, 112]]
# the form of released checkpoints: role, blank, media, then the words
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + part['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_config(layers: int = 2, width: int = 48) -> LlavaOnevisionConfig:
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=14,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=ROWS,
            hidden_size=width,
            intermediate_size=96,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
        ),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        architectures=["LlavaOnevisionForConditionalGeneration"],
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<unk>": 1, "<|im_start|>": 2, "<|im_end|>": 3, "user": 4, "assistant": 5}
    words |= {f"w{index}": index for index in range(6, IMAGE)}
    words |= {"<image>": IMAGE, "<video>": VIDEO}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
        model_max_length=1024,
    )


def library_processor(
    side: int = SIDE, pinpoints: list[list[int]] | None = None, patches: int = 4
) -> LlavaOnevisionProcessor:
    look = {
        "size": {"height": side, "width": side},
        "image_mean": [0.5, 0.4, 0.3],  # unequal, so that channels cannot be mixed up
        "image_std": [0.5, 0.6, 0.7],
    }
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            image_grid_pinpoints=PINPOINTS if pinpoints is None else pinpoints, **look
        ),
        tokenizer=tiny_tokenizer(),
        video_processor=LlavaOnevisionVideoProcessor(**look),
        num_image_tokens=patches**2,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )


def write_tiny(folder: Path, weights: bool = True) -> Path:
    """A checkpoint folder as the hub has it."""
    config = tiny_config()
    if weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    library_processor().save_pretrained(folder)
    return folder


def build(folder: Path, **options: object) -> LlavaOnevisionBackbone:
    """The backbone of a folder, in evaluation mode."""
    chosen = LlavaOnevisionOptions(model=str(folder), **options)
    return LlavaOnevisionBackbone.build(chosen, folder.parent).eval()


def view_of(
    kind: str = "image", height: int = 50, width: int = 70, frames: int = 1, seed: int = 0
) -> tpokit.View:
    """Random pixels."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (frames, height, width, 3), np.uint8)
    times_s = tuple(index / 2 for index in range(frames))
    return tpokit.View(kind, pixels, times_s, frames / 2, Path(f"{kind}{seed}.bin"))


def prompt(backbone: LlavaOnevisionBackbone, views: Sequence[tpokit.View], text: str) -> str:
    """One question with its media, rendered and expanded."""
    content = [{"type": view.kind} for view in views] + [{"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    processor = backbone.processor
    return processor.expand(processor.render(messages, answer_next=True), views)


def batch_of(
    backbone: LlavaOnevisionBackbone,
    samples: Sequence[tuple[Sequence[tpokit.View], str]],
    padding: str = "right",
) -> tpokit.Batch:
    """Questions (media, words) side by side, without answers."""
    tokenizer = backbone.processor.tokenizer
    rows = [tokenizer(prompt(backbone, *sample))["input_ids"] for sample in samples]
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, found in enumerate(rows):
        start = length - len(found) if padding == "left" else 0
        ids[row, start : start + len(found)] = torch.tensor(found)
        mask[row, start : start + len(found)] = True
    nothing = torch.empty(0, dtype=torch.long)
    return tpokit.Batch(
        ids=ids,
        mask=mask,
        labels=torch.full_like(ids, -100),
        learnt=LabelIndex(nothing, nothing, nothing),
        tokens=TokenIndex(nothing, nothing, nothing),
        slots={},
        given={},
        targets={},
        contexts={},
        questions=None,
        media=backbone.processor.collate_media([views for views, _ in samples]),
        counts={},
        samples=tuple(f"test/{index}" for index in range(len(rows))),
    )
