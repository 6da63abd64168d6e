"""Saved models: what is in them, that they come back, and what is refused."""

import errno
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tpokit import CheckpointError, load_model
from tpokit.checkpoints import store
from tpokit.checkpoints.store import load_weights, save_model, saved_recipe
from tpokit.checkpoints.tensors import file_tensors, trained_state
from tpokit.model import build_model
from tpokit.parts import set_modes

EVERYTHING = {"llm": "full", "connector": "full", "bridge": "full", "point": "full"}


def saved(folder, train, **changes):
    """A model with changed weights and where it was saved."""
    path = write_recipe(folder, stages=[stage("only", train)], **changes)
    recipe, plugins = read_recipe(path)
    model = build_model(recipe, plugins)
    base = model.backbone.identity()
    set_modes(model, recipe.stages[0].train, recipe.lora, recipe.seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
        model.head("mass").offset.fill_(7.0)
    place = folder / "run" / "only"
    save_model(model, recipe, place, recipe.stages[0], base)
    return model, place, recipe, plugins


@pytest.mark.parametrize("train", [EVERYTHING, {"llm": "lora", "bridge": "full"}])
def test_what_is_saved_comes_back_to_the_last_bit(tmp_path, train):
    model, place, _, plugins = saved(tmp_path, train)
    again = load_model(place, plugins)
    expected = dict(model.named_parameters())
    assert {name for name, _ in again.named_parameters()} == set(expected)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert float(again.head("mass").offset) == 7.0  # a buffer of a head is part of it
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_frozen_weights_are_not_saved_and_heads_and_bridge_always_are(tmp_path):
    _, place, _, _ = saved(tmp_path, {"llm": "lora"})
    names = {path.stem for path in place.glob("*.safetensors")}
    assert names == {"bridge", "llm-lora", "mass", "point"}


def test_a_part_of_an_earlier_stage_stays_in_what_is_saved(tmp_path):
    stages = [stage("first", {"connector": "full"}), stage("second", {"bridge": "full"})]
    recipe, plugins = read_recipe(write_recipe(tmp_path, stages=stages))
    model = build_model(recipe, plugins)
    assert "connector" in store.files_of(model, recipe, recipe.stages[1])


def test_a_saved_model_is_about_as_large_as_what_was_trained(tmp_path):
    wide = {"plugin": "tiny", "options": {"width": 256}}
    model, place, _, _ = saved(tmp_path, {"llm": "lora", "bridge": "full"}, backbone=wide)
    tensors = [
        tensor
        for name in ("bridge", "point", "mass", "llm-lora")
        for tensor in file_tensors(model, name).values()
    ]
    trained = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    size = sum(path.stat().st_size for path in place.iterdir())
    assert trained <= size < trained + 16_000
    assert size < sum(p.numel() for p in model.parameters())  # the whole would be four times that


def test_the_description_names_base_stage_tokens_and_versions(tmp_path):
    model, place, recipe, _ = saved(tmp_path, {"llm": "lora"})
    described = json.loads((place / "model.json").read_text())
    assert described["format"] == 1
    assert described["base"] == model.backbone.identity()
    assert described["stage"] == "only"
    assert described["modes"] == {"llm": "lora"}
    assert described["tokens"][:2] == ["<mass_begin>", "<point_begin>"]
    assert {"tpokit", "torch", "transformers"} <= set(described["versions"])
    assert saved_recipe(place).stages == recipe.stages


def test_adapters_are_saved_apart_from_the_layers_they_sit_on(tmp_path):
    model, place, _, _ = saved(tmp_path, {"llm": "lora"})
    names = set(load_file(place / "llm-lora.safetensors"))
    assert "backbone.layers.0.query.lora_A.default.weight" in names
    assert "backbone.layers.0.query.weight" in file_tensors(model, "llm")


def change_file(place, name, change):
    tensors = load_file(place / f"{name}.safetensors")
    change(tensors)
    save_file(tensors, place / f"{name}.safetensors")


def test_weights_of_another_width_are_named_with_both_shapes(tmp_path):
    _, place, _, plugins = saved(tmp_path, {"bridge": "full"})
    text = (place / "recipe.yaml").read_text().replace("width: 16", "width: 8")
    (place / "recipe.yaml").write_text(text)
    other, _ = read_recipe(place / "recipe.yaml")
    model = build_model(other, plugins)
    with pytest.raises(CheckpointError) as told:
        load_weights(model, other, place, json.loads((place / "model.json").read_text())["base"])
    assert "bridge.input.weight has shape [5, 16], but the model's has [5, 8]" in str(told.value)
    assert "weights of another width" in str(told.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("heads.mass.offset"), "heads.mass.offset is missing"),
        (lambda t: t.update(extra=torch.zeros(2)), r"extra \[2\] is in the file, but not"),
    ],
)
def test_missing_and_unexpected_tensors_are_refused(tmp_path, change, message):
    _, place, _, plugins = saved(tmp_path, {"bridge": "full"})
    change_file(place, "mass", change)
    with pytest.raises(CheckpointError, match=message):
        load_model(place, plugins)


