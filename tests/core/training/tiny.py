"""A backbone, two heads and a data source through the public contracts, a few thousand parameters.

Named by path in a registry file, as a stranger's plugin would be.
"""

import hashlib
import json
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

import tpokit
from tpokit import DataError, LossTerm, Media, MediaNeed, Sample, TaskTokens, Turn

WORDS = "<unk> <pad> <user> <answer> <end> <image> it is here and where the ring square no yes"
ROWS = 24


class TinyOptions(tpokit.Options):
    model: str | None = None
    width: int = 16
    dropout: float = 0.0


class TinyProcessor(tpokit.Processor):
    end_of_turn = "<end>"
    max_length = 100

    def __init__(self):
        inner = Tokenizer(
            models.WordLevel({w: i for i, w in enumerate(WORDS.split())}, unk_token="<unk>")
        )
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner,
            unk_token="<unk>",
            pad_token="<pad>",
            additional_special_tokens=["<user>", "<answer>", "<end>", "<image>"],
        )

    def media_need(self):
        return MediaNeed(frames=1)

    def render(self, messages, answer_next):
        openings = {"user": "<user>", "assistant": "<answer>"}
        text = ""
        for message in messages:
            said = " ".join(part.get("text", "<image>") for part in message["content"])
            text += f"{openings[message['role']]} {said}"
            text += self.end_of_turn if message["role"] == "assistant" else " "
        return text + ("<answer> " if answer_next else "")

    def expand(self, text, views):
        return text.replace("<image>", "<image><image>")

    def collate_media(self, views):
        means = [float(view.frames.mean()) / 255 for row in views for view in row]
        return {"pixels": torch.tensor(means).reshape(-1, 1)}


class Layer(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # a bias would have no gradient at all
        self.inner = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden, allowed):
        query, key, value = self.query(hidden), self.key(hidden), self.value(hidden)
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        hidden = hidden + scores.masked_fill(~allowed, -1e9).softmax(-1) @ value
        return hidden + self.dropout(torch.tanh(self.inner(hidden)))


class TinyBackbone(tpokit.Backbone):
    Options = TinyOptions
    rows = ROWS

    def __init__(self, options):
        super().__init__()
        self.options = options
        self.processor = TinyProcessor()
        self.width = options.width
        self.vision = nn.Linear(1, 4)
        self.connector = nn.Linear(4, 2 * options.width)
        self.table = nn.Embedding(ROWS, options.width)
        self.places = nn.Embedding(100, options.width)
        self.layers = nn.ModuleList(Layer(options.width, options.dropout) for _ in range(2))
        self.words = nn.Linear(options.width, ROWS, bias=False)

    @classmethod
    def build(cls, options, folder):
        name = "random"
        saved = {}
        if options.model is not None:
            name = options.model
            saved = load_file(folder / name / "weights.safetensors")
            options = TinyOptions(
                **{**json.loads((folder / name / "options.json").read_text()), "model": name}
            )
        backbone = cls(options)
        if saved:
            backbone.load_state_dict(saved)
        digest = hashlib.sha256()
        for parameter in backbone.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        backbone.base = {"name": name, "hash": digest.hexdigest()}
        return backbone

    def parts(self):
        llm = [self.table, self.places, self.layers, self.words]
        return {"vision": [self.vision], "connector": [self.connector], "llm": llm}

    def lora_targets(self):
        return r"layers\.\d+\.(query|value)"

    def embed(self, batch, idle_vision):
        embeds = self.embed_ids(batch.ids)
        pixels = batch.media["pixels"]
        if len(pixels):
            seen = self.connector(self.vision(pixels)).reshape(-1, self.width)
            return embeds.index_put(torch.nonzero(batch.ids == 5, as_tuple=True), seen)
        if idle_vision:
            return embeds + 0.0 * self.connector(self.vision(embeds.new_zeros(1, 1))).sum()
        return embeds

    def embed_ids(self, ids):
        return self.table(ids.clamp(max=ROWS - 1))

    def decode(self, embeds, mask, positions, cache=None, use_cache=False):
        hidden = embeds + self.places(positions)
        hidden = hidden if cache is None else torch.cat([cache, hidden], dim=1)
        seen = hidden if use_cache else None  # all of it goes through the layers again
        causal = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device)
        for layer in self.layers:
            hidden = layer(hidden, causal.tril()[None] & mask[:, None, :])
        new = hidden[:, -embeds.shape[1] :]
        return functional.layer_norm(new, new.shape[-1:]), seen

    def logits(self, hidden):
        return self.words(hidden)

    def identity(self):
        return dict(self.base)

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: v.contiguous() for k, v in self.state_dict().items()},
            folder / "weights.safetensors",
        )
        (folder / "options.json").write_text(self.options.model_dump_json(exclude={"model"}))


class Numbers(list):
    """What a tiny head finds."""

    def to_json(self):
        return {"numbers": list(self)}


