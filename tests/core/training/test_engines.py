"""The split of a step over processes, accumulation and engines changes no gradient."""

import pytest
import torch
from safetensors.torch import load_file

from tests.core.training.one_step import RATE, change
from tests.core.training.small_runs import python, read_recipe, stage, write_recipe
from tpokit import UsageError, load_model
from tpokit.training.arguments import Split, check_engine
from tpokit.training.ranks import Ranks
from tpokit.training.stages import train

PARTS = ("vision", "connector", "llm", "bridge", "point", "mass")
ENGINES = ("ddp", "zero2", "zero3", "zero3-optimizer", "zero3-parameters")


def one_step_recipe(folder, **modes):
    one = stage(
        "all",
        {**dict.fromkeys(PARTS, "full"), **modes},
        learning_rate=RATE,
        samples_per_step=8,
        steps=1,
        warmup=0.0,
        schedule="constant",
        weight_decay=0.0,
        clip=0.0,
    )
    return write_recipe(folder, stages=[one], backbone={"plugin": "tiny", "options": {}})


def whole_recipe(folder):
    """Two stages, the first with adapters, the second with everything but the vision tower."""
    trained = dict.fromkeys(("connector", "llm", "bridge", "point", "mass"), "full")
    stages = [
        stage("assign", {"llm": "lora", "bridge": "full"}, steps=2),
        stage("all", trained, steps=2),
    ]
    backbone = {"plugin": "tiny", "options": {}}
    lora = {"rank": 2, "alpha": 4}
    return write_recipe(folder, stages=stages, backbone=backbone, lora=lora)


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        wrong = (found[name] - gradient).norm() / gradient.norm()
        assert wrong < 1e-5, f"{name}: relative error {wrong}"


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    one_step_recipe(folder)
    whole_recipe(folder / "whole")
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


def test_logits_in_chunks_change_no_gradient(two_processes, whole_step):
    assert_same(change(two_processes, "plain", overrides=["run.logit_chunks=3"]), whole_step)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_with_different_tasks_have_the_gradients_of_one_process(
    two_processes, whole_step, engine
):
    assert_same(load_file(two_processes / f"{engine}-2.safetensors"), whole_step)


def test_two_processes_with_zero3_save_the_whole_model_that_one_process_trains(two_processes):
    plain, plugins = read_recipe(
        two_processes / "whole" / "recipe.yaml", f"output={two_processes / 'alone'}"
    )
    alone = load_model(train(plain, plugins), plugins)
    together = load_model(two_processes / "whole" / "run", plugins)
    for (name, found), expected in zip(
        together.named_parameters(), alone.parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4, msg=name)
    trained = (two_processes / "whole" / "run" / "all").glob("*.safetensors")
    assert {file.stem for file in trained} == {"bridge", "connector", "llm", "mass", "point"}


def test_a_step_is_spread_over_processes_and_accumulation():
    assert Split.of(64, 8, 2) == Split(8, 2, 4)
    assert Split.of(4, 8, 2) == Split(2, 2, 1)  # a small step shrinks the device's batch


def test_a_step_that_cannot_be_shared_evenly_says_what_would_do():
    with pytest.raises(UsageError, match=r"samples_per_step is 7, which 2 processes.*6 or 8"):
        Split.of(7, 2, 2)
    with pytest.raises(UsageError, match=r"no multiple of run.device_batch = 4; 3 would do"):
        Split.of(6, 4, 1)


@pytest.mark.parametrize(
    ("engine", "ranks", "message"),
    [
        ("plain", Ranks(0, 2, True), "2 processes were started, but run.engine is 'plain'"),
        ("zero2", Ranks(0, 1, False), "needs a launcher: torchrun"),
    ],
)
def test_an_engine_that_does_not_fit_the_processes_is_refused(tmp_path, engine, ranks, message):
    recipe, _ = read_recipe(write_recipe(tmp_path), f"run.engine={engine}")
    with pytest.raises(UsageError, match=message):
        check_engine(recipe, ranks)
