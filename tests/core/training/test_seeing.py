"""What a line of the log says of a run besides its loss, and that looking changes nothing."""

import math
import sys
from importlib.machinery import ModuleSpec
from itertools import count
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from tests.core.training.one_step import ORDER, OneStep
from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tests.forked import forked
from tpokit import UsageError
from tpokit.data.collate import Collator
from tpokit.model import build_model
from tpokit.parts import set_modes
from tpokit.reporting.log_columns import (
    PART_NORM,
    TASK_COSINE,
    TASK_NORM,
    below,
    is_term,
    repeatable,
)
from tpokit.training import speed
from tpokit.training.callbacks import read_rows
from tpokit.training.gradients import TaskGradients, shared_parameters
from tpokit.training.ranks import Ranks
from tpokit.training.seeing import compared_tasks, measurements
from tpokit.training.stages import train
from tpokit.training.trackers import tracker_callbacks
from tpokit.training.watching import Step

SCRIPT = __file__.replace("test_seeing", "seen_engines")
HEADS = {"llm": "lora", "bridge": "full", "point": "full", "mass": "full"}
ALONE = Ranks(0, 1, False)


def one_stage(folder, **run):
    only = stage("heads", HEADS, steps=3, samples_per_step=8, warmup=0.0)
    return write_recipe(folder, stages=[only], run={"log_every": 1, **run})


def weights(folder):
    files = sorted((folder / "heads").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_training(found, expected):
    """The same weights and the same lines, as far as both were looked at, bit for bit."""
    one, other = weights(found), weights(expected)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in other)
    lines = [
        [
            {k: v for k, v in repeatable(row).items() if not k.startswith((TASK_NORM, TASK_COSINE))}
            for row in read_rows(folder / "log.jsonl")
        ]
        for folder in (found, expected)
    ]
    assert lines[0] == lines[1]