def test_nothing_is_loaded_when_one_file_does_not_fit(tmp_path):
    _, place, recipe, plugins = saved(tmp_path, {"bridge": "full"})
    change_file(place, "point", lambda t: t.clear())
    model = build_model(recipe, plugins)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(CheckpointError, match="and 3 more"):
        load_weights(model, recipe, place)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_another_base_is_refused_with_both_hashes(tmp_path):
    _, place, _, plugins = saved(tmp_path, {"bridge": "full"})
    described = json.loads((place / "model.json").read_text())
    real = described["base"]["hash"]
    described["base"]["hash"] = "0123abcd"
    (place / "model.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=f"hash 0123abcd, but 'random' has hash {real}"):
        load_model(place, plugins)


@pytest.mark.parametrize("kept", [0, 20, -8])
def test_a_file_that_was_cut_short_is_named(tmp_path, kept):
    _, place, _, plugins = saved(tmp_path, {"bridge": "full"})
    file = place / "bridge.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"bridge.safetensors is not whole"):
        load_model(place, plugins)


def test_a_file_that_is_gone_is_named(tmp_path):
    _, place, _, plugins = saved(tmp_path, {"bridge": "full"})
    (place / "point.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"point.safetensors is missing"):
        load_model(place, plugins)


def test_a_folder_that_holds_no_model_says_what_one_would_hold(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither model.json .* nor run.json"):
        load_model(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"done": []}))
    with pytest.raises(CheckpointError, match="no stage of this run is finished"):
        load_model(tmp_path)


def test_a_tensor_that_did_not_come_out_whole_is_not_saved():
    with pytest.raises(CheckpointError, match=r"weight could not be gathered: .* shape \[0\]"):
        trained_state({"weight": torch.ones(3)}, gather=lambda tensor: tensor[:0])


def test_empty_tensors_are_found_before_the_folder_gets_its_name(tmp_path):
    """What partitioned weights look like when nobody gathers them."""
    model, place, recipe, _ = saved(tmp_path, {"bridge": "full"})
    shutil.rmtree(place)
    empty = {name: tensor[:0] for name, tensor in file_tensors(model, "point").items()}
    with pytest.raises(CheckpointError, match="has shape"):
        save_model(model, recipe, place, recipe.stages[0], model.backbone.identity(), state=empty)
    assert not list(place.parent.iterdir())


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    model, place, recipe, _ = saved(tmp_path, {"bridge": "full"})
    shutil.rmtree(place)

    def full(tensors, path):
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(CheckpointError, match=f"cannot save {place}.*No space left on device"):
        save_model(model, recipe, place, recipe.stages[0], model.backbone.identity())
    assert not list(place.parent.iterdir())
