"""The shipped pieces put together at random: tiny LLaVA-OneVision, region head, shapes world."""

from pathlib import Path

import numpy as np
import torch

from tpokit import Host, Sample, TokenTable, TpoModel, Turn
from tpokit.data.collate import Collator
from tpokit.data.conversation import Encoder
from tpokit_llava_onevision.backbone import LlavaOnevisionBackbone
from tpokit_llava_onevision.options import LlavaOnevisionOptions
from tpokit_region.head import RegionHead
from tpokit_region.options import RegionOptions
from tpokit_shapes_world.options import ShapesWorldOptions
from tpokit_shapes_world.source import ShapesWorld
from tpokit_shapes_world.tiny_model import TinyShape, write_tiny

SMALL = TinyShape(vision_width=32, vision_layers=2, vision_inner=48, width=48, layers=2, inner=64)


def tiny_folder(folder: Path) -> Path:
    """Configuration, tokenizer and processor of a very small model, without weights."""
    return write_tiny(folder / "tiny", SMALL)


def region_head(host: Host) -> RegionHead:
    return RegionHead(RegionOptions(), host)


def tiny_model(folder: Path, *, seed: int = 0, make_head=region_head, **options) -> TpoModel:
    """A composed model with random weights."""
    torch.manual_seed(seed)
    chosen = LlavaOnevisionOptions(model=str(tiny_folder(folder)), weights="random", **options)
    backbone = LlavaOnevisionBackbone.build(chosen, folder)
    head = make_head(Host(backbone.width, backbone.vision_width))
    heads = {head.task: head}
    tokens = TokenTable.build(backbone.rows, {head.task: head.tokens}, backbone.processor.tokenizer)
    model = TpoModel(backbone, heads, tokens)
    torch.nn.init.normal_(model.bridge.output.weight, std=0.5)
    return model


def encoder_of(model: TpoModel) -> Encoder:
    heads = {task: model.head(task) for task in model.heads}
    processor = model.backbone.processor
    return Encoder(processor, heads, model.tokens, processor.max_length)


def collator_of(model: TpoModel, padding="right") -> Collator:
    heads = {task: model.head(task) for task in model.heads}
    return Collator(model.backbone.processor, heads, model.tokens, padding)


def samples(folder: Path, count: int, **options) -> list[Sample]:
    """Samples of the shapes world."""
    source = ShapesWorld(ShapesWorldOptions(folder=folder / "media", **options), folder)
    return [source.read(index, np.random.default_rng(index)) for index in range(count)]


def mixed_samples(folder: Path) -> list[Sample]:
    """Several boxes in an answer, several turns, a video, text only, and none at all."""
    boxes = samples(folder, 2, kinds={"two_regions": 1.0}, turns=(1, 2))
    talk = samples(folder, 2, turns=(2, 3))
    clip = samples(folder, 1, frames=4)
    text = Sample("text", (Turn("user", "is this a ring"), Turn("assistant", "no")))
    both = Sample(
        "given",
        (
            Turn("user", "what is in <region> ?"),
            Turn("assistant", "the red ring is here <region> and that is all"),
            Turn("user", "and where is the blue square ?"),
            Turn("assistant", "here it is <region>"),
        ),
        media=boxes[0].media,
        targets={"region": ((0.1, 0.2, 0.4, 0.5), (0.5, 0.5, 0.9, 0.8))},
        given={"region": ((0.1, 0.2, 0.4, 0.5),)},
    )
    return [*boxes, *talk, *clip, text, both]