def squares_of_tasks(row):
    """Square of the norm of the sum of the tasks' gradients, from their norms and cosines."""
    norms = below(row, TASK_NORM)
    total = sum(norm**2 for norm in norms.values())
    for pair, cosine in below(row, TASK_COSINE).items():
        one, other = pair.split(".")
        total += 2 * norms[one] * norms[other] * cosine
    return total


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A run whose tasks are compared in every step."""
    recipe, plugins = read_recipe(one_stage(tmp_path_factory.mktemp("seen"), gradients_every=1))
    return train(recipe, plugins)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """The same run without comparing tasks, with a tracker, and what that was told."""
    told, ended = [], []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            told.append((args.project, args.run_name, state.global_step, dict(logs)))

    package = ModuleType("wandb")
    package.__spec__ = ModuleSpec("wandb", None)
    package.finish = lambda: ended.append(len(told))
    path = one_stage(tmp_path_factory.mktemp("tracked"), report_to=["wandb"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", package)
        patch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
        return train(*read_recipe(path)), told, ended


@pytest.fixture(scope="module")
def rows(seen):
    return read_rows(seen / "log.jsonl")


def tiny_model(folder, modes=HEADS, **run):
    recipe, plugins = read_recipe(one_stage(folder, **run))
    model = build_model(recipe, plugins)
    set_modes(model, modes, recipe.lora, 0)
    return model, recipe


# ---- counts and speeds ----


def test_a_line_counts_calls_tokens_and_time_and_a_resumed_run_goes_on_counting(
    tmp_path, monkeypatch
):
    model, _ = tiny_model(tmp_path)
    samples = OneStep(model, tmp_path)
    heads = {task: model.head(task) for task in model.heads}
    examples = [samples[index] for index in range(len(samples))]
    batch = Collator(model.backbone.processor, heads, model.tokens)(examples)
    clock = count(100.0, 3.0)  # seconds; every look at it finds it 3 s later
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))

    def watcher():
        return speed.SpeedWatcher(list(model.heads), 8, torch.device("cpu"), world=1)

    def step(watcher):
        watcher.step_begins(Step(1, [batch], {}, waited_s=1.0))
        watcher.loss_known({}, torch.zeros(()), batch)

    first = watcher()
    step(first)
    row = first.row()
    assert (row["calls.point"], row["calls.mass"], row["tokens.triggers"]) == (3, 1, 4)
    tokens = int(batch.mask.sum())
    assert row["tokens.words"] + row["tokens.triggers"] == len(batch.learnt.ids)
    assert row["padding"] == pytest.approx(1 - tokens / batch.ids.numel())
    assert row["machine.samples_per_s"] == len(ORDER) / 4  # 1 s of waiting, 3 s behind it
    assert row["machine.tokens_per_s"] == tokens / 4
    assert row["machine.waiting_for_data"] == 0.25
    assert 0.01 < row["machine.memory_gib"] < 100
    assert "machine.worker_memory_gib" not in row
    assert "machine.mfu" not in row

    step(first)
    first.step_ended(2)
    second = watcher()
    second.restore(first.state())
    step(second)
    again = second.row()
    assert (again["calls.point"], again["tokens.triggers"]) == (6, 8)  # of both processes
    assert again["padding"] == row["padding"]
    assert again["machine.tokens_per_s"] == row["machine.tokens_per_s"]  # of the second one
    assert again["machine.samples_per_s"] == row["machine.samples_per_s"]


def test_what_depends_on_the_machine_stands_apart(rows):
    machine = set(rows[0]) - set(repeatable(rows[0]))
    assert machine == {
        "machine.samples_per_s",
        "machine.tokens_per_s",
        "machine.waiting_for_data",
        "machine.memory_gib",
    }
    terms = {name for row in rows for name in row if is_term(name)}
    assert terms == {
        "loss", "language", "assign", "mass.error", "point.error", "point.square",
    }  # fmt: skip


# ---- gradients ----


def test_norms_of_parts_add_up_to_the_norm_of_the_gradient_before_clipping(rows):
    for row in rows:
        norms = below(row, PART_NORM)
        assert set(norms) == set(HEADS)
        assert math.hypot(*norms.values()) == pytest.approx(row["grad_norm"], rel=1e-5)
    assert min(row["grad_norm"] for row in rows) > 1  # they were clipped


def test_gradients_of_tasks_add_up_to_that_of_the_shared_weights(rows):
    for row in rows:
        assert set(below(row, TASK_NORM)) == {"mass", "point", "assign", "language"}
        assert len(below(row, TASK_COSINE)) == 6
        assert squares_of_tasks(row) == pytest.approx(row[f"{PART_NORM}llm"] ** 2, rel=1e-4)


def test_looking_at_tasks_does_not_change_training_by_a_bit(seen, tracked):
    """With dropout in the LLM and in its adapters, and several micro-batches in a step."""
    assert_same_training(seen, tracked[0])


def test_two_ranks_under_zero2_see_what_one_process_sees_and_train_the_same(tmp_path):
    recipe = one_stage(tmp_path)
    done = forked(SCRIPT, recipe, "zero2", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_training(tmp_path / "zero2-1", tmp_path / "zero2-0")
    for row in read_rows(tmp_path / "zero2-1" / "log.jsonl"):
        norms = below(row, PART_NORM)
        assert math.hypot(*norms.values()) == pytest.approx(row["grad_norm"], rel=1e-5)
        assert squares_of_tasks(row) == pytest.approx(norms["llm"] ** 2, rel=1e-4)


def test_the_means_of_a_stage_make_a_table(rows, seen):
    table = compared_tasks(read_rows(seen / "log.jsonl"), "heads")
    norms = [row[f"{TASK_NORM}point"] for row in rows]
    assert table["point"]["norm"] == pytest.approx(sum(norms) / len(norms))
    assert table["point"]["language"] == table["language"]["point"]
    assert "point" not in table["point"]
    assert compared_tasks(rows, "assign") == {}


def test_a_task_that_is_not_in_a_step_has_no_gradient_in_it(tmp_path):
    model, recipe = tiny_model(tmp_path)
    _, shared = shared_parameters(model)
    watcher = TaskGradients(model, [*shared.values()], recipe.loss_weights("heads"), 2, world=1)
    samples = OneStep(model, tmp_path)
    heads = {task: model.head(task) for task in model.heads}
    batch = Collator(model.backbone.processor, heads, model.tokens)([samples[2], samples[3]])
    for number in (1, 2):
        watcher.step_begins(Step(number, [batch], batch.counts, 0.0))
        watcher.loss_known(model(batch), torch.zeros(()), batch)
        watcher.gradients_ready()
        if number == 1:
            assert watcher.state() == {"sums": {}, "looks": {}}  # every second step
    later = TaskGradients(model, [*shared.values()], {}, 2, world=1)
    later.restore(watcher.state())
    row = later.row()
    assert list(row) == ["task_gradient.language"]
    assert row["task_gradient.language"] > 0
    assert later.row() == {}


def test_a_head_that_is_called_elsewhere_in_the_step_is_left_out_of_a_micro_batch(tmp_path):
    model, recipe = tiny_model(tmp_path)
    _, shared = shared_parameters(model)
    watcher = TaskGradients(model, [*shared.values()], recipe.loss_weights("heads"), 1, world=1)
    samples = OneStep(model, tmp_path)
    heads = {task: model.head(task) for task in model.heads}
    batch = Collator(model.backbone.processor, heads, model.tokens)([samples[2]])
    watcher.step_begins(Step(1, [batch], {**batch.counts, "mass.error": 2.0}, 0.0))
    model.trained_tasks = frozenset({"point"})
    watcher.loss_known(model(batch), torch.zeros(()), batch)
    watcher.gradients_ready()
    row = watcher.row()
    assert row["task_gradient.mass"] == 0
    assert row["task_gradient.language"] > 0
    assert "task_cosine.mass.language" not in row  # it has no direction


def test_tasks_are_compared_on_the_first_part_that_all_of_them_reach(tmp_path):
    model, _ = tiny_model(tmp_path)
    part, whole = shared_parameters(model)
    assert part == "llm"
    assert all(".lora_" in name for name in whole)
    numbers = sum(parameter.numel() for parameter in whole.values())
    _, some = shared_parameters(model, limit=numbers // 3)
    assert 0 < sum(parameter.numel() for parameter in some.values()) <= numbers // 3
    assert set(some) < set(whole)
    for modes, expected in (
        ({"bridge": "full", "point": "full"}, "bridge"),
        ({"connector": "full", "point": "full"}, "connector"),
        ({"point": "full"}, ""),
    ):
        set_modes(model, modes, None, 0)
        assert shared_parameters(model)[0] == expected


@pytest.mark.parametrize(
    ("run", "modes", "line"),
    [
        ({}, HEADS, None),
        ({"gradients_every": 3}, HEADS, "gradients of tasks are compared on 256 numbers of llm"),
        ({"gradients_every": 3}, {"point": "full"}, "left out, the stage trains nothing that"),
        ({"gradients_every": 3, "engine": "zero3"}, HEADS, "left out, zero3 has no whole weights"),
    ],
)
def test_what_tasks_are_compared_on_is_said(tmp_path, run, modes, line):
    model, recipe = tiny_model(tmp_path, modes, **run)
    watchers, lines = measurements(recipe, recipe.stages[0], model, ALONE)
    kinds = [type(watcher) for watcher in watchers]
    assert TaskGradients in kinds  # always, so that a resumed run finds the state of each
    assert [line in said for said in lines] == ([] if line is None else [True])


# ---- trackers ----


def test_trackers_get_every_column_of_every_line(tracked):
    folder, told, _ = tracked
    lines = [line for line in told if "loss" in line[3]]
    logged = read_rows(folder / "log.jsonl")
    assert len(lines) == len(logged) == 3
    for (project, run, step, logs), row in zip(lines, logged, strict=True):
        assert (project, run) == ("tiny", "tiny-heads")
        found = {name: value for name, value in logs.items() if name != "epoch"}
        assert {"stage": "heads", "step": step, **found} == row


def test_a_run_of_a_tracker_ends_with_its_stage(tracked):
    _, told, ended = tracked
    assert ended == [len(told)]


def test_files_of_tensorboard_stay_and_forget_what_is_done_again(tmp_path, monkeypatch):
    written = []

    class Tracker(TrainerCallback):
        def __init__(self, writer):
            self.writer = writer

    library = ModuleType("torch.utils.tensorboard")
    library.SummaryWriter = lambda folder, purge_step: written.append((folder, purge_step))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", library)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    (made,) = tracker_callbacks(["tensorboard"], tmp_path / "heads", done=4)
    assert isinstance(made, Tracker)
    assert written == [(str(tmp_path / "heads"), 5)]


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe, plugins = read_recipe(one_stage(tmp_path, report_to=["wandb", "trackio"]))
    with pytest.raises(UsageError, match="'wandb' is not installed; pip install wandb trackio, or"):
        train(recipe, plugins)
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_a_problem_of_the_recipe(tmp_path):
    with pytest.raises(UsageError, match=r"run\.report_to\[0\].*'tensorboard', 'wandb'"):
        read_recipe(one_stage(tmp_path, report_to=["paper"]))
