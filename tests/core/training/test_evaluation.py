"""Evaluation during a stage: training does not notice, a resume repeats nothing, ranks agree."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.core.training.evaluated import evaluated_recipe
from tests.core.training.small_runs import read_recipe
from tests.forked import forked
from tpokit import UsageError
from tpokit.evaluation.runner import evaluate_run
from tpokit.reporting.log_columns import repeatable
from tpokit.training.callbacks import read_rows
from tpokit.training.stages import train
from tpokit.training.trainer import TpoTrainer

SCRIPT = __file__.replace("test_evaluation", "evaluated")
SILENT = ("evaluate.every=0", "evaluate.probe=null")


def weights(run):
    return {
        f"{file.parent.name}/{name}": tensor
        for stage in ("assign", "all")
        for file in sorted((run / stage).glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def evaluations(run):
    return read_rows(run / "evaluations.jsonl")


def terms(run):
    return [repeatable(row) for row in read_rows(run / "log.jsonl")]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("evaluated")
    return train(*read_recipe(evaluated_recipe(folder, run={"save_every": 2})))


def test_every_step_has_a_row_and_the_last_one_is_that_of_the_saved_model(evaluated):
    rows = evaluations(evaluated)
    steps = [("assign", 1), ("all", 1), ("all", 2), ("all", 3)]
    assert [(row["stage"], row["step"]) for row in rows] == steps
    own = {name for name in rows[0]["scores"] if name.startswith("probe.")}
    assert own == {"probe.accuracy", "probe.accuracy_drop", "probe.kl"}
    found = {name: value for name, value in rows[-1]["scores"].items() if name not in own}
    assert found == evaluate_run(evaluated).scores
    assert rows[0]["scores"]["probe.kl"] > 0
    kept = sorted(path.name for path in (evaluated / "probe").iterdir())
    assert kept == ["0-start.safetensors", "assign.safetensors"]


def test_training_does_not_notice_evaluation(evaluated):
    recipe = evaluated.parent / "recipe.yaml"
    silent = train(*read_recipe(recipe, f"output={evaluated.parent / 'silent'}", *SILENT))
    expected = weights(silent)
    assert weights(evaluated).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(evaluated).items())
    assert terms(evaluated) == terms(silent)
    assert not (silent / "evaluations.jsonl").exists()


def test_an_interrupted_run_loses_and_doubles_no_evaluation(evaluated, monkeypatch):
    path, output = evaluated.parent / "recipe.yaml", evaluated.parent / "broken"
    whole = TpoTrainer.get_batch_samples

    def broken(trainer, *rest):
        if trainer._stage.name == "all" and trainer.state.global_step == 2:
            raise ZeroDivisionError("a bug")
        return whole(trainer, *rest)

    monkeypatch.setattr(TpoTrainer, "get_batch_samples", broken)
    with pytest.raises(ZeroDivisionError):
        train(*read_recipe(path, f"output={output}"))
    monkeypatch.undo()
    assert evaluations(output)[-1]["step"] == 2
    shutil.rmtree(output / "all.checkpoints")  # as if it had died before it was written
    with (output / "evaluations.jsonl").open("a") as file:
        file.write('{"stage": "all", "st')  # died while it wrote
    train(*read_recipe(path, f"output={output}"), resume=True)
    assert evaluations(output) == evaluations(evaluated)
    assert all(torch.equal(t, weights(evaluated)[name]) for name, t in weights(output).items())


def test_the_probe_ends_a_stage_that_forgets_as_finished(tmp_path, capsys):
    stop = {"stop": {"kl": 0.0, "patience": 2}}
    path = evaluated_recipe(tmp_path, steps=(5, 5), probe=stop, run={"save_every": 1})
    run = train(*read_recipe(path), stage="assign")
    first, last = evaluations(run)
    assert (first["step"], last["step"]) == (1, 2)
    assert "ended" not in first
    assert last["ended"].startswith("evaluate.probe.stop: kl 0.")
    assert last["ended"].endswith("> 0, for 2 evaluations")
    assert f"assign ends after step 2: {last['ended']}" in capsys.readouterr().out
    assert (run / "assign" / "model.json").is_file()
    assert not (run / "assign.checkpoints").exists()


def test_a_stage_without_its_reference_says_how_to_get_it(evaluated, tmp_path):
    run = shutil.copytree(evaluated, tmp_path / "run")
    shutil.rmtree(run / "probe")
    recipe, plugins = read_recipe(evaluated.parent / "recipe.yaml", f"output={run}")
    third = recipe.stages[1].model_copy(update={"name": "third"})
    recipe = recipe.model_copy(update={"stages": (*recipe.stages, third)})
    with pytest.raises(UsageError, match=r"probe/assign.safetensors: .* train that one again"):
        train(recipe, plugins, stage="third")


def test_two_ranks_with_the_model_in_pieces_score_it_as_one_process_does(tmp_path):
    plain = {"plugin": "tiny", "options": {}}
    often = {"evaluate": {"every": 2}, "run": {"device_batch": 4}}
    path = evaluated_recipe(tmp_path, steps=(2,), backbone=plain, seed=9, **often)
    ran = forked(SCRIPT, path, processes=2)
    assert ran.returncode == 0, ran.stderr[-4000:]
    together = evaluations(tmp_path / "zero3")
    assert [(row["stage"], row["step"]) for row in together] == [("all", 2)]
    scores = together[-1]["scores"]
    assert 0 < scores["point.missing"] < 1, "the test needs calls, and some that are missing"
    found = {name: value for name, value in scores.items() if not name.startswith("probe.")}
    assert found == evaluate_run(tmp_path / "zero3").scores
    alone = train(*read_recipe(path))
    for row, expected in zip(together, evaluations(alone), strict=True):
        assert row["scores"] == pytest.approx(expected["scores"], abs=1e-4)
    for name, expected in weights(alone).items():
        found = weights(tmp_path / "zero3")[name]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4, msg=name)
