"""Tiny random dual encoders with tokenizer and image processor, and calls about made-up videos."""

import functools
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    VideoMAEImageProcessor,
    ViTConfig,
    ViTModel,
    XCLIPConfig,
    XCLIPModel,
)

from tpokit import Media, MediaInfo, Seen, View
from tpokit_temporal.features.choice import make_extractor
from tpokit_temporal.features.options import EncoderFeatures

CPU = torch.device("cpu")
KINDS = ("clip", "siglip", "xclip")
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "when", "does", "the", "a", "red", "cat", "dog", "jump"]
LONGEST = 12


def tokenizer():
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=LONGEST,
    )


def text_side(**more):
    return {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": LONGEST,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
        **more,
    }


def vision_side(**more):
    return {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        **more,
    }


def model_of(kind):
    """A model and its image processor; widths of images and words differ."""
    cropped = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    if kind == "siglip":
        config = SiglipConfig(text_config=text_side(), vision_config=vision_side())
        return SiglipModel(config), SiglipImageProcessor(size={"height": 16, "width": 16})
    if kind == "siglip2":
        config = Siglip2Config(text_config=text_side(), vision_config=vision_side(num_patches=4))
        return Siglip2Model(config), Siglip2ImageProcessor(patch_size=8, max_num_patches=4)
    if kind == "xclip":
        frames = {
            "num_frames": 4,
            "mit_hidden_size": 20,
            "mit_intermediate_size": 32,
            "mit_num_hidden_layers": 1,
            "mit_num_attention_heads": 2,
        }
        config = XCLIPConfig(
            text_config=text_side(),
            vision_config=vision_side(**frames),
            projection_dim=20,
            prompt_layers=1,
            prompt_num_attention_heads=2,
        )
        return XCLIPModel(config), VideoMAEImageProcessor(**cropped)
    if kind == "vit":
        return ViTModel(ViTConfig(**vision_side())), CLIPImageProcessor(**cropped)
    config = CLIPConfig(text_config=text_side(), vision_config=vision_side(), projection_dim=20)
    if kind == "clip16":
        config = CLIPConfig(text_config=text_side(), vision_config=vision_side(), projection_dim=16)
    return CLIPModel(config), CLIPImageProcessor(**cropped)


def saved(folder, kind):
    torch.manual_seed(1)
    model, processor = model_of(kind)
    for part in (model, processor, tokenizer()):
        part.save_pretrained(folder)
    return folder


def saved_models(root, *kinds):
    """Folder of each kind of model, written below ``root``."""
    return {kind: saved(root / kind, kind) for kind in kinds}


def extractor(folder, cache=False, **options):
    return make_extractor(EncoderFeatures(model=str(folder), cache=cache, **options), Path("/"))


@functools.cache
def shared(folder, **options):
    """The same without a cache; made once, because loading takes longest here."""
    return extractor(folder, **options)


def frames(count, seed=0, height=30, width=40):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def video(folder, name="v.mp4", content=b"some video"):
    path = folder / name
    path.write_bytes(content)
    return Media("video", path)


def call(media, shown, question="when does the cat jump", duration_s=16.0):
    """What a worker sees of a question about a video of which it was given frames."""
    views = (
        ()
        if shown is None
        else (View("video", shown, (0.0,) * len(shown), duration_s, media.path),)
    )
    info = (MediaInfo(media.kind, 40, 30, duration_s),)
    return Seen("moments/1", question, (media,), info, views)


def features(reader, *calls):
    return reader.encode(reader.collate([reader.prepare(seen) for seen in calls]), CPU)
