"""Rules of all plugins for the released VideoChat-TPO: every name, and where it goes."""

import json
import math

import pytest

from tests.plugins.videochat2.released_bridge import WEIGHTS as BRIDGE
from tests.plugins.videochat2.weights.release import (
    LISTING,
    SHAPES,
    WIDTH,
    WORDS,
    reduced_shapes,
    write_release,
    write_tokenizer,
)
from tests.plugins.videochat2.weights.rules import TASKS, all_tensors, table
from tpokit import CheckpointError, TaskTokens, TokenTable, UsageError
from tpokit.interfaces import Place
from tpokit_videochat2.config import read_config
from tpokit_videochat2.tokenizer import convert_sentencepiece, load_tokenizer
from tpokit_videochat2.weights.released import VideoChatTpoWeights

LLM = "lm.base_model.model."
NEVER_USED = {
    **{"project_down": 2, "merge_proj": 2, "temporal_embed": 4, "action_embed": 4},
    **{"qformer": 75, "cg_model": 7, "cg_criterion": 1},
}
"""Tensors of the release that go nowhere, by what their names begin with."""


@pytest.fixture
def rules():
    return VideoChatTpoWeights.from_published(reduced_shapes())


@pytest.fixture
def tokens(tmp_path):
    return table(tmp_path / "tokens")


# ---- all of it ----


@pytest.mark.parametrize("shapes", [SHAPES, reduced_shapes()], ids=["released", "reduced"])
def test_every_name_of_the_release_is_known_with_its_shape(tokens, shapes):
    found = all_tensors(shapes, tokens)
    assert {name: tensor.shape for name, tensor in found.items()} == shapes
    assert len(found) == 2594


def test_the_tensors_add_up_to_the_bytes_of_the_index(tokens):
    found = all_tensors(SHAPES, tokens)
    numbers = {tensor.name: math.prod(tensor.shape) for tensor in found.values()}
    eight = [name for name, tensor in found.items() if tensor.dtype == "int64"]
    assert eight == ["qformer.bert.embeddings.position_ids"]
    total = sum(count * (8 if name in eight else 2) for name, count in numbers.items())
    assert total == json.loads(LISTING.read_text())["total_bytes"] == 16_202_736_564


def test_what_is_not_used_is_listed_with_its_reason(tokens):
    found = all_tensors(SHAPES, tokens)
    nowhere = [tensor for tensor in found.values() if not tensor.places]
    counts: dict[str, int] = {}
    for tensor in nowhere:
        start = tensor.name.partition(".")[0]
        counts[start] = counts.get(start, 0) + 1
        assert tensor.unused, tensor.name
        assert tensor.optional, tensor.name
    assert counts == NEVER_USED
    partly = {name for name, tensor in found.items() if tensor.places and tensor.unused}
    assert partly == {
        f"{LLM}model.embed_tokens.weight",
        f"{LLM}lm_head.base_layer.weight",
        f"{LLM}lm_head.lora_B.default.weight",
    }


def test_no_place_is_filled_twice(tokens):
    filled: dict[tuple[str | None, str], list[tuple[int, int]]] = {}
    for tensor in all_tensors(reduced_shapes(), tokens).values():
        for place in tensor.places:
            rows = place.our_rows or (0, 10**9)
            for first, behind in filled.setdefault((place.file, place.ours), []):
                assert rows[1] <= first or rows[0] >= behind, place
            filled[place.file, place.ours].append(rows)
    assert sorted(filled[None, "bridge.input.weight"]) == [(row, row + 1) for row in range(6)]
    assert sorted(filled[None, "bridge.output.weight"]) == [(row, row + 1) for row in range(3)]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("vision_encoder.encoder.blocks.7.attn.qkv.weight", "vision.blocks.7.self_attn.qkv.weight"),
        ("vision_encoder.encoder.blocks.7.attn.v_bias", "vision.blocks.7.self_attn.qkv.v_bias"),
        ("vision_encoder.encoder.patch_embed.proj.weight", "vision.patch_embed.weight"),
        ("vision_layernorm.bias", "connector.norm.bias"),
        ("extra_query_tokens", "connector.extra_queries"),
        (
            "qformer.bert.encoder.layer.2.crossattention.self.key.weight",
            "connector.qformer.encoder.layer.2.crossattention.attention.key.weight",
        ),
        ("project_up.weight", "connector.projection.weight"),
        (f"{LLM}model.norm.weight", "llm.model.norm.weight"),
        (
            f"{LLM}model.layers.3.mlp.up_proj.base_layer.weight",
            "llm.model.layers.3.mlp.up_proj.weight",
        ),
        (
            f"{LLM}model.layers.3.mlp.up_proj.lora_B.default.weight",
            "llm.model.layers.3.mlp.up_proj.lora_B.default.weight",
        ),
    ],
)
def test_names_of_the_backbone_find_their_places(rules, tokens, theirs, ours):
    found = {tensor.name: tensor for tensor in rules.tensors(tokens)}
    assert found[theirs].places == (Place(f"backbone.{ours}"),)


