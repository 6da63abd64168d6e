"""Starting from a saved model: what is taken by name, what stays fresh, what is refused."""

import json

import pytest
import torch

from tests.core.checkpoints.test_store import change_file, saved
from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tpokit import CheckpointError, load_model
from tpokit.checkpoints.start import load_start, save_start
from tpokit.model import build_model

HEADS = {"point": {"plugin": "point"}, "mass": {"plugin": "mass"}}
TRAIN = {"connector": "full", "llm": "lora", "bridge": "full", "point": "full", "mass": "full"}


def some_heads(*tasks):
    """Sections of a recipe that has these heads only."""
    kinds = {"source": "lines", "options": {"kinds": ["talk"]}}
    return {"heads": {task: HEADS[task] for task in tasks}, "data": {"mixed": kinds}}


def fresh(folder, **changes):
    """A model that was just built, with its recipe."""
    stages = [stage("only", {"bridge": "full"})]
    recipe, plugins = read_recipe(write_recipe(folder, **{"stages": stages, **changes}))
    return build_model(recipe, plugins), recipe, plugins


def start(folder, place, **changes):
    """A fresh model before and after it took the weights of a saved one."""
    model, recipe, plugins = fresh(folder, **changes)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    taken = load_start(model, recipe, place, model.backbone.identity())
    return model, before, taken, recipe, plugins


def rows(model, tensor):
    """Token to its row in a tensor of the bridge."""
    return dict(zip(model.tokens.ids, tensor, strict=False))


def test_all_that_both_have_is_taken(tmp_path):
    old, place, _, _ = saved(tmp_path / "old", TRAIN)
    model, _, taken, _, _ = start(tmp_path / "new", place)
    expected = dict(old.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert float(model.head("mass").offset) == 7.0
    assert str(taken) == f"starts from {place}: loaded bridge, connector, llm-lora, mass, point"


def test_a_head_that_only_the_new_model_has_starts_fresh_with_its_tokens(tmp_path):
    train = {"bridge": "full", "mass": "full"}
    old, place, _, _ = saved(tmp_path / "old", train, **some_heads("mass"))
    model, before, taken, _, _ = start(tmp_path / "new", place)
    assert str(taken) == f"starts from {place}: loaded bridge, mass; fresh point"
    assert torch.equal(model.head("mass").inner.weight, old.head("mass").inner.weight)
    assert torch.equal(model.head("point").inner.weight, before["heads.point.inner.weight"])
    for name in ("input", "output"):
        theirs = rows(old, getattr(old.bridge, name).weight)
        ours = rows(model, getattr(model.bridge, name).weight)
        fresh_rows = rows(model, before[f"bridge.{name}.weight"])
        assert set(ours) > set(theirs)
        for token, row in ours.items():
            assert torch.equal(row, theirs.get(token, fresh_rows[token])), token


def test_a_head_that_only_the_saved_model_has_is_left_out(tmp_path):
    old, place, _, _ = saved(tmp_path / "old", TRAIN)
    model, _, taken, _, _ = start(tmp_path / "new", place, **some_heads("point"))
    assert taken.left_out == ("mass",)
    assert str(taken).endswith("; left out mass")
    theirs = rows(old, old.bridge.input.weight)
    for token, row in rows(model, model.bridge.input.weight).items():
        assert torch.equal(row, theirs[token]), token


def test_a_token_that_the_head_had_not_is_named(tmp_path):
    _, place, _, _ = saved(tmp_path / "old", {"bridge": "full"})
    described = json.loads((place / "model.json").read_text())
    described["tokens"][described["tokens"].index("<point_y>")] = "<old_y>"
    (place / "model.json").write_text(json.dumps(described))
    model, before, taken, _, _ = start(tmp_path / "new", place)
    assert taken.fresh == ("<point_y>",)
    index = list(model.tokens.ids).index("<point_y>")
    assert torch.equal(model.bridge.input.weight[index], before["bridge.input.weight"][index])


def refused(folder, place, message, **changes):
    """What is refused changes no weight."""
    model, recipe, _ = fresh(folder, **changes)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(CheckpointError, match=message):
        load_start(model, recipe, place, model.backbone.identity())
    after = {name.replace(".base_layer.", "."): p for name, p in model.named_parameters()}
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_head_of_another_shape_is_named_with_both(tmp_path):
    _, place, _, _ = saved(tmp_path / "old", TRAIN)
    wide = {**HEADS, "point": {"plugin": "point", "options": {"inner": 8}}}
    message = (
        r"point.safetensors does not fit: heads.point.inner.bias has shape \[4\], "
        r"but the model's has \[8\]"
    )
    refused(tmp_path / "new", place, message, heads=wide)


@pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 4}, {"rank": 2, "alpha": 8}])
def test_adapters_of_another_size_are_refused(tmp_path, lora):
    _, place, _, _ = saved(tmp_path / "old", TRAIN)
    message = (
        "has adapters of rank 2 and alpha 4, but lora: asks for "
        f"rank {lora['rank']} and alpha {lora['alpha']}; write those of the saved model"
    )
    refused(tmp_path / "new", place, message, lora=lora)


def test_another_base_is_refused_with_both_hashes(tmp_path):
    _, place, _, _ = saved(tmp_path / "old", TRAIN)
    refused(tmp_path / "new", place, "was trained from the base model 'random' with hash", seed=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bridge.output.weight"), r"bridge.output.weight is missing; .* \[2, 16\]"),
        (
            lambda t: t.update({"bridge.input.weight": torch.ones(5, 8)}),
            r"bridge.input.weight has shape \[5, 8\]; the model's has \[5, 16\]",
        ),
    ],
)
def test_rows_of_the_bridge_that_do_not_fit_are_refused(tmp_path, change, message):
    _, place, _, _ = saved(tmp_path / "old", TRAIN)
    change_file(place, "bridge", change)
    refused(tmp_path / "new", place, message)


def test_what_a_run_starts_from_can_be_kept_and_loaded(tmp_path):
    _, place, _, _ = saved(tmp_path / "old", TRAIN, **some_heads("mass", "point"))
    model, _, taken, recipe, plugins = start(tmp_path / "new", place)
    kept = tmp_path / "kept"
    save_start(model, recipe, kept, taken, model.backbone.identity())
    assert {path.stem for path in kept.glob("*.safetensors")} == {
        "bridge",
        "connector",
        "llm-lora",
        "mass",
        "point",
    }
    expected = dict(model.named_parameters())
    for name, parameter in load_model(kept, plugins).named_parameters():
        assert torch.equal(parameter, expected[name]), name
