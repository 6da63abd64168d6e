"""A random LLaVA-OneVision of a chosen size, composed with one head, and batches for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

import tpokit
from tpokit.batch import ContextIndex, LabelIndex, SlotIndex, TokenIndex
from tpokit.lora import add_lora
from tpokit.types import IGNORED, LossTerm
from tpokit_llava_onevision.backbone import LlavaOnevisionBackbone

_TILE_SIDE, _PATCH = 56, 14


@dataclass(frozen=True)
class Size:
    """Sizes of the language model and of a batch; the defaults make about 0.1 B parameters."""

    layers: int = 12
    width: int = 768
    vocabulary: int = 32_000
    batch: int = 1
    tokens: int = 512
    labelled: float = 0.3  # share of the positions that are answers
    calls: int = 0  # calls of the head in each sample


class PointHead(tpokit.TaskHead):
    """Two numbers from one slot: the smallest head that trains."""

    task = "point"
    tokens = tpokit.TaskTokens(trigger="<point_begin>", slots=("<point>",))
    terms = ("l1",)

    def __init__(self, options: Any, host: tpokit.Host) -> None:
        """A network of two layers."""
        super().__init__(options, host)
        width = host.hidden
        self.network = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def read_target(self, annotation: Any, seen: Any) -> Any:
        """As it is."""
        return annotation

    def forward(self, slots: Tensor, context: Any) -> Tensor:
        """``[n, 1, d]`` to ``[n, 2]``."""
        return self.network(slots[:, 0])

    def loss(self, prediction: Tensor, targets: Tensor) -> dict[str, LossTerm]:
        """Mean distance."""
        distance = (prediction - targets).abs().mean(-1).sum()
        return {"l1": LossTerm(distance, float(len(targets)))}

    def decode(self, prediction: Tensor, media: Any) -> list[Any]:
        """Not used here."""
        return prediction.tolist()


def build(size: Size, lora: bool, headless: bool = False, seed: int = 0) -> tpokit.TpoModel:
    """The composed model in training mode.

    Args:
        size: Of the language model.
        lora: Train LoRA (rank 16) on the language model over a frozen base, and bridge and head;
            else everything but the vision tower.
        headless: Without the head, so that there is no trigger and no logit of one.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=_TILE_SIDE,
            patch_size=_PATCH,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            intermediate_size=3 * size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=max(1, size.width // 64),
            num_key_value_heads=max(1, size.width // 64),
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        ),
        image_token_index=size.vocabulary - 2,
        video_token_index=size.vocabulary - 1,
        image_grid_pinpoints=[[_TILE_SIDE, _TILE_SIDE]],
        tie_word_embeddings=True,
    )
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    backbone = LlavaOnevisionBackbone(
        LlavaOnevisionForConditionalGeneration(config),
        SimpleNamespace(tokenizer=tokenizer, settings=str),
        Path(),
        {"name": "random", "hash": ""},
    )
    heads = (
        {} if headless else {"point": PointHead(tpokit.NoOptions(), tpokit.Host(backbone.width))}
    )
    tokens = {task: head.tokens for task, head in heads.items()}
    table = tpokit.TokenTable.build(backbone.rows, tokens, tokenizer)
    model = tpokit.TpoModel(backbone, heads, table)
    backbone.requires_grad_(not lora)
    backbone.model.model.vision_tower.requires_grad_(False)
    if lora:
        add_lora(backbone, backbone.lora_targets(), 16, 32.0, 0.0, seed)
    return model.train()


def parameters_of(model: nn.Module) -> str:
    """Size of a model in words."""
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M parameters"


def make_batch(model: tpokit.TpoModel, size: Size, seed: int = 0) -> tpokit.Batch:
    """Random words; the last share of each sample is the answer, with the calls at its start."""
    random = torch.Generator().manual_seed(seed)
    shape = size.batch, size.tokens
    ids = torch.randint(0, size.vocabulary - 2, shape, generator=random)
    start = size.tokens - max(2, round(size.tokens * size.labelled))
    labels = torch.full(shape, IGNORED)
    labels[:, start:] = ids[:, start:]
    for call in range(size.calls):
        trigger, slot = model.tokens.ids["<point_begin>"], model.tokens.ids["<point>"]
        ids[:, start + 2 * call], ids[:, start + 2 * call + 1] = trigger, slot
        labels[:, start + 2 * call], labels[:, start + 2 * call + 1] = trigger, IGNORED
    rows, before = torch.nonzero(labels[:, 1:] != IGNORED, as_tuple=True)
    learnt = LabelIndex(rows, before, labels[rows, before + 1])
    task_rows, task_positions = torch.nonzero(ids >= size.vocabulary, as_tuple=True)
    slot_rows, slot_positions = torch.nonzero(ids == size.vocabulary + 1, as_tuple=True)
    called = float((learnt.ids >= size.vocabulary).sum())
    return tpokit.Batch(
        ids=ids,
        mask=torch.ones(shape, dtype=torch.bool),
        labels=labels,
        learnt=learnt,
        tokens=TokenIndex(
            task_rows, task_positions, ids[task_rows, task_positions] - size.vocabulary
        ),
        slots={task: SlotIndex(slot_rows, slot_positions[:, None]) for task in model.heads},
        given={},
        targets={"point": torch.rand(len(slot_rows), 2, generator=random)},
        contexts={task: ContextIndex((), None, None) for task in model.heads},
        questions=None,
        media={},
        counts={
            "language": float(len(learnt.ids)) - called,
            "assign": called,
            "point.l1": float(len(slot_rows)),
        },
        samples=tuple(f"random/{row}" for row in range(size.batch)),
    )
