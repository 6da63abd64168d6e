"""The split of a step over processes, accumulation and engines changes no gradient."""

import pytest
import torch
from safetensors.torch import load_file

from tests.core.training.one_step import change
from tests.core.training.small_runs import python, stage, write_recipe
from tpokit import UsageError
from tpokit.training.arguments import Split, check_engine
from tpokit.training.ranks import Ranks

PARTS = ("vision", "connector", "llm", "bridge", "point", "mass")
ENGINES = ("ddp", "zero1", "zero2", "zero3")


def one_step_recipe(folder, **modes):
    one = stage(
        "all",
        {**dict.fromkeys(PARTS, "full"), **modes},
        learning_rate=1.0,
        samples_per_step=8,
        steps=1,
        warmup=0.0,
        schedule="constant",
        weight_decay=0.0,
        clip=0.0,
    )
    return write_recipe(folder, stages=[one], backbone={"plugin": "tiny", "options": {}})


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp(min=1e-3)  # rows that nothing asks for have none
        torch.testing.assert_close(
            found[name] / scale, gradient / scale, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    one_step_recipe(folder)
    script = __file__.replace("test_engines", "one_step")
    ran = python(script, folder, *ENGINES, processes=2, timeout_s=300)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def whole_step(two_processes):
    """One process, the whole step in one batch."""
    return change(two_processes, "plain", device_batch=8)


def test_every_part_gets_a_gradient_in_one_process(whole_step):
    for part in ("vision", "connector", "table", "layers", "bridge", "heads.point", "heads.mass"):
        assert any(part in name and gradient.any() for name, gradient in whole_step.items()), part


@pytest.mark.parametrize("device_batch", [1, 2, 4])
def test_accumulation_changes_no_gradient(two_processes, whole_step, device_batch):
    assert_same(change(two_processes, "plain", device_batch), whole_step)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_with_different_tasks_have_the_gradients_of_one_process(
    two_processes, whole_step, engine
):
    assert_same(load_file(two_processes / f"{engine}-2.safetensors"), whole_step)


def test_a_step_is_spread_over_processes_and_accumulation():
    assert Split.of(64, 8, 2) == Split(8, 2, 4)
    assert Split.of(4, 8, 2) == Split(2, 2, 1)  # a small step shrinks the device's batch


def test_a_step_that_cannot_be_shared_evenly_says_what_would_do():
    with pytest.raises(UsageError, match="samples_per_step is 7, which 2 processes.*6 or 8"):
        Split.of(7, 2, 2)
    with pytest.raises(UsageError, match="no multiple of run.device_batch = 4; 3 would do"):
        Split.of(6, 4, 1)


@pytest.mark.parametrize(
    ("engine", "ranks", "message"),
    [
        ("plain", Ranks(0, 2, True), "2 processes were started, but run.engine is 'plain'"),
        ("zero2", Ranks(0, 1, False), "needs a launcher: torchrun"),
    ],
)
def test_an_engine_that_does_not_fit_the_processes_is_refused(tmp_path, engine, ranks, message):
    from tests.core.training.small_runs import read_recipe

    recipe, _ = read_recipe(write_recipe(tmp_path), f"run.engine={engine}")
    with pytest.raises(UsageError, match=message):
        check_engine(recipe, ranks)
