"""Conversations over a processor with the release's own vocabulary."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.core.data.fakes import PointHead
from tpokit import (
    ConnectorChoice,
    ConnectorHost,
    Media,
    MediaNeed,
    Sample,
    TaskTokens,
    TokenTable,
    View,
)
from tpokit.data import conversation
from tpokit.data.conversation import Encoder
from tpokit_videochat2.config import IMAGENET_MEAN, IMAGENET_STD
from tpokit_videochat2.connectors.options import QFormerOptions
from tpokit_videochat2.connectors.qformer import QFormerConnector
from tpokit_videochat2.processor import VideoChat2Processor
from tpokit_videochat2.tokenizer import convert_sentencepiece

GOLDEN = Path(__file__).parents[2] / "golden" / "videochat2"
MODEL = GOLDEN / "tokenizer.model"
FACTS = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))
HOST = ConnectorHost(vision=8, hidden=16, grid=(2, 2))
CLIP_TOKENS = 96
MEAN, STD = IMAGENET_MEAN, IMAGENET_STD


class BoxHead(PointHead):
    task = "box"
    tokens = TaskTokens("<box_begin>", ("<boxes>",))


class MomentHead(PointHead):
    task = "moment"
    tokens = TaskTokens("<time_begin>", ("<temp>",))


class TrackHead(PointHead):
    task = "track"
    tokens = TaskTokens("<track_begin>", ("<tracking>",), given="<track_box>")


class ListeningHead(BoxHead):
    """Wants the words of the question."""

    def context_need(self):
        return replace(super().context_need(), question=True)


@cache
def converted():
    return convert_sentencepiece(MODEL).backend_tokenizer.to_str()


def released_tokenizer():
    """A fresh one each time, as heads teach it their tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(converted()),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )


@cache
def untaught_tokenizer():
    """One for all that teach it nothing: it takes a while to make."""
    return released_tokenizer()


def processor_of(**changes):
    """As released, but for small pictures."""
    settings = {
        "image_size": 16,
        "mean": MEAN,
        "std": STD,
        "rows": 32000,
        "max_length": 4096,
        "need": MediaNeed(frames=4),
        "connector": (ConnectorChoice(QFormerConnector, QFormerOptions()), HOST),
    }
    if "tokenizer" not in changes:
        settings["tokenizer"] = untaught_tokenizer()
    return VideoChat2Processor(**{**settings, **changes})


@cache
def encoder_of(*kinds, **changes):
    """Its heads are of these kinds."""
    if kinds:
        changes = {"tokenizer": released_tokenizer(), **changes}
    processor = processor_of(**changes)
    heads = {kind.task: kind(kind.Options(), 4) for kind in kinds}
    tokens = {task: head.tokens for task, head in heads.items()}
    table = TokenTable.build(processor.rows, tokens, processor.tokenizer)
    return Encoder(processor, heads, table, processor.max_length)


def view_of(kind="image", frames=1, times_s=None, size=(8, 8), seed=0, name="a"):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    times_s = tuple(float(index) for index in range(frames)) if times_s is None else times_s
    return View(kind, pixels, times_s, 0.0 if kind == "image" else 10.0, Path(f"{name}.png"))


def show(monkeypatch, **views):
    """Have media read as these views, by the stem of their files."""

    def read(medium, needs, **_):
        return dict.fromkeys(needs, views[medium.path.stem])

    monkeypatch.setattr(conversation, "read_media", read)


def media_of(*names):
    """Of files that nobody reads; a name that begins with c is a clip, any other an image."""
    return tuple(Media("video" if name.startswith("c") else "image", Path(name)) for name in names)


def sample_of(*turns, **fields):
    return Sample("7", turns, **fields)


def words_of(encoder, ids):
    """Each token as it is written, media as one word."""
    names = {index: name for name, index in encoder.tokens.ids.items()}
    tokenizer = encoder.processor.tokenizer
    return [names.get(index) or tokenizer.convert_ids_to_tokens(index) for index in ids]


def text_of(encoder, ids):
    """Ids put together again; a run of media tokens is written ``{V}``."""
    text = "".join(words_of(encoder, ids)).replace("\u2581", " ").replace("<0x0A>", "\n")
    return text.replace("<unk>" * CLIP_TOKENS, "{V}")
