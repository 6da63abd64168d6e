"""Ranks that would mix up gradients stop, all of them, before they do."""

import json

import pytest
from safetensors.torch import load_file

from tests.core.training import broken_heads
from tests.core.training.broken_heads import TRIED, one_step
from tests.core.training.test_engines import assert_same, one_step_recipe
from tests.forked import forked, load_deepspeed

REFUSED = [
    (head, engine)
    for engine, heads in TRIED.items()
    for head in heads
    if (head, engine) != ("turned", "zero2")
]


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    one_step_recipe(folder)
    load_deepspeed()
    ran = forked(broken_heads.__file__, folder, processes=2, timeout_s=240)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def messages(tried):
    first, second = (json.loads((tried / f"messages-{rank}.json").read_text()) for rank in range(2))
    assert first == second  # every rank stops, and all say the same
    return first


def test_heads_that_break_the_rule_stop_every_rank(messages):
    assert set(messages) == {f"{head} {engine}" for head, engine in REFUSED}


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2"])
def test_a_head_that_is_not_touched_when_idle_is_named_with_its_weights(messages, engine):
    message = messages[f"untouched {engine}"]
    assert "stage all, step 1: ranks do not have gradients for the same weights (part mass)" in (
        message
    )
    assert "rank 1 has none for" in message
    for layer in ("inner", "outer"):
        assert f"heads.mass.{layer}.weight" in message
    assert "TaskHead.idle_inputs" in message
    assert "run.schedule: same_task" in message


@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_a_head_that_leaves_out_a_layer_is_named_with_that_layer(messages, engine):
    message = messages[f"half {engine}"]
    assert "rank 1 has none for" in message
    assert "heads.mass.outer.weight" in message
    assert "heads.mass.inner" not in message


@pytest.mark.parametrize(
    ("head", "first", "second"),
    [
        ("untouched", "heads.mass.inner", "heads.point.inner"),
        ("half", "heads.mass.outer", "heads.point.inner"),
        ("turned", "heads.mass.inner", "heads.mass.outer"),
    ],
)
def test_where_weights_are_gathered_ranks_stop_before_the_module_in_which_they_differ(
    messages, head, first, second
):
    message = messages[f"{head} zero3"]
    assert "ranks do not run the same modules" in message
    assert f"rank 0 comes to {first}, rank 1 to {second};" in message


def test_another_order_inside_a_head_changes_no_gradient_where_only_the_order_counts(tried):
    found = load_file(tried / "turned-zero2.safetensors")
    assert_same(found, one_step(tried, "plain", "turned"))
