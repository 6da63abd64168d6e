"""Runs over data with bad samples: they are replaced and listed, and too many stop the run."""

import json
from pathlib import Path

import pytest
import yaml

from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tests.core.training.test_stages import files, rows
from tests.forked import forked
from tpokit import DataError
from tpokit.training.run_folder import RunFolder
from tpokit.training.stages import train

ROOT = Path(__file__).parents[3]
BAD_LINES = Path(__file__).with_name("bad_lines.py")
BAD = {"unreadable": [3, 24], "blind": [27, 29, 10]}


def bad_recipe(folder, bad=BAD, **run):
    """Two stages over 30 lines, of 8 and 24 samples; all of them may be bad."""
    options = {"kinds": ["talk", "point", "mass", "given", "seen"], "image": "picture.png", **bad}
    heads = {"llm": "lora", "bridge": "full", "point": "full", "mass": "full"}
    path = write_recipe(
        folder,
        data={"mixed": {"source": "bad_lines", "options": {"count": 30, **options}}},
        stages=[stage("assign", {"llm": "lora", "bridge": "full"}, steps=2), stage("heads", heads)],
        run={"bad_samples": 1.0, "log_every": 3, "save_every": 2, **run},
    )
    registry = yaml.safe_load((folder / "registry.yaml").read_text())
    registry["plugins"].append({"path": str(BAD_LINES)})
    (folder / "registry.yaml").write_text(yaml.safe_dump(registry))
    return path


def bad_list(folder):
    path = folder / "bad_samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An unbroken run in one process, without data workers."""
    folder = tmp_path_factory.mktemp("whole")
    return train(*read_recipe(bad_recipe(folder)))


def assert_same_run(found, expected):
    weights = [path for path in files(expected) if path.suffix in {".safetensors", ".jsonl"}]
    assert weights
    for path in weights:
        if path.name != "log.jsonl":  # it holds the speed
            assert (found / path.relative_to(expected)).read_bytes() == path.read_bytes(), path
    assert rows(found) == rows(expected)


def test_bad_samples_are_replaced_counted_and_listed(whole):
    listed = bad_list(whole)
    assert [(line["stage"], line["position"], line["index"]) for line in listed] == [
        ("assign", 1, 3),
        ("heads", 11, 24),
        ("heads", 16, 27),
        ("heads", 17, 29),
        ("heads", 21, 10),
    ]
    assert {line["source"] for line in listed} == {"mixed"}
    assert (listed[1]["sample"], listed[1]["message"]) == (None, "line 24 is no JSON")
    assert (listed[2]["sample"], listed[2]["message"]) == (
        "27",
        "mixed/27: gone.png: there is no such file",
    )
    counts = [row.get("bad_samples") for row in rows(whole)]
    assert counts == [1, 1, None, 1, 4]  # steps 1, 2 of the one stage and 1, 3, 6 of the other


def test_data_workers_change_nothing(tmp_path, whole):
    assert_same_run(train(*read_recipe(bad_recipe(tmp_path, workers=2))), whole)


def test_two_processes_list_the_same(tmp_path, whole):
    path = bad_recipe(tmp_path, engine="ddp", save_every=0)
    ran = forked("-m", "tpokit", "train", path, processes=2)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert bad_list(tmp_path / "run") == bad_list(whole)


def test_too_many_stop_the_run_and_it_goes_on_with_a_higher_limit(tmp_path, whole):
    path = bad_recipe(tmp_path, bad_samples=0.15)
    with pytest.raises(DataError) as told:
        train(*read_recipe(path))
    place = tmp_path / "run" / "bad_samples.jsonl"
    assert str(told.value) == (
        "line 24 is no JSON (stage heads: 4 bad in the first 22, 18.2 %; "
        f"run.bad_samples = 0.15 allows 3 of 24; all bad samples: {place})"
    )
    assert bad_list(tmp_path / "run") == bad_list(whole)
    assert_same_run(train(*read_recipe(path, "run.bad_samples=1.0"), resume=True), whole)


def test_too_many_stop_every_process(tmp_path):
    path = bad_recipe(tmp_path, bad_samples=0, engine="ddp")
    ran = forked("-m", "tpokit", "train", path, processes=2)
    assert ran.returncode != 0
    assert ran.stderr.count("DataError: ") == 2, ran.stderr[-3000:]
    assert len(bad_list(tmp_path / "run")) >= 1


def test_an_error_that_is_no_data_error_stops_the_run_as_it_is(tmp_path):
    bad = {"broken": list(range(30))}
    with pytest.raises(ZeroDivisionError, match="a bug of the reader"):
        train(*read_recipe(bad_recipe(tmp_path, bad)))
    assert not (tmp_path / "run" / "bad_samples.jsonl").exists()


def test_an_entry_without_a_good_sample_stops_the_run_whatever_the_limit(tmp_path):
    bad = {"unreadable": list(range(30))}
    with pytest.raises(DataError, match=r"line \d+ is no JSON .*stage assign: \d+ bad") as told:
        train(*read_recipe(bad_recipe(tmp_path, bad, bad_samples=1.0)))
    assert "bad_samples.jsonl" in str(told.value)


def test_starting_again_begins_a_new_list(tmp_path):
    recipe, _ = read_recipe(bad_recipe(tmp_path))
    RunFolder(recipe).start()
    left = tmp_path / "run" / "bad_samples.jsonl"
    left.write_text("{}")
    again = RunFolder(recipe)
    again.plan_anew(None)
    again.start()
    assert not left.exists()
