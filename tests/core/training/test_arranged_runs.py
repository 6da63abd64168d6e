"""Runs whose samples are arranged: budgets, groups, samples that are shortened."""

from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.core.training import one_step
from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tests.core.training.test_engines import assert_same, one_step_recipe
from tests.core.training.test_stages import rows
from tests.forked import forked
from tpokit import DataError, UsageError
from tpokit.training.shortened import ShortenedSamples
from tpokit.training.stages import train
from tpokit.training.watching import Step

LONG_LINES = Path(__file__).with_name("long_lines.py")


def set_run(path, **keys):
    plain = yaml.safe_load(path.read_text())
    plain["run"].update(keys)
    path.write_text(yaml.safe_dump(plain))


@pytest.fixture(scope="module")
def whole_step(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    set_run(one_step_recipe(folder), device_batch=8)
    return one_step.change(folder, "plain", device_batch=8)


@pytest.mark.parametrize(
    "keys",
    [{"device_batch": 3}, {"device_batch": 8, "device_tokens": 30}, {"device_pixels": 1}],
    ids=str,
)
def test_the_arrangement_changes_no_gradient(whole_step, tmp_path, keys):
    set_run(one_step_recipe(tmp_path), **keys)
    assert_same(one_step.change(tmp_path, "plain", device_batch=8), whole_step)


def test_ranks_that_need_different_numbers_of_micro_batches_keep_step(whole_step, tmp_path):
    set_run(one_step_recipe(tmp_path), device_tokens=16)
    ran = forked(one_step.__file__, tmp_path, "ddp", processes=2)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert_same(load_file(tmp_path / "ddp-2.safetensors"), whole_step)


# ---- samples that are too long ----


def long_recipe(folder, **run):
    kinds = ["talk", "point", "given", "seen"]
    path = write_recipe(
        folder,
        data={
            "long": {"source": "long_lines", "options": {"kinds": kinds, "image": "picture.png"}}
        },
        stages=[stage("assign", {"llm": "lora", "bridge": "full"}, mix={"long": 1.0}, steps=4)],
        run={"group": 4, "max_length": 24, **run},
    )
    registry = yaml.safe_load((folder / "registry.yaml").read_text())
    registry["plugins"].append({"path": str(LONG_LINES)})
    (folder / "registry.yaml").write_text(yaml.safe_dump(registry))
    return path


def test_shortened_samples_are_counted_in_the_log_and_none_is_bad(tmp_path):
    folder = train(*read_recipe(long_recipe(tmp_path)))
    assert [row.get("shortened_samples") for row in rows(folder)] == [None, 2, 3]
    assert not (folder / "bad_samples.jsonl").exists()


def test_samples_are_dropped_where_the_recipe_says_so(tmp_path):
    recipe = long_recipe(tmp_path, too_long="drop", bad_samples=0.0)
    with pytest.raises(DataError, match=r"tokens, but at most 24 fit \(run.max_length\); a cut"):
        train(*read_recipe(recipe))


def test_packing_that_cannot_be_had_leaves_no_trace(tmp_path):
    recipe = write_recipe(tmp_path, run={"packing": "conversation"})
    with pytest.raises(UsageError, match="TinyBackbone cannot take several samples in one row"):
        train(*read_recipe(recipe))
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_goes_on_counting():
    first, second = ShortenedSamples(), ShortenedSamples()
    assert first.row() == {}
    first.step_begins(Step(1, (), {}, 0.0, shortened=3))
    second.restore(first.state())
    second.step_begins(Step(2, (), {}, 0.0, shortened=1))
    assert second.row() == {"shortened_samples": 4}
