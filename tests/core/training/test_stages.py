"""Whole runs: their folder, their log, what is refused, and going on after a kill."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tpokit import DataError, TrainingError, UsageError, load_model
from tpokit.training.callbacks import read_rows, repeatable
from tpokit.training.stages import train


def short(folder, **changes):
    stages = [
        stage("assign", {"llm": "lora", "bridge": "full"}, steps=2),
        stage("heads", {"bridge": "full", "point": "full", "mass": "full"}, steps=2),
    ]
    return write_recipe(folder, **{"stages": stages, **changes})


def weights(folder):
    return {
        f"{file.parent.name}/{file.name}/{name}": tensor
        for file in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def rows(folder):
    return [repeatable(row) for row in read_rows(folder / "log.jsonl")]


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    recipe, plugins = read_recipe(short(tmp_path_factory.mktemp("finished")))
    return train(recipe, plugins), recipe, plugins


def test_one_stage_after_the_other_is_the_same_as_the_whole_run(tmp_path, finished):
    recipe, plugins = read_recipe(short(tmp_path))
    train(recipe, plugins, stage="assign")
    with pytest.raises(UsageError, match="already holds this stage"):
        train(recipe, plugins, stage="assign")
    train(recipe, plugins, stage="heads")
    expected = weights(finished[0])
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "run").items()
    )


def test_scores_of_a_finished_run_are_forgotten_when_a_stage_is_added(tmp_path):
    recipe, plugins = read_recipe(short(tmp_path))
    train(recipe, plugins, stage="assign")
    scores = tmp_path / "run" / "evaluation.json"
    scores.write_text('{"before": {"scores": {"a": 0.1}}, "after": {"scores": {"a": 0.2}}}')
    train(recipe, plugins, stage="heads")
    assert json.loads(scores.read_text()) == {"before": {"scores": {"a": 0.1}}}


def test_a_run_leaves_a_model_a_log_and_curves(finished, tmp_path):
    folder, _, plugins = finished
    assert json.loads((folder / "run.json").read_text())["done"] == ["assign", "heads"]
    assert {"assign", "heads", "log.jsonl", "loss.png", "recipe.yaml", "run.json"} == {
        path.name for path in folder.iterdir()
    }
    last = rows(folder)[-1]
    assert {"loss", "language", "assign", "point.error", "point.square", "grad_norm"} <= set(last)
    assert {"learning_rate.bridge", "learning_rate.point", "learning_rate.mass"} <= set(last)
    assert last["stage"] == "heads"
    model = load_model(folder, plugins)
    saved = load_file(folder / "heads" / "point.safetensors")
    assert torch.equal(model.head("point").inner.weight, saved["heads.point.inner.weight"])


def test_the_loss_of_a_line_is_the_weighted_sum_of_its_terms(finished):
    folder, recipe, _ = finished
    first = rows(folder)[0]  # a line of one step
    weighted = recipe.loss_weights("assign")
    total = sum(weighted[name] * first[name] for name in ("language", "assign"))
    assert first["loss"] == pytest.approx(total, rel=1e-6)


def test_a_stage_without_a_stage_before_says_what_to_train_first(tmp_path):
    with pytest.raises(UsageError, match=r"'heads' starts from stage 'assign'.*--stage assign"):
        train(*read_recipe(short(tmp_path)), stage="heads")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_there_is_never_lost_by_accident(finished):
    folder, recipe, plugins = finished
    before = files(folder)
    with pytest.raises(UsageError, match=r"--resume.*--overwrite.*--set output=FOLDER"):
        train(recipe, plugins)
    assert files(folder) == before


def test_a_folder_with_something_else_in_it_is_never_written_into(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match=r"not empty \(thesis.tex\)"):
            train(*read_recipe(short(tmp_path)), **flags)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_resuming_with_another_recipe_lists_what_differs_and_touches_nothing(finished):
    folder, _, _ = finished
    before = files(folder)
    other = read_recipe(folder.parent / "recipe.yaml", "stages[1].learning_rate=0.5", "seed=4")
    with pytest.raises(UsageError, match="another recipe, nothing was changed") as told:
        train(*other, resume=True)
    assert "seed: 3 -> 4" in str(told.value)
    assert "stages[1].learning_rate: 0.01 -> 0.5" in str(told.value)
    assert files(folder) == before


def test_resuming_where_nothing_was_started_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no run in .* to go on with; leave out --resume"):
        train(*read_recipe(short(tmp_path)), resume=True)
    assert not (tmp_path / "run").exists()


def test_a_base_that_cannot_be_loaded_leaves_no_trace(tmp_path):
    recipe, plugins = read_recipe(short(tmp_path), "backbone.options.model=missing")
    with pytest.raises(FileNotFoundError):
        train(recipe, plugins)
    assert not (tmp_path / "run").exists()


def test_a_run_that_never_came_to_save_anything_may_start_again(tmp_path):
    path = short(tmp_path)
    with pytest.raises(DataError):
        train(*read_recipe(path, "run.max_length=6"))
    assert train(*read_recipe(path))


def test_overwriting_starts_again(tmp_path):
    recipe, plugins = read_recipe(short(tmp_path))
    train(recipe, plugins)
    first = weights(tmp_path / "run")
    other, _ = read_recipe(tmp_path / "recipe.yaml", "seed=9")
    train(other, plugins, overwrite=True)
    second = weights(tmp_path / "run")
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert len(rows(tmp_path / "run")) == 4


def test_a_loss_that_is_not_finite_names_term_and_samples_and_saves_nothing(tmp_path):
    path = short(
        tmp_path,
        heads={
            "point": {"plugin": "point", "options": {"poison": 0.55}},
            "mass": {"plugin": "mass"},
        },
        run={"save_every": 1},
    )
    recipe, plugins = read_recipe(path, "stages[1].steps=40", "run.skipped_steps=0")
    with pytest.raises(TrainingError, match=r"stage heads, step .*point.error = nan") as told:
        train(recipe, plugins)
    assert "samples: mixed/" in str(told.value)
    assert "1 in a row; run.skipped_steps allows 0" in str(told.value)
    assert not (tmp_path / "run" / "heads").exists()
    assert (tmp_path / "run" / "assign" / "model.json").is_file()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_sample_is_named_in_one_line_whoever_reads_it(tmp_path, workers):
    path = short(tmp_path, run={"workers": workers, "max_length": 6})
    with pytest.raises(DataError) as told:
        train(*read_recipe(path))
    assert str(told.value).startswith("mixed/")
    assert "\n" not in str(told.value)
