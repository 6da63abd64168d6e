"""How long a stage is and in which order follow from the size of its data, which must stay."""

import json

import pytest

from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tests.forked import forked
from tpokit import UsageError
from tpokit.training.callbacks import read_rows
from tpokit.training.stages import train

SCRIPT = __file__.replace("test_data_of_runs", "ranks_with_other_data")


def write_lines(path, count):
    line = {"question": "where is the ring", "answer": "it is here yes"}
    path.write_text(f"{json.dumps(line)}\n" * count)


def recipe_of_lines(folder):
    """Two stages of one epoch: of a file, and of a group with another file."""
    folder.mkdir(exist_ok=True)
    entries = {"mixed": {"source": "lines", "options": {"kinds": ["talk", "point"]}}}
    for name in ("first", "second"):
        write_lines(folder / f"{name}.jsonl", 9)
        entries[name] = {"source": "jsonl", "options": {"annotations": f"{name}.jsonl"}}
    train = {"llm": "lora", "bridge": "full"}
    length = {"steps": None, "epochs": 1}
    group = {"all": {"of": ["second", "mixed"], "caps": {"mixed": 4}}}
    stages = [
        stage("assign", train, mix={"first": 1.0}, **length),
        stage("joint", {**train, "point": "full"}, mix=group, **length),
    ]
    return write_recipe(folder, stages=stages, data=entries, run={"log_every": 1})


def steps(folder):
    return [(row["stage"], row["step"]) for row in read_rows(folder / "log.jsonl")]


def test_epochs_are_as_many_steps_as_the_data_need_and_data_that_are_still_needed_must_stay(
    tmp_path,
):
    recipe, plugins = read_recipe(recipe_of_lines(tmp_path))
    folder = train(recipe, plugins, stage="assign")
    assign = [("assign", step) for step in (1, 2, 3)]  # 9 samples, 4 a step
    assert steps(folder) == assign
    train(recipe, plugins, stage="joint")
    (folder / "joint" / "model.json").unlink()  # as if it had been stopped
    write_lines(tmp_path / "first.jsonl", 10)
    write_lines(tmp_path / "second.jsonl", 11)
    before = (folder / "run.json").read_bytes()
    with pytest.raises(UsageError) as caught:
        train(recipe, plugins, resume=True)
    assert str(caught.value) == (
        f"the run in {folder} was started with other data, nothing was changed:\n"
        "  data.second: 9 samples -> 11\n"
        "take these back (the order of samples follows from their number), or start again with "
        "--overwrite or another output"
    )
    assert (folder / "run.json").read_bytes() == before
    assert steps(folder) == assign + [("joint", step) for step in (1, 2, 3, 4)]  # 9 + 4 samples
    assert "epochs: 1" in (folder / "recipe.yaml").read_text()


def test_processes_with_different_data_all_stop(tmp_path):
    path = recipe_of_lines(tmp_path)
    write_lines(tmp_path / "other.jsonl", 10)
    ended = forked(SCRIPT, path, processes=2, timeout_s=60)
    assert ended.returncode == 0, ended.stderr[-3000:]
    message = "data.first has 9 samples for rank 0 and 10 for rank 1; all processes must read"
    assert ended.stdout.count(message) == 2
    assert not (tmp_path / "run").exists()