# ---- the seven tokens ----


def test_rows_of_triggers_and_vectors_of_slots_go_to_the_bridge(rules, tokens):
    found = {tensor.name: tensor for tensor in rules.tensors(tokens)}
    words = found[f"{LLM}model.embed_tokens.weight"]
    assert words.places == (
        Place("backbone.llm.model.embed_tokens.weight", rows=(0, 50)),
        Place("bridge.input.weight", (50, 51), (1, 2)),  # ours are sorted by task: mask, region, ..
        Place("bridge.input.weight", (51, 52), (2, 3)),
        Place("bridge.input.weight", (54, 55), (0, 1)),
    )
    assert words.unused == "rows of slots and of <track_box> are always written over"
    assert found["track_token"].places == (Place("bridge.input.weight", our_rows=(3, 4)),)
    assert found["box_token"].places == (Place("bridge.input.weight", our_rows=(4, 5)),)
    assert found["temporal_token"].places == (Place("bridge.input.weight", our_rows=(5, 6)),)
    output = found[f"{LLM}lm_head.base_layer.weight"]
    assert output.places[1:] == (
        Place("bridge.output.weight", (50, 51), (1, 2)),
        Place("bridge.output.weight", (51, 52), (2, 3)),
        Place("bridge.output.weight", (54, 55), (0, 1)),
    )


def test_the_adapter_of_the_output_layer_is_taken_into_the_rows_of_triggers(rules, tokens):
    products = {product.rows: product for product in rules.added(tokens)}
    assert {rows: product.our_rows for rows, product in products.items()} == {
        (50, 51): (1, 2),
        (51, 52): (2, 3),
        (54, 55): (0, 1),
    }
    assert {product.scale for product in products.values()} == {2.0}
    assert {product.left for product in products.values()} == {
        f"{LLM}lm_head.lora_B.default.weight"
    }


def test_tokens_of_a_head_that_is_not_there_are_not_used(rules, tmp_path):
    found = {t.name: t for t in rules.tensors(table(tmp_path, ("region",)))}
    slot = found["temporal_token"]
    assert (slot.places, slot.unused) == ((), "the model has no head with the token <temp>")
    words = found[f"{LLM}model.embed_tokens.weight"]
    assert [place.rows for place in words.places] == [(0, 50), (50, 51)]
    assert "no head with the token <time_begin>" in words.unused


