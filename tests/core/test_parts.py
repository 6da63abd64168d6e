"""What a stage trains of a model, part by part."""

import pytest
import torch
from safetensors.torch import load_file

from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tpokit import UsageError, load_model
from tpokit.checkpoints.store import save_model
from tpokit.model import build_model
from tpokit.parts import parameter_groups, part_table, set_modes
from tpokit.training.stages import train

QUERY_VALUE = {"mode": "full", "only": r"layers\.\d+\.(query|value)\.weight"}
WANTED = {f"backbone.layers.{i}.{name}.weight" for i in range(2) for name in ("query", "value")}


def ready(folder, *stages):
    """A model that went through the modes of some stages."""
    entries = [stage(f"stage{i}", modes) for i, modes in enumerate(stages)]
    recipe, plugins = read_recipe(write_recipe(folder, stages=entries))
    model = build_model(recipe, plugins)
    for entry in recipe.stages:
        set_modes(model, entry.modes, recipe.lora, recipe.seed, entry.patterns)
    return model, recipe, plugins


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_only_parameters_with_a_match_in_their_name_are_trained(tmp_path):
    model, recipe, _ = ready(tmp_path, {"llm": QUERY_VALUE})
    assert trained(model) == WANTED
    rates = recipe.rates("stage0")
    (group,) = parameter_groups(model, rates, 0.1)
    assert (group["part"], len(group["params"])) == ("llm", 4)
    row = next(row for row in part_table(model, recipe.modes("stage0"), rates) if row.part == "llm")
    assert (row.mode, row.trained, row.learning_rate) == ("full", 4 * 16 * 16, 0.01)
    assert row.parameters > row.trained


@pytest.mark.parametrize(
    ("part", "only", "expected"),
    [
        ("bridge", "^input", {"bridge.input.weight"}),
        ("point", r"^inner\.", {"heads.point.inner.weight", "heads.point.inner.bias"}),
        ("vision", "bias$", {"backbone.vision.bias"}),
    ],
)
def test_names_are_as_the_owner_of_a_part_sees_them(tmp_path, part, only, expected):
    model, _, _ = ready(tmp_path, {"bridge": "full", part: {"mode": "full", "only": only}})
    rows = {"bridge.input.weight", "bridge.output.weight"}
    assert trained(model) == (expected if part == "bridge" else expected | rows)


def test_a_head_that_is_trained_in_part_has_its_losses_taken(tmp_path):
    model, _, _ = ready(tmp_path, {"bridge": "full", "point": {"mode": "full", "only": "outer"}})
    assert model.trained_tasks == {"point"}


def test_a_pattern_that_matches_nothing_names_the_part_and_some_of_its_parameters(tmp_path):
    with pytest.raises(UsageError) as told:
        ready(tmp_path, {"llm": {"mode": "full", "only": "q_proj"}})
    assert str(told.value).startswith(
        "train.llm.only: 'q_proj' matches no parameter of 'llm'; some of its 17 are table.weight, "
    )
    assert "layers.0." in str(told.value)
    assert "backbone." not in str(told.value)


def test_what_adapters_had_learnt_is_kept_when_some_layers_are_then_trained_themselves(tmp_path):
    model, recipe, _ = ready(tmp_path, {"llm": "lora"})
    layer = model.backbone.layers[0].query
    torch.nn.init.ones_(layer.lora_B["default"].weight)
    learnt = layer.weight + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    set_modes(model, {"llm": "full"}, recipe.lora, recipe.seed, {"llm": QUERY_VALUE["only"]})
    assert trained(model) == WANTED
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert torch.allclose(model.backbone.layers[0].query.weight, learnt)


def test_a_part_that_is_trained_in_part_is_saved_whole_and_comes_back(tmp_path):
    model, recipe, plugins = ready(tmp_path, {"llm": QUERY_VALUE})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in WANTED:
                parameter.add_(1.0)
    place = tmp_path / "saved"
    save_model(model, recipe, place, recipe.stages[0], model.backbone.identity())
    assert {path.stem for path in place.glob("*.safetensors")} == {"bridge", "llm", "mass", "point"}
    expected = dict(model.named_parameters())
    for name, parameter in load_model(place, plugins).named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_a_stage_changes_nothing_else(tmp_path):
    path = write_recipe(tmp_path, stages=[stage("only", {"llm": QUERY_VALUE}, steps=2)])
    recipe, plugins = read_recipe(path, "run.save_every=1")
    base = dict(build_model(recipe, plugins).named_parameters())
    found = load_file(train(recipe, plugins) / "only" / "llm.safetensors")
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, base[name])}
    assert changed == WANTED
