"""Runs that start from a saved model."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tests.core.training.test_stages import files, weights
from tpokit import CheckpointError, UsageError, load_model
from tpokit.evaluation.runner import Report
from tpokit.training import stages, trainer
from tpokit.training.stages import train

OLD = [stage("old", {"connector": "full", "llm": "lora", "bridge": "full", "mass": "full"})]
NEW = [
    stage("first", {"bridge": "full", "point": "full"}, steps=1),
    stage("second", {"bridge": "full"}, steps=1),
]
HEADS = {"point": {"plugin": "point"}, "mass": {"plugin": "mass"}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with one head, whose adapters and connector were trained."""
    folder = tmp_path_factory.mktemp("finished")
    data = {"mixed": {"source": "lines", "options": {"kinds": ["talk", "mass"]}}}
    path = write_recipe(folder, stages=OLD, heads={"mass": HEADS["mass"]}, data=data)
    return train(*read_recipe(path))


@pytest.fixture
def source(finished, tmp_path):
    """A copy of it, beside the new recipe."""
    shutil.copytree(finished, tmp_path / "old")
    return tmp_path / "old"


def new(folder, **changes):
    return write_recipe(folder, **{"init_from": "old", "stages": NEW, **changes})


def test_what_no_stage_trained_is_that_of_the_saved_model(source, tmp_path, capsys):
    expected = {
        name: tensor
        for file in (source / "old").glob("*.safetensors")
        for name, tensor in load_file(file).items()
        if not name.startswith("bridge.")
    }
    recipe, plugins = read_recipe(new(tmp_path))
    run = train(recipe, plugins)
    said = [line for line in capsys.readouterr().out.splitlines() if "starts from" in line]
    assert said == [
        f"starts from {source / 'old'}: loaded bridge, connector, llm-lora, mass; fresh point",
        f"stage second starts from {run / 'first'}: loaded bridge, connector, llm-lora, mass, "
        "point; fresh optimizer",
    ]
    shutil.rmtree(source)
    assert len(expected) > 10
    for folder in (run, run / "first", run / "0-start"):
        model = load_model(folder, plugins)
        found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_resumed_run_needs_the_saved_model_no_more(source, tmp_path, monkeypatch):
    path = new(tmp_path, run={"save_every": 1})
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    longer = "stages.first.steps=3"
    train(*read_recipe(path, longer, f"output={unbroken}"))
    whole_save = trainer.torch.save

    def full(value, place, *rest, **more):
        if "step-2" in str(place):
            raise OSError(28, "No space left on device")
        whole_save(value, place, *rest, **more)

    monkeypatch.setattr(trainer.torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        train(*read_recipe(path, longer, f"output={broken}"))
    monkeypatch.undo()
    shutil.rmtree(source)
    train(*read_recipe(path, longer, f"output={broken}"), resume=True)
    expected, found = weights(unbroken), weights(broken)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_resuming_from_another_saved_model_is_refused(source, tmp_path):
    path = new(tmp_path)
    run = train(*read_recipe(path))
    before = files(run)
    with pytest.raises(UsageError, match="init_from: old -> other"):
        train(*read_recipe(path, "init_from=other"), resume=True)
    assert files(run) == before


def test_starting_again_takes_what_was_kept_away(source, tmp_path):
    path = new(tmp_path)
    run = train(*read_recipe(path))
    train(*read_recipe(path, "init_from="), overwrite=True)
    assert not (run / "0-start").exists()
    assert "connector.safetensors" not in {file.name for file in (run / "second").iterdir()}


def test_a_saved_model_that_is_not_there_leaves_no_trace(tmp_path):
    with pytest.raises(CheckpointError, match="old is no saved model"):
        train(*read_recipe(new(tmp_path)))
    assert not (tmp_path / "run").exists()


def test_a_saved_model_that_does_not_fit_leaves_no_trace(source, tmp_path):
    with pytest.raises(CheckpointError, match="has adapters of rank 2 and alpha 4"):
        train(*read_recipe(new(tmp_path), "lora.rank=4"))
    assert not (tmp_path / "run").exists()


def test_a_run_cannot_start_from_what_it_would_overwrite(source, tmp_path):
    recipe, plugins = read_recipe(new(tmp_path), f"output={source}")
    before = files(source)
    with pytest.raises(UsageError, match=r"init_from: .*old lies in the output .*output=FOLDER"):
        train(recipe, plugins, overwrite=True)
    assert files(source) == before


def test_scores_before_training_are_those_of_the_saved_model(source, tmp_path, monkeypatch):
    scored = []

    def evaluate(model, *_):
        scored.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return Report({"a": 0.5})

    monkeypatch.setattr(stages, "evaluate_model", evaluate)
    run = train(*read_recipe(new(tmp_path, evaluate={"data": ["mixed"]})))
    assert set(json.loads((run / "evaluation.json").read_text())) == {"before", "after"}
    start = load_file(run / "0-start" / "bridge.safetensors")
    assert torch.equal(scored[0]["bridge.input.weight"], start["bridge.input.weight"])
    assert any("lora" in name for name in scored[0])
