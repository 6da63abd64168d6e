"""What the sides of `throughput.py` train: one model and one set of conversations for all."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from tpokit.data.mixing import Mixture, number
from tpokit_shapes_world.tiny_model import TinyShape, write_tiny
from tpokit_shapes_world.vocabulary import SPECIAL_WORDS, WORDS

STAGE, ENTRY = "talk", "talk"
RELEASED_IDS = {"<|im_start|>": 151644, "<|im_end|>": 151645, "<image>": 151646, "<video>": 151647}


@dataclass(frozen=True)
class Size:
    """A model and what is said about its images.

    Attributes:
        shape: Of the model.
        rows: Of the word table; ``None``: as many as there are words.
        grids: Sizes that an image is cut into, in tiles (height, width).
        words: Middle and spread (of the logarithm) of the number of words of an answer.
        turns: Questions of a conversation, at most.
    """

    shape: TinyShape
    rows: int | None
    grids: tuple[tuple[int, int], ...] = ((1, 1),)
    words: tuple[float, float] = (12.0, 0.6)
    turns: int = 2


SIZES = {
    "tiny": Size(TinyShape(), None),
    "0.2b": Size(
        TinyShape(
            tile_side=112,
            patch=14,
            vision_width=384,
            vision_layers=6,
            vision_inner=1536,
            width=512,
            layers=20,
            inner=2816,
            heads=8,
            positions=8192,
        ),
        rows=152_000,
        grids=((1, 1), (1, 2), (2, 1), (2, 2)),
        words=(25.0, 0.8),
        turns=3,
    ),
}


@dataclass(frozen=True)
class Files:
    """Where everything is.

    Attributes:
        model: Folder of a whole checkpoint.
        data: For each kind of reader a file with the same conversations.
        image_id: Of the token that stands for an image.
    """

    model: Path
    data: dict[str, Path] = field(default_factory=dict)
    image_id: int = 0


def write_model(size: Size, folder: Path, dtype: torch.dtype, seed: int = 0) -> int:
    """Write a checkpoint with random weights; returns the id of its image token."""
    write_tiny(folder, size.shape)
    config = LlavaOnevisionConfig.from_pretrained(folder)
    image_id = config.image_token_index
    if size.rows is not None:
        image_id = RELEASED_IDS["<image>"]
        _spread_ids(folder, config, size)
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config)
    model.to(dtype).save_pretrained(folder)
    return image_id


def _spread_ids(folder: Path, config: LlavaOnevisionConfig, size: Size) -> None:
    """A table of the released size with special tokens at the released places (ms-swift looks for
    images under the released id), an output layer that is the table, and more grids.
    """
    ids = {word: place for place, word in enumerate(WORDS)}
    ids.update(RELEASED_IDS)
    tokens = folder / "tokenizer.json"
    described = json.loads(tokens.read_text(encoding="utf-8"))
    described["model"]["vocab"] = ids
    for added in described["added_tokens"]:
        added["id"] = ids[added["content"]]
    tokens.write_text(json.dumps(described), encoding="utf-8")
    side = size.shape.tile_side
    grids = [[height * side, width * side] for height, width in size.grids]
    text = config.text_config
    text.vocab_size = size.rows
    text.bos_token_id, text.eos_token_id = ids["<|im_start|>"], ids["<|im_end|>"]
    text.tie_word_embeddings = config.tie_word_embeddings = True
    config.image_token_index, config.video_token_index = ids["<image>"], ids["<video>"]
    config.image_grid_pinpoints = grids
    config.save_pretrained(folder)
    for path in folder.glob("*processor_config.json"):
        processor = json.loads(path.read_text(encoding="utf-8"))
        for part in (processor, processor.get("image_processor", {})):
            if "image_grid_pinpoints" in part:
                part["image_grid_pinpoints"] = grids
        path.write_text(json.dumps(processor), encoding="utf-8")


def write_data(size: Size, folder: Path, samples: int, seed: int) -> dict[str, Path]:
    """Write conversations about images, in the order in which tpokit takes them.

    Args:
        size: Lengths of answers, number of questions.
        folder: Of the files.
        samples: Number of conversations.
        seed: Of the recipe; tpokit's order follows from it.
    """
    said = random.Random(seed)
    (folder / "images").mkdir()
    conversations = []
    for index in range(samples):
        image = folder / "images" / f"{index}.jpg"
        _paint(image, said)
        conversations.append((index, image, _turns(size, said)))
    mixture = Mixture({ENTRY: 1.0}, {ENTRY: samples}, number("stage", seed, STAGE))
    ordered = [conversations[mixture.draw(position).index] for position in range(samples)]
    ours = [_our_line(index, image, turns) for index, image, turns in conversations]
    paths = {name: folder / f"{name}.jsonl" for name in ("ours", "marked", "plain")}
    _write(paths["ours"], ours)
    _write(paths["marked"], [_marked_line(image, turns) for _, image, turns in ordered])
    _write(paths["plain"], [_plain_line(image, turns) for _, image, turns in ordered])
    return paths


def _paint(path: Path, said: random.Random) -> None:
    """A small photograph of nothing: smooth colours, and a size of its own."""
    width, height = said.randint(96, 256), said.randint(96, 256)
    noise = np.random.default_rng(said.randrange(2**32)).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def _turns(size: Size, said: random.Random) -> list[tuple[str, str]]:
    middle, spread = size.words
    plain = [word for word in WORDS if word.isalpha() and word not in SPECIAL_WORDS]

    def text(words: float) -> str:
        return " ".join(said.choices(plain, k=max(1, min(400, round(words)))))

    return [
        (text(said.uniform(4, 16)), text(middle * said.lognormvariate(0, spread)))
        for _ in range(said.randint(1, size.turns))
    ]


def _our_line(index: int, image: Path, turns: list[tuple[str, str]]) -> dict[str, Any]:
    said = [
        {"role": role, "text": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return {"id": str(index), "image": str(image), "turns": said}


def _marked_line(image: Path, turns: list[tuple[str, str]]) -> dict[str, Any]:
    """As LLaMA-Factory and ms-swift read it: the image is a mark in the first question."""
    said = [
        {"role": role, "content": "<image>" * (not place and role == "user") + text}
        for place, turn in enumerate(turns)
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return {"messages": said, "images": [str(image)]}


def _plain_line(image: Path, turns: list[tuple[str, str]]) -> dict[str, Any]:
    """As chat templates of transformers read it."""
    said: list[dict[str, Any]] = []
    for question, answer in turns:
        seen = [{"type": "image"}] if not said else []
        said.append({"role": "user", "content": [*seen, {"type": "text", "text": question}]})
        said.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return {"messages": said, "image": str(image)}


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
