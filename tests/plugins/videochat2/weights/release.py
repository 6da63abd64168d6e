"""A release of VideoChat-TPO at a reduced width: all names, full depth, tiny tensors; and one that
has two layers of each stack only, where depth does not matter.
"""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tpokit_mask.released_sam2 import sam2_shapes
from tpokit_mask.sam2.sizes import Sam2Sizes
from tpokit_videochat2.weights.tasks import TOKENS

LISTING = Path(__file__).parents[3] / "golden" / "videochat2" / "released_checkpoint.json"
RELEASED = json.loads(LISTING.read_text())["tensors"]
SHAPES = {name: tuple(shape) for name, (shape, _) in RELEASED.items()}
SHARDS = {name: shard for name, (_, shard) in RELEASED.items()}
WORDS, WIDTH, RANK = 50, 32, 4
SAM2 = Sam2Sizes(
    image_size=1024,
    width=16,
    memory_width=4,
    trunk_width=8,
    trunk_heads=2,
    stages=(2, 6, 36, 4),
    global_blocks=(23, 33, 43),
    windows=(8, 4, 16, 8),
    background=7,
    memory_layers=4,
    feed_forward=8,
    fuser_layers=2,
    dropout=0.1,
    memories=7,
    version="2.0",
)
SHALLOW_SAM2 = replace(
    SAM2,
    image_size=128,
    trunk_heads=1,
    stages=(1, 1, 2, 1),
    global_blocks=(3,),
    windows=(8, 4, 4, 2),
)
SHALLOW = 2
_NUMBERED = re.compile(
    r"(?:vision_encoder\.encoder\.blocks|qformer\.bert\.encoder\.layer|lm\..*?\.layers)\.(\d+)\."
)
# released size to a reduced one, by what names begin with; all other sizes stay
REDUCED = {
    "vision_encoder.": {1024: 16, 3072: 48, 4096: 24},
    "vision_layernorm.": {1024: 16},
    "query_tokens": {32: 3, 768: 24},
    "extra_query_tokens": {64: 2, 768: 24},
    "qformer.": {768: 24, 3072: 32, 1024: 16, 30523: 21, 512: 20},
    "lm.": {4096: WIDTH, 1024: 16, 14336: 40, 32007: WORDS + 7, 16: RANK},
    "project_": {4096: WIDTH, 768: 24},
    "merge_proj.": {4096: WIDTH, 3072: 96},
    "loc_": {4096: WIDTH, 2048: 8},
    "track_embed.": {4096: WIDTH, 768: 3 * SAM2.width},
    "track_embed_decode2.": {4096: WIDTH},
    "temporal_embed.": {4096: WIDTH},
    "action_embed.": {4096: WIDTH},
    "box_token": {4096: WIDTH},
    "temporal_token": {4096: WIDTH},
    "track_token": {4096: WIDTH},
    "cg_model.": {256: 16, 768: 48, 1024: 20, 4096: WIDTH, 770: 9, 45: 5},
    "cg_criterion.": {},
}
CONFIG = {
    "vision": {
        "hidden_size": 16,
        "layers": 23,
        "heads": 2,
        "intermediate_size": 24,
    },
    "connector": {
        "options": {"queries": 3, "extra_queries": 2, "width": 24, "heads": 2, "intermediate": 32}
    },
    "llm": {
        "model_type": "mistral",
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": 40,
        "num_hidden_layers": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_window": None,
    },
}


def reduced_shapes(shallow: bool = False) -> dict[str, tuple[int, ...]]:
    """Every name of the release with a small shape."""
    own = sam2_shapes(SHALLOW_SAM2 if shallow else SAM2)
    sam2 = {f"sam.{name}": shape for name, shape in own.items()}
    names = [name for name in SHAPES if not name.startswith("sam.")]
    if shallow:
        names = [name for name in names if _layer(name) < SHALLOW]
    return {name: _reduced(name) for name in names} | sam2


def _layer(name: str) -> int:
    found = _NUMBERED.match(name)
    return int(found[1]) if found else 0


def _reduced(name: str) -> tuple[int, ...]:
    sizes = next(sizes for start, sizes in REDUCED.items() if name.startswith(start))
    if name.startswith("vision_encoder.encoder.patch_embed.proj.weight"):
        return (sizes[1024], *SHAPES[name][1:])
    return tuple(sizes.get(size, size) for size in SHAPES[name])


def reduced_release(shallow: bool = False) -> dict[str, torch.Tensor]:
    """Random weights, in the number formats of the release."""
    random = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(shape, generator=random) * 0.05).to(torch.bfloat16)
        for name, shape in reduced_shapes(shallow).items()
    }
    ids = "qformer.bert.embeddings.position_ids"
    tensors[ids] = torch.arange(tensors[ids].shape[1])[None]
    return tensors


def write_release(folder: Path, tensors: dict[str, torch.Tensor], shallow: bool = False) -> Path:
    """Four shards with their index, and what lies beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {name: f"model-{SHARDS.get(name, 4):05}-of-00004.safetensors" for name in tensors}
    for file in sorted(set(places.values())):
        content = {name: tensors[name] for name, place in places.items() if place == file}
        save_file(content, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.numel() * t.element_size() for t in tensors.values())},
        "weight_map": places,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    # as in the release, it names another model than the one that was trained
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": 32768}))
    (folder / "videochat2.json").write_text(json.dumps(_config(shallow)))
    return write_tokenizer(folder, added=TOKENS)


def _config(shallow: bool) -> dict:
    described = copy.deepcopy(CONFIG)
    if shallow:
        described["vision"]["layers"] = SHALLOW
        described["connector"]["options"]["layers"] = SHALLOW
        described["llm"]["num_hidden_layers"] = SHALLOW
    return described


def write_tokenizer(folder: Path, words: int = WORDS, added=()) -> Path:
    """A tokenizer of so many words, and added ones behind them."""
    names = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, words))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.add_tokens([AddedToken(token, special=True) for token in added], special_tokens=True)
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    return folder
