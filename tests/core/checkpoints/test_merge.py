"""A merged model says the same as the run it was made from, and needs nothing else."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.core.checkpoints.test_store import EVERYTHING, saved
from tests.core.training.tiny import LineOptions, Lines
from tpokit import CheckpointError, UsageError, load_model
from tpokit.checkpoints import merge as merging
from tpokit.checkpoints.merge import merge
from tpokit.data.collate import Collator
from tpokit.data.conversation import Encoder


def answers(model, folder):
    """Every loss term on a batch with calls, given values and an image."""
    heads = {task: model.head(task) for task in model.heads}
    model.trained_tasks = frozenset(heads)
    encoder = Encoder(model.backbone.processor, heads, model.tokens, 100)
    kinds = ("given", "mass", "seen", "point") if heads else ("talk", "seen")
    source = Lines(LineOptions(kinds=kinds, image="picture.png"), folder)
    samples = [source.read(index, np.random.default_rng(index)) for index in range(4)]
    batch = Collator(model.backbone.processor, heads, model.tokens)(
        [encoder.encode(sample, "lines") for sample in samples]
    )
    with torch.no_grad():
        return {name: float(term.sum) for name, term in model.eval()(batch).items()}


@pytest.mark.parametrize("train", [{"llm": "lora", "bridge": "full", "point": "full"}, EVERYTHING])
def test_a_merged_model_gives_the_same_and_can_be_moved(tmp_path, train):
    model, place, _, plugins = saved(tmp_path, train)
    expected = answers(model, tmp_path)
    merged = merge(place, tmp_path / "merged", plugins=plugins)
    shutil.rmtree(tmp_path / "run")
    moved = tmp_path / "elsewhere"
    merged.rename(moved)
    again = load_model(moved, plugins)
    assert answers(again, tmp_path) == pytest.approx(expected, rel=1e-5)
    assert {path.name for path in moved.iterdir()} == {
        "backbone",
        "bridge.safetensors",
        "mass.safetensors",
        "model.json",
        "point.safetensors",
        "recipe.yaml",
    }
    assert not [name for name, _ in again.named_parameters() if "lora" in name]


def test_merging_can_change_the_number_format(tmp_path):
    _, place, _, plugins = saved(tmp_path, {"llm": "lora"})
    merged = merge(place, tmp_path / "merged", dtype="bfloat16", plugins=plugins)
    assert load_file(merged / "bridge.safetensors")["bridge.input.weight"].dtype == torch.bfloat16
    with pytest.raises(UsageError, match="'int8' is no floating-point type"):
        merge(place, tmp_path / "other", dtype="int8", plugins=plugins)


def test_a_run_without_heads_becomes_a_plain_model_folder(tmp_path):
    path_kinds = {"mixed": {"source": "lines", "options": {"kinds": ["talk"]}}}
    _, place, _, plugins = headless(tmp_path, path_kinds)
    merged = merge(place, tmp_path / "merged", plugins=plugins)
    assert {path.name for path in merged.iterdir()} == {"options.json", "weights.safetensors"}


def headless(folder, data):
    from tests.core.training.small_runs import read_recipe, stage, write_recipe
    from tpokit.checkpoints.store import save_model
    from tpokit.model import build_model
    from tpokit.parts import set_modes

    stages = [stage("only", {"llm": "lora"})]
    recipe, plugins = read_recipe(write_recipe(folder, stages=stages, heads={}, data=data))
    model = build_model(recipe, plugins)
    base = model.backbone.identity()
    set_modes(model, recipe.stages[0].train, recipe.lora, recipe.seed)
    place = folder / "run" / "only"
    save_model(model, recipe, place, recipe.stages[0], base)
    return model, place, recipe, plugins


def test_an_output_that_is_not_empty_is_left_alone(tmp_path):
    _, place, _, plugins = saved(tmp_path, {"llm": "lora"})
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="merged is not empty; name another folder"):
        merge(place, tmp_path / "merged", plugins=plugins)
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["notes.txt"]


def test_a_full_disk_leaves_no_half_of_a_merged_model(tmp_path, monkeypatch):
    _, place, _, plugins = saved(tmp_path, {"llm": "lora"})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "fill_model", full)
    with pytest.raises(CheckpointError, match=r"No space left on device; .* is untouched"):
        merge(place, tmp_path / "merged", plugins=plugins)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "picture.png",
        "recipe.yaml",
        "registry.yaml",
        "run",
    ]
