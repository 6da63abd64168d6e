"""The tiny release of tests/golden/videochat2 (bridge) as a model of ours, and its stored runs."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import MistralConfig, PreTrainedTokenizerFast

from tpokit import Context, Host, TaskHead, TaskTokens, TokenTable, TpoModel
from tpokit.batch import Batch, GivenIndex, LabelIndex, TokenIndex
from tpokit.checkpoints.tensors import saved_name
from tpokit.lora import add_lora
from tpokit_mask.adapter import MaskAdapter
from tpokit_region.head import RegionHead
from tpokit_region.options import RegionOptions
from tpokit_videochat2.backbone import VideoChat2Backbone
from tpokit_videochat2.config import IMAGENET_MEAN, IMAGENET_STD
from tpokit_videochat2.options import VideoChat2Options
from tpokit_videochat2.weights.released import VideoChatTpoWeights

FOLDER = Path(__file__).parents[2] / "golden" / "videochat2"
FACTS = json.loads((FOLDER / "bridge.json").read_text())
SIZES = FACTS["config"]
RUNS = load_file(FOLDER / "bridge_rest.safetensors")
WEIGHTS = {
    name.removeprefix("weights."): tensor
    for name, tensor in {**RUNS, **load_file(FOLDER / "bridge_weights_1.safetensors")}.items()
    if name.startswith("weights.")
}
WORDS = SIZES["base"]
SPECIAL = SIZES["special_ids"]
SCALE = 2.0
"""alpha / r of the adapters."""


class TrackHead(TaskHead):
    """The layers of the mask head that need no SAM 2, with the tokens of the release."""

    task = "mask"
    tokens = TaskTokens(trigger="<track_begin>", slots=("<tracking>",), given="<track_box>")
    terms = ()

    def __init__(self, options, host: Host):
        super().__init__(options, host)
        self.adapter = MaskAdapter(host.hidden, 256, 1, "mlp")
        self.box_decoder = nn.Sequential(
            nn.Linear(host.hidden, host.hidden), nn.ReLU(), nn.Linear(host.hidden, 4)
        )
        self.box_encoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, host.hidden))

    def encode_given(self, given):
        return self.box_encoder(given)

    def read_target(self, annotation, seen):
        return annotation

    def forward(self, slots, context: Context):
        return self.adapter(slots)

    def loss(self, prediction, targets):
        return {}

    def decode(self, prediction, media):
        return list(prediction)


class TemporalSlot(TrackHead):
    """The temporal head's tokens alone."""

    task = "temporal"
    tokens = TaskTokens(trigger="<time_begin>", slots=("<temp>",))

    def __init__(self, options, host: Host):
        TaskHead.__init__(self, options, host)


def tiny_folder(folder: Path) -> Path:
    """Configuration and a tokenizer of as many words; no weights."""
    llm = MistralConfig(
        vocab_size=WORDS,
        hidden_size=SIZES["lh"],
        intermediate_size=SIZES["li"],
        num_hidden_layers=SIZES["ll"],
        num_attention_heads=SIZES["lheads"],
        num_key_value_heads=SIZES["lkv"],
        max_position_embeddings=256,
        rms_norm_eps=SIZES["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": SIZES["rope_theta"]},
        sliding_window=None,
    )
    described = {
        "vision": {
            "image_size": 224,
            "patch_size": SIZES["patch"],
            "hidden_size": SIZES["embed"],
            "layers": SIZES["depth"] - 1,
            "heads": SIZES["vheads"],
            "intermediate_size": 4 * SIZES["embed"],
            "pretrained_grid": 224 // SIZES["patch"],
        },
        "connector": {
            "options": {
                "queries": SIZES["nq"],
                "extra_queries": SIZES["ne"],
                "layers": SIZES["ql"],
                "width": SIZES["qh"],
                "heads": SIZES["qheads"],
                "intermediate": SIZES["qi"],
            }
        },
        "llm": json.loads(llm.to_json_string()),
    }
    folder.mkdir(exist_ok=True)
    (folder / "videochat2.json").write_text(json.dumps(described))
    words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, WORDS))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def released_model(folder: Path) -> TpoModel:
    """The model with every weight of the golden file; an unknown or missing name fails."""
    options = VideoChat2Options(model=str(tiny_folder(folder / "tiny")), weights="random")
    backbone = VideoChat2Backbone.build(options, folder)
    host = Host(backbone.width, backbone.vision_width)
    region = RegionHead(RegionOptions(hidden=32, given=False), host)
    heads = {"region": region, "mask": TrackHead(None, host), "temporal": TemporalSlot(None, host)}
    tokens = TokenTable.build(
        backbone.rows,
        {task: head.tokens for task, head in heads.items()},
        backbone.processor.tokenizer,
    )
    model = TpoModel(backbone, heads, tokens)
    add_lora(backbone, backbone.lora_targets(), 4, 8.0, 0.0, seed=0)
    used = fill(model, region)
    assert used == set(WEIGHTS), "strict"
    return model.requires_grad_(True).eval()


