"""Losses and gradients that are not finite: all ranks skip the step, it is named, and too many stop
the run.
"""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.core.training.one_step import change
from tests.core.training.skipped_ranks import TWO_STEPS
from tests.core.training.test_engines import one_step_recipe
from tests.forked import forked, load_deepspeed
from tpokit import LossTerm, TrainingError
from tpokit.training.json_lines import append_rows, read_rows
from tpokit.training.ranks import Ranks
from tpokit.training.skipped import SkippedSteps

ENGINES = ("ddp", "zero0", "zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Two processes, of which one has a loss that is not finite."""
    folder = tmp_path_factory.mktemp("skipped")
    one_step_recipe(folder)
    load_deepspeed()
    ran = forked(Path(__file__).with_name("skipped_ranks.py"), folder, *ENGINES, processes=2)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout.count("stage all, step 1: loss is not finite") == len(ENGINES)
    return folder


@pytest.fixture(scope="module")
def one_process(ranks):
    return change(ranks, "plain", device_batch=1, overrides=TWO_STEPS)


@pytest.mark.parametrize("engine", ENGINES)
def test_all_ranks_skip_a_step_for_one_of_them_and_nothing_of_it_is_left(
    ranks, one_process, engine
):
    assert read_rows(ranks / engine / "skipped_steps.jsonl") == [
        {
            "stage": "all",
            "step": 1,
            "rank": 0,
            "terms": {"point.error": "nan", "point.square": "nan"},
            "samples": ["lines/0"],
        }
    ]
    found = load_file(ranks / engine / "gradient.safetensors")
    assert set(found) == set(one_process)
    for name, gradient in one_process.items():
        wrong = (found[name] - gradient).norm() / max(gradient.norm(), 1e-2)
        assert wrong < 1e-5, f"{name}: relative error {wrong}"
    assert sum(bool(gradient.any()) for gradient in one_process.values()) > 20


def seen(steps, term, loss, name="a/1"):
    """Give a micro-batch of one sample."""
    batch = SimpleNamespace(counts={"language": 1.0}, samples=(name,))
    terms = {"language": LossTerm(torch.tensor(term), 1.0)}
    steps.loss_known(terms, torch.tensor(loss), batch)
    return float(steps.factor())


@pytest.fixture
def steps(tmp_path):
    return SkippedSteps(tmp_path / "skipped.jsonl", "heads", 2, Ranks(0, 1, False))


def test_a_finite_step_is_multiplied_by_one(steps):
    assert seen(steps, 2.0, 1.0) == 1.0
    assert not steps.ended(1, norm=3.0)
    assert not steps.ended(2, norm=None)


def test_steps_are_skipped_until_too_many_follow_each_other(steps, tmp_path, capsys):
    for step in (1, 2, 4, 5):
        assert math.isnan(seen(steps, math.inf, math.nan))
        assert steps.ended(step, norm=1.0)
        if step == 2:
            seen(steps, 2.0, 1.0)
            assert not steps.ended(3, norm=1.0)
    assert capsys.readouterr().out.splitlines()[0] == (
        "stage heads, step 1: loss is not finite: language = inf on rank 0; samples: a/1; "
        "the step is skipped"
    )
    seen(steps, math.inf, math.nan)
    with pytest.raises(TrainingError) as told:
        steps.ended(6, norm=1.0)
    assert str(told.value) == (
        "stage heads, step 6: loss is not finite: language = inf on rank 0; samples: a/1 "
        "(3 in a row; run.skipped_steps allows 2; all skipped steps: "
        f"{tmp_path / 'skipped.jsonl'})"
    )
    assert steps.count == 5
    assert [row["step"] for row in read_rows(tmp_path / "skipped.jsonl")] == [1, 2, 4, 5, 6]


def test_a_total_that_overflows_names_the_loss_itself(steps, tmp_path):
    seen(steps, 2.0, math.inf)
    assert steps.ended(1, norm=1.0)
    assert read_rows(tmp_path / "skipped.jsonl")[0]["terms"] == {"loss": "inf"}


def test_a_gradient_that_is_not_finite_names_all_samples_of_the_step(steps, tmp_path, capsys):
    for number in range(10):
        seen(steps, 2.0, 1.0, f"a/{number}")
    assert steps.ended(1, norm=math.inf)
    assert "its gradient is not; samples: a/0, a/1," in capsys.readouterr().out
    rows = read_rows(tmp_path / "skipped.jsonl")
    assert [(row["terms"], row["samples"]) for row in rows] == [
        ({}, [f"a/{number}"]) for number in range(10)
    ]


def test_a_resumed_run_goes_on_counting(steps, tmp_path):
    append_rows(
        tmp_path / "skipped.jsonl",
        [{"stage": name, "step": step} for name, step in [("old", 6), ("heads", 2), ("heads", 6)]],
    )
    append_rows(tmp_path / "skipped.jsonl", [{"stage": "heads", "step": 6}])  # another micro-batch
    append_rows(tmp_path / "skipped.jsonl", [{"stage": "heads", "step": 7}])
    steps.go_on(7)
    assert steps.count == 3
    seen(steps, math.inf, math.nan)
    with pytest.raises(TrainingError, match="3 in a row"):
        steps.ended(8, norm=1.0)