def test_a_token_that_the_format_has_not_is_refused(rules, tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    tasks = {**TASKS, "depth": TaskTokens("<depth_begin>", ("<depth>",))}
    with pytest.raises(UsageError, match=r"no place for the token <depth_begin> of heads\.depth"):
        list(rules.tensors(TokenTable.build(WORDS, tasks, tokenizer)))


# ---- adapters ----


def test_adapters_stay_with_the_rank_of_the_files(rules):
    assert rules.lora() == {"rank": 4, "alpha": 8.0, "dropout": 0.1}
    assert rules.options() == {"dtype": "auto", "lora_output": True}


@pytest.mark.parametrize(("kept", "output"), [("none", True), ("blocks", False)])
def test_files_may_lack_adapters(tokens, kept, output):
    left_out = ".lora_" if kept == "none" else "lm_head.lora_"
    shapes = {name: s for name, s in reduced_shapes().items() if left_out not in name}
    rules = VideoChatTpoWeights.from_published(shapes)
    assert (rules.lora() is None) == (kept == "none")
    assert rules.options()["lora_output"] is output
    assert rules.added(tokens) == ()
    assert {t.name for t in rules.tensors(tokens)} <= set(shapes)


def test_adapters_of_several_ranks_are_refused():
    shapes = reduced_shapes()
    shapes[f"{LLM}model.layers.5.mlp.up_proj.lora_A.default.weight"] = (8, WIDTH)
    with pytest.raises(CheckpointError, match=r"of several ranks: 4 .*, 8 .*layers\.5\.mlp"):
        VideoChatTpoWeights.from_published(shapes)


# ---- files that are not whole or of something else ----


def test_files_of_other_models_are_none_of_ours():
    assert VideoChatTpoWeights.from_published({"model.embed_tokens.weight": (50, 8)}) is None


@pytest.mark.parametrize(
    "name",
    [
        "vision_encoder.encoder.patch_embed.proj.weight",
        "query_tokens",
        "qformer.bert.encoder.layer.0.crossattention.self.key.weight",
        f"{LLM}lm_head.base_layer.weight",
        f"{LLM}model.layers.0.self_attn.k_proj.base_layer.weight",
    ],
)
def test_a_tensor_that_tells_sizes_and_is_missing_is_named(name):
    shapes = reduced_shapes()
    del shapes[name]
    with pytest.raises(CheckpointError, match=f"^{name} is missing: the files are of this family"):
        VideoChatTpoWeights.from_published(shapes)


def test_word_tables_of_two_vocabularies_are_refused():
    shapes = {**reduced_shapes(), f"{LLM}lm_head.base_layer.weight": (99, WIDTH)}
    with pytest.raises(CheckpointError, match=r"has 57 rows and .* 99; both must have the words"):
        VideoChatTpoWeights.from_published(shapes)


def test_the_tiny_golden_release_is_known_as_far_as_it_goes(tmp_path):
    shapes = {name: tuple(tensor.shape) for name, tensor in BRIDGE.items()}
    found = {
        t.name: t
        for t in VideoChatTpoWeights.from_published(shapes).tensors(table(tmp_path, ("region",)))
    }
    heads = ("loc_", "track_embed", "sam.")
    own = {name for name in shapes if not name.startswith(heads)}
    assert own <= set(found)
    assert all(found[name].shape == shapes[name] for name in own)
    assert all(found[name].optional for name in set(found) - own)


# ---- configuration and tokenizer ----


def test_full_sizes_need_no_configuration(tmp_path):
    shapes = {**SHAPES}
    source, backbone = tmp_path / "source", tmp_path / "backbone"
    backbone.mkdir()
    write_tokenizer(source, 32000)
    VideoChatTpoWeights.from_published(shapes).prepare(source, backbone)
    config = read_config(backbone)
    tower = config.vision
    assert (tower.image_size, tower.patch_size, tower.pretrained_grid) == (224, 16, 14)
    assert (tower.hidden_size, tower.layers, tower.heads, tower.intermediate_size) == (
        *(1024, 23, 16),
        4096,
    )
    assert config.connector.options == {
        **{"queries": 32, "extra_queries": 64, "layers": 12, "width": 768, "heads": 12},
        **{"intermediate": 3072, "cross_attention_every": 2, "vocabulary": 0},
    }
    names = ("vocab_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    assert [config.llm[name] for name in names] == [32000, 32, 8, 14336]
    assert config.llm["rope_parameters"]["rope_theta"] == 1e6


def test_a_configuration_beside_the_weights_counts_and_another_models_is_passed_over(
    rules, tmp_path
):
    source, backbone = write_release(tmp_path / "source", {}), tmp_path / "backbone"
    backbone.mkdir()
    rules.prepare(source, backbone)
    assert read_config(backbone) == read_config(source)
    tokenizer = load_tokenizer(backbone)
    assert len(tokenizer) == WORDS, "task tokens are the bridge's, not words of the LLM"
    assert tokenizer.convert_tokens_to_ids("w7") == 7


def test_without_a_configuration_heads_of_unusual_width_are_an_error(rules, tmp_path):
    write_tokenizer(tmp_path)
    message = r"LLM is 32 wide, no multiple of 128: .* put a videochat2\.json beside"
    with pytest.raises(CheckpointError, match=message):
        rules.prepare(tmp_path, tmp_path)


def test_a_tokenizer_of_another_vocabulary_is_refused_with_both_numbers(tmp_path):
    source = write_tokenizer(tmp_path / "source", 32768)
    rules = VideoChatTpoWeights.from_published(SHAPES)
    with pytest.raises(CheckpointError, match=r"has 32768 words, but the word table .* has 32000"):
        rules.prepare(source, tmp_path)


def test_a_sentencepiece_model_becomes_the_tokenizer(tmp_path):
    source, backbone = tmp_path / "source", tmp_path / "backbone"
    for folder in (source, backbone):
        folder.mkdir()
    model = LISTING.with_name("tokenizer.model")
    (source / "tokenizer.model").write_bytes(model.read_bytes())
    VideoChatTpoWeights.from_published(SHAPES).prepare(source, backbone)
    text = "find [INST] the  cup"
    expected = convert_sentencepiece(model)(text)["input_ids"]
    assert load_tokenizer(backbone)(text)["input_ids"] == expected


def test_a_missing_tokenizer_is_named(rules, tmp_path):
    source = write_release(tmp_path, {})
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has neither tokenizer\.model nor tokenizer\.json"):
        rules.prepare(source, tmp_path)
