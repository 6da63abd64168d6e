"""Published files become a model, and go back: by the machinery, with the rules of all plugins."""

import json
from collections import Counter

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.plugins.videochat2.released_bridge import RUNS, SPECIAL, tiny_folder
from tests.plugins.videochat2.released_bridge import WEIGHTS as BRIDGE
from tests.plugins.videochat2.weights.release import (
    LISTING,
    WIDTH,
    WORDS,
    reduced_release,
    write_release,
    write_tokenizer,
)
from tests.plugins.videochat2.weights.stage_files import llm_tensors, stage, write_llm
from tpokit import CheckpointError, UsageError, load_model
from tpokit.model import positions_of
from tpokit.weights.exporting import ExportOptions, export_weights
from tpokit.weights.importing import ImportOptions, check_weights, import_weights

LLM = "lm.base_model.model."


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The release with few layers: its folder and its tensors."""
    tensors = reduced_release(shallow=True)
    return write_release(tmp_path_factory.mktemp("release"), tensors, shallow=True), tensors


@pytest.fixture(scope="module")
def imported(release, tmp_path_factory):
    """The folder of its model."""
    folder = tmp_path_factory.mktemp("imported")
    import_weights(release[0], folder)
    return folder


def counted(report):
    return Counter(row.state for row in report.tensors)


# ---- the release ----


def test_the_release_in_full_depth_is_taken_in(tmp_path):
    tensors = reduced_release()
    report = import_weights(write_release(tmp_path / "release", tensors), tmp_path / "model")
    assert counted(report) == {"placed": 2496, "placed in part": 3, "unused": 95}
    assert report.heads == {"mask": "mask", "region": "region", "temporal": "temporal"}
    saved = load_file(tmp_path / "model" / "backbone" / "model.safetensors")
    inside = "model.layers.31.mlp.down_proj"
    assert torch.equal(saved[f"llm.{inside}.weight"], tensors[f"{LLM}{inside}.base_layer.weight"])


def test_the_model_loads_with_the_weights_of_the_release(release, imported):
    model, tensors = load_model(imported), release[1]
    backbone, heads = model.backbone, model.heads
    for ours, theirs in (
        (
            backbone.vision.blocks[1].self_attn.qkv.v_bias,
            "vision_encoder.encoder.blocks.1.attn.v_bias",
        ),
        (backbone.connector.queries, "query_tokens"),
        (backbone.connector.projection.weight, "project_up.weight"),
        (heads["region"].box_decoder[2].weight, "loc_decoder.2.weight"),
        (heads["mask"].box_encoder[0].weight, "loc_encoder.0.weight"),
        (heads["temporal"].detector.dummies, "cg_model.dummy_rep_token"),
        (
            heads["mask"].sam2.model.no_obj_ptr,
            "sam.no_obj_ptr",
        ),
    ):
        assert torch.equal(ours.float(), tensors[theirs].float()), theirs
    layer = backbone.llm.model.layers[1].mlp.down_proj
    inside = f"{LLM}model.layers.1.mlp.down_proj"
    assert torch.equal(layer.base_layer.weight, tensors[f"{inside}.base_layer.weight"])
    adapter = layer.lora_B["default"].weight
    assert torch.equal(adapter.float(), tensors[f"{inside}.lora_B.default.weight"].float())
    assert layer.scaling == {"default": 2.0}
    assert backbone.llm.model.embed_tokens.weight.dtype == torch.bfloat16


def test_rows_of_task_tokens_are_in_the_bridge_with_their_adapter(release, imported):
    model, tensors = load_model(imported), release[1]
    table = tensors[f"{LLM}model.embed_tokens.weight"].float()
    output = tensors[f"{LLM}lm_head.base_layer.weight"].float()
    left = tensors[f"{LLM}lm_head.lora_B.default.weight"].float()
    right = tensors[f"{LLM}lm_head.lora_A.default.weight"].float()
    for row, trigger in ((0, "<box_begin>"), (1, "<time_begin>"), (4, "<track_begin>")):
        place, row = model.tokens.ids[trigger] - WORDS, WORDS + row
        assert torch.equal(model.bridge.input.weight[place], table[row])
        wanted = output[row] + 2.0 * left[row] @ right
        assert torch.allclose(model.bridge.output.weight[place], wanted, atol=1e-6)
    slot = model.tokens.ids["<temp>"] - WORDS
    assert torch.equal(model.bridge.input.weight[slot], tensors["temporal_token"][0, 0].float())
    assert model.backbone.rows == WORDS


def test_exported_and_imported_again_it_is_the_same_bit_by_bit(release, imported, tmp_path):
    folder, tensors = imported, release[1]
    report = export_weights(folder, tmp_path / "away", ExportOptions("videochat_tpo"))
    assert set(counted(report)) == {"written", "kept"}
    written = {
        name: tensor
        for path in (tmp_path / "away").glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    assert set(written) == set(tensors)
    taken_in = {f"{LLM}lm_head.base_layer.weight", f"{LLM}lm_head.lora_B.default.weight"}
    changed = {n for n, t in tensors.items() if not torch.equal(written[n].to(t.dtype), t)}
    assert changed == taken_in, "rows of triggers, which hold their adapter now"
    import_weights(tmp_path / "away", tmp_path / "back")
    one, other = load_model(folder).state_dict(), load_model(tmp_path / "back").state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for name in ("sam2.safetensors", "backbone/tokenizer.json", "backbone/videochat2.json"):
        assert (folder / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


def test_a_head_may_be_left_out(release, tmp_path):
    report = check_weights(release[0], ImportOptions(without=("temporal", "mask")))
    assert report.heads == {"region": "region"}
    rows = {row.name: row for row in report.tensors}
    assert rows["temporal_token"].reason == "the model has no head with the token <temp>"
    assert rows["cg_model.query_embed.weight"].state == "unused"
    assert rows["loc_encoder.0.weight"].reason == "the head of mask was left out"


def test_the_released_sizes_fit_without_reading_a_number(tmp_path):
    """All 2594 names with their shapes, on the meta device; 16 GB of weights in a GB of memory."""
    folder = write_tokenizer(tmp_path, 32000)
    (folder / LISTING.name).write_bytes(LISTING.read_bytes())
    report = check_weights(folder / LISTING.name)
    assert counted(report) == {"placed": 2496, "placed in part": 3, "unused": 95}
    assert sum(row.bytes for row in report.tensors) == 16_202_736_564
    assert not report.faults


# ---- bad files ----


def test_a_missing_shard_is_named(release, tmp_path):
    folder = write_release(tmp_path, release[1], shallow=True)
    (folder / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00003-of-00004\.safetensors"):
        check_weights(folder)


def test_a_tokenizer_of_mistral_v03_is_refused(tmp_path):
    folder = write_tokenizer(tmp_path, 32768)
    (folder / LISTING.name).write_bytes(LISTING.read_bytes())
    with pytest.raises(CheckpointError, match=r"has 32768 words, but the word table .* has 32000"):
        check_weights(folder / LISTING.name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sam.no_mem_pos_enc": None}, r"1 missing: sam\.no_mem_pos_enc"),
        ({"lm.extra": (3,)}, r"1 unexpected: lm\.extra"),
        ({"project_up.bias": (WIDTH + 1,)}, r"project_up\.bias: it is \[33\] and should be \[32\]"),
    ],
    ids=["missing", "unexpected", "reshaped"],
)
def test_anything_that_does_not_fit_is_an_error(release, tmp_path, change, message):
    tensors = {**release[1], **{n: torch.zeros(s) for n, s in change.items() if s}}
    kept = {n: t for n, t in tensors.items() if change.get(n, ()) is not None}
    listing = {"dtype": "bfloat16", "tensors": {n: [list(t.shape), 1] for n, t in kept.items()}}
    folder = write_release(tmp_path, {}, shallow=True)
    (folder / "listing.json").write_text(json.dumps(listing))
    with pytest.raises(CheckpointError, match=message):
        check_weights(folder / "listing.json")


# ---- the tiny golden release ----


def test_the_golden_release_is_taken_in_and_answers_as_the_released_code(tmp_path):
    source = tiny_folder(tmp_path / "tiny")
    save_file(BRIDGE, source / "model.safetensors")
    import_weights(source, tmp_path / "out", ImportOptions(without=("mask",)))
    model = load_model(tmp_path / "out")
    mask = RUNS["region.attention_mask"].bool()
    embeds = RUNS["region.inputs_embeds"]
    hidden, _ = model.backbone.decode(embeds, mask, positions_of(mask))
    slots = hidden[RUNS["region.input_ids"] == SPECIAL["<boxes>"]]
    assert (model.head("region")(slots[:, None]) - RUNS["region.pred_boxes"]).abs().max() <= 5e-5
    words = embeds[RUNS["region.input_ids"] == SPECIAL["<box_begin>"]]
    assert torch.equal(model.bridge.input.weight[[0] * len(words)], words)


# ---- VideoChat2's own files ----


@pytest.mark.parametrize("number", [2, 3])
def test_files_of_a_stage_become_a_model_with_the_llm_beside_them(tmp_path, number):
    source, llm = tiny_folder(tmp_path / "source"), tmp_path / "llm"
    llm.mkdir()
    described = json.loads((source / "videochat2.json").read_text())
    described["connector"]["options"] |= {"vocabulary": 41, "positions": 24}
    (source / "videochat2.json").write_text(json.dumps(described))
    torch.save({"model": stage(number), "epoch": 3}, source / "stage.pth")
    with pytest.raises(UsageError, match=r"stage\.pth is a pickle"):
        import_weights(source / "stage.pth", tmp_path / "out", ImportOptions(llm=write_llm(llm)))
    options = ImportOptions(llm=llm, weights_only=True)
    report = import_weights(source / "stage.pth", tmp_path / "out", options)
    assert report.format == "videochat2"
    assert {row.name for row in report.tensors if row.state == "unused"} == {
        "qformer.bert.embeddings.position_ids"
    }
    model = load_model(tmp_path / "out")
    base = llm_tensors()["model.layers.1.mlp.up_proj.weight"]
    layer = model.backbone.llm.model.layers[1].mlp.up_proj
    assert torch.equal(layer.base_layer.weight if number == 3 else layer.weight, base)
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe["heads"] == {}
    assert recipe["lora"]["alpha"] == (8.0 if number == 3 else 32.0)


def test_without_the_llm_a_stage_is_refused(tmp_path):
    source = tiny_folder(tmp_path / "source")
    torch.save(stage(3), source / "stage.pth")
    with pytest.raises(CheckpointError, match="--llm FOLDER"):
        check_weights(source / "stage.pth", ImportOptions(weights_only=True))