def fill(model: TpoModel, region: RegionHead) -> set[str]:
    """Put the published weights in place by the rules of the backbone; names that were used."""
    rules = VideoChatTpoWeights.from_published({n: tuple(t.shape) for n, t in WEIGHTS.items()})
    ours = {saved_name(name): parameter for name, parameter in model.named_parameters()}
    used = set()
    with torch.no_grad():
        for published in rules.tensors(model.tokens):
            if published.name not in WEIGHTS:
                assert published.optional, published.name
                continue
            tensor = WEIGHTS[published.name]
            assert tuple(tensor.shape) == published.shape
            used.add(published.name)
            for place in published.places:
                rows, our_rows = (slice(*(r or (None,))) for r in (place.rows, place.our_rows))
                target = ours[place.ours][our_rows]
                target.copy_(tensor[rows].reshape(target.shape))
        for added in rules.added(model.tokens):
            product = WEIGHTS[added.left][slice(*added.rows)] @ WEIGHTS[added.right]
            ours[added.ours][slice(*added.our_rows)] += added.scale * product
        head = model.head("mask")
        for layers, published in (
            (region.box_decoder, "loc_decoder.{}"),
            (head.box_encoder, "loc_encoder.{}"),
            (head.adapter.layers[0], "track_embed.layers.{}"),
            (head.box_decoder, "track_embed_decode2.layers.{}"),
        ):
            for place, number in ((0, 0), (2, 2 if published.startswith("loc") else 1)):
                for kind in ("weight", "bias"):
                    name = f"{published.format(number)}.{kind}"
                    getattr(layers[place], kind).copy_(WEIGHTS[name])
                    used.add(name)
    return used | {name for name in WEIGHTS if name.startswith("sam.")}


def our_ids(model: TpoModel, released: torch.Tensor) -> torch.Tensor:
    """Ids of the release as ours: task tokens have the same names and other numbers."""
    table = {SPECIAL[name]: index for name, index in model.tokens.ids.items()}
    return released.clone().apply_(lambda index: table.get(index, index))


def pixels(rows: list[int], frames: int) -> torch.Tensor:
    """Stored frames of some rows as the tower sees them."""
    small = RUNS["frames_u8_small"][rows, :frames].flatten(0, 1)
    large = small.repeat_interleave(4, -1).repeat_interleave(4, -2)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (large / 255 - mean) / std


def batch_of(model: TpoModel, case: str, clips: list[int], given=None) -> Batch:
    """A stored run as a batch; ``clips``: frames of the clip of each row."""
    name = "prompt_ids" if f"{case}.prompt_ids" in RUNS else "input_ids"
    released = RUNS[f"{case}.{name}"]
    ids = our_ids(model, released)
    mask = RUNS.get(f"{case}.attention_mask", torch.ones_like(ids)).bool()
    rows = model.tokens.rows
    given_id = model.tokens.given_id("mask")
    found = torch.nonzero((ids >= rows) & (ids != given_id), as_tuple=True)
    places = torch.nonzero(ids == given_id, as_tuple=True)
    nothing = torch.empty(0, dtype=torch.long)
    return Batch(
        ids=ids,
        mask=mask,
        labels=ids,
        learnt=LabelIndex(nothing, nothing, nothing),
        tokens=TokenIndex(*found, ids[found] - rows),
        slots={},
        given={"mask": GivenIndex(*places, given)} if given is not None else {},
        targets={},
        contexts={},
        questions=None,
        media={
            "pixels": pixels(list(range(len(ids))), clips[0]),
            "frames": clips,
            "tokens": [SIZES["nq"] + SIZES["ne"]] * len(clips),
        },
        counts={},
        samples=("golden",) * len(ids),
    )