class TinyHeadOptions(tpokit.Options):
    inner: int = 4
    poison: float = Field(default=0.0, description="A target above this makes the loss NaN.")


class PointHead(tpokit.TaskHead):
    """Two numbers from two slots, and a given number."""

    task = "point"
    tokens = TaskTokens("<point_begin>", ("<point_x>", "<point_y>"), given="<point_given>")
    terms = ("error", "square")
    Options = TinyHeadOptions

    def __init__(self, options, host):
        super().__init__(options, host)
        self.inner = nn.Linear(host.hidden, options.inner)
        self.outer = nn.Linear(options.inner, 1)
        self.giver = nn.Linear(1, host.hidden)

    def read_target(self, annotation, seen):
        if len(annotation) != 2:
            raise DataError(f"{seen.where}: {annotation!r} is not a point")
        return list(annotation)

    def read_given(self, annotation, seen):
        return [float(annotation)]

    def collate(self, targets):
        return torch.tensor(targets).reshape(-1, 2)

    def collate_given(self, given):
        return torch.tensor(given).reshape(-1, 1)

    def encode_given(self, given):
        return self.giver(given)

    def idle_inputs(self):
        return {**super().idle_inputs(), "given": torch.zeros(1, 1)}

    def forward(self, slots, context):
        return self.outer(torch.relu(self.inner(slots)))[..., 0]

    def loss(self, prediction, targets):
        wrong = prediction - targets
        if self.options.poison and bool((targets > self.options.poison).any()):
            wrong = wrong * float("nan")
        count = float(len(targets))
        return {
            "error": LossTerm(wrong.abs().sum(), count),
            "square": LossTerm(wrong.square().sum(), count),
        }

    def decode(self, prediction, media):
        return [Numbers(point) for point in prediction.tolist()]


class MassHead(tpokit.TaskHead):
    """One number; as large as the other head, so that mixed-up gradients would fit."""

    task = "mass"
    tokens = TaskTokens("<mass_begin>", ("<mass_slot>",))
    terms = ("error",)
    Options = TinyHeadOptions

    def __init__(self, options, host):
        super().__init__(options, host)
        self.inner = nn.Linear(host.hidden, options.inner)
        self.outer = nn.Linear(options.inner, 1)
        self.register_buffer("offset", torch.tensor([0.5]))

    def read_target(self, annotation, seen):
        return [annotation]

    def collate(self, targets):
        return torch.tensor(targets).reshape(-1, 1)

    def forward(self, slots, context):
        return self.outer(torch.relu(self.inner(slots)))[:, 0] + self.offset

    def loss(self, prediction, targets):
        return {"error": LossTerm((prediction - targets).abs().sum(), float(len(targets)))}

    def decode(self, prediction, media):
        return [Numbers([mass]) for mass in prediction.tolist()]


class LineOptions(tpokit.Options):
    kinds: tuple[str, ...] = ("talk",)
    image: str | None = None
    count: int = 40


class Lines(tpokit.DataSource):
    """Sample i is of kind i modulo the number of kinds."""

    Options = LineOptions

    def __init__(self, options, folder):
        self.options = options
        self.image = None if options.image is None else Path(folder) / options.image

    def __len__(self):
        return self.options.count

    def read(self, index, random):
        kind = self.options.kinds[index % len(self.options.kinds)]
        value = 0.1 * (index % 7)
        words = " ".join(random.choice(["it", "is", "the", "ring", "square"], 1 + index % 4))
        question = Turn("user", f"where {words}")
        media = ()
        if kind == "seen":
            media = (Media("image", self.image),)
            kind = "talk"
        if kind == "talk":
            return Sample(str(index), (question, Turn("assistant", f"{words} yes")), media)
        if kind == "given":
            return Sample(
                str(index),
                (Turn("user", "is <point> here"), Turn("assistant", "no <point> and <point>")),
                targets={"point": ((value, 0.2), (0.3, value))},
                given={"point": (value,)},
            )
        target = (value, 0.5) if kind == "point" else value
        return Sample(
            str(index),
            (question, Turn("assistant", f"here <{kind}>")),
            media,
            targets={kind: (target,)},
        )


@tpokit.hookimpl
def tpokit_backbones():
    return [tpokit.BackboneSpec(name="tiny", factory=":TinyBackbone", options=":TinyOptions")]


@tpokit.hookimpl
def tpokit_heads():
    return [
        tpokit.HeadSpec(
            name="point",
            task="point",
            terms=("error", "square"),
            losses={"both": {"error": 1.0, "square": 0.5}},
            factory=":PointHead",
            options=":TinyHeadOptions",
        ),
        tpokit.HeadSpec(
            name="mass",
            task="mass",
            terms=("error",),
            losses={"plain": {"error": 2.0}},
            factory=":MassHead",
            options=":TinyHeadOptions",
        ),
    ]


@tpokit.hookimpl
def tpokit_sources():
    return [tpokit.SourceSpec(name="lines", factory=":Lines", options=":LineOptions")]
