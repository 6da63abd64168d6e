"""The list of bad samples: its lines, its end, and what a resumed run keeps of it."""

import json

import pytest

from tpokit import DataError
from tpokit.data.bad_samples import BadSample, BadSampleLimit
from tpokit.training.bad_samples import BadSampleList, forget_bad_samples, read_bad_samples


def bad(position, index=7, message="mine/s7: no target"):
    return BadSample(position, "mine", index, f"s{index}", message)


def test_the_list_stops_the_run_when_there_are_too_many(tmp_path):
    path = tmp_path / "bad_samples.jsonl"
    found = BadSampleList(path, "heads", BadSampleLimit(0.01, 5000), writes=True)
    found.take([bad(3, message="the first reason")])
    found.take([bad(at) for at in range(10, 19)])
    with pytest.raises(DataError) as told:
        found.take([bad(700), bad(600)])
    assert str(told.value) == (
        "the first reason (stage heads: 11 bad in the first 601, 1.83 %; "
        f"run.bad_samples = 0.01 allows 10 of 1000; all bad samples: {path})"
    )
    assert len(read_bad_samples(path)) == 12


def test_lines_stand_in_order_of_position_whoever_found_them(tmp_path):
    path = tmp_path / "bad_samples.jsonl"
    found = BadSampleList(path, "heads", BadSampleLimit(1.0, 100), writes=True)
    found.take([bad(5), bad(1, 8), bad(1, 2)])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["position"], line["index"]) for line in lines] == [(1, 8), (1, 2), (5, 7)]
    assert lines[-1] == {
        "stage": "heads",
        "position": 5,
        "source": "mine",
        "index": 7,
        "sample": "s7",
        "message": "mine/s7: no target",
    }


def test_only_the_first_process_writes(tmp_path):
    found = BadSampleList(tmp_path / "x", "heads", BadSampleLimit(1.0, 100), writes=False)
    found.take([bad(5)])
    assert found.count == 1
    assert not (tmp_path / "x").exists()


def test_an_empty_place_stops_the_run_though_few_are_bad(tmp_path):
    found = BadSampleList(tmp_path / "x", "heads", BadSampleLimit(1.0, 100), writes=True)
    with pytest.raises(DataError, match=r"no target \(stage heads: 1 bad .* of data\.mine can be"):
        found.take([bad(0)], whole=False)


def test_a_stage_that_is_done_again_from_a_step_forgets_what_came_behind_it(tmp_path):
    path = tmp_path / "bad_samples.jsonl"
    for stage, positions in (("assign", [2, 90]), ("heads", [1, 16, 17])):
        found = BadSampleList(path, stage, BadSampleLimit(1.0, 100), writes=True)
        found.take([bad(at) for at in positions])
    kept = forget_bad_samples(path, "heads", 16)
    assert kept == [bad(1)]
    assert read_bad_samples(path) == [("assign", bad(2)), ("assign", bad(90)), ("heads", bad(1))]
    assert forget_bad_samples(path, "joint", 0) == []
    assert len(read_bad_samples(path)) == 3
    forget_bad_samples(path, "assign", 0)
    forget_bad_samples(path, "heads", 0)
    assert not path.exists()
