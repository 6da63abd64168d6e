"""With ``run.schedule: same_task`` heads that no rank calls are left out."""

import pytest
import torch

from tests.core.training.one_step import OneStep
from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tpokit import UsageError
from tpokit.data.bad_samples import ReadBatch
from tpokit.data.collate import Collator
from tpokit.model import build_model
from tpokit.training.audit import GradientAudit
from tpokit.training.ranks import Ranks
from tpokit.training.same_task import name_called_tasks
from tpokit.training.stages import _refuse_other_order, train

POINT, TALK, GIVEN, MASS = 0, 2, 4, 5
ALONE = Ranks(0, 1, False)
TASKS = ("mass", "point")


@pytest.fixture
def model(tmp_path):
    recipe = write_recipe(tmp_path, backbone={"plugin": "tiny", "options": {}})
    return build_model(*read_recipe(recipe)).train()


@pytest.fixture
def batch_of(model, tmp_path):
    samples = OneStep(model, tmp_path)
    heads = {task: model.head(task) for task in model.heads}
    collate = Collator(model.backbone.processor, heads, model.tokens)
    return lambda *places: collate([samples[place] for place in places])


def named(batches, first_whole=False):
    read = [ReadBatch((batch,)) for batch in batches]
    found = name_called_tasks(read, TASKS, ALONE, torch.device("cpu"), first_whole)
    return [batch for piece in found for batch in piece.batches]


def test_a_micro_batch_knows_the_tasks_that_are_called_or_given_something_in_it(batch_of):
    batches = [batch_of(TALK), batch_of(POINT, TALK), batch_of(GIVEN), batch_of(MASS, POINT)]
    called = [batch.called for batch in named(batches)]
    assert called == [set(), {"point"}, {"point"}, {"mass", "point"}]


def test_all_heads_run_in_the_first_micro_batch_if_that_is_wanted(batch_of):
    batches = named([batch_of(TALK), batch_of(TALK)], first_whole=True)
    assert [batch.called for batch in batches] == [{"mass", "point"}, set()]


def test_a_head_that_is_left_out_is_not_run_and_gets_a_gradient_of_zero(model, batch_of):
    ran = []
    for task in TASKS:
        for layer in model.head(task).children():
            layer.register_forward_pre_hook(lambda layer, inputs, task=task: ran.append(task))
    (batch,) = named([batch_of(MASS, TALK)])
    terms = model(batch)
    assert set(ran) == {"mass"}
    assert terms["point.error"].count == terms["point.error"].sum == 0
    sum(term.sum for term in terms.values()).backward()
    for parameter in model.head("point").parameters():
        assert not parameter.grad.any()
    assert model.head("mass").outer.weight.grad.any()


def test_gradients_are_those_with_idle_heads(model, batch_of):
    found = []
    for batch in (batch_of(MASS, TALK), *named([batch_of(MASS, TALK)])):
        model.zero_grad()
        sum(term.sum for term in model(batch).values()).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    idle, left_out = found
    assert set(idle) == set(left_out)
    for name, gradient in idle.items():
        torch.testing.assert_close(left_out[name], gradient, rtol=1e-5, atol=1e-6)


def test_all_samples_that_ranks_take_at_the_same_time_are_of_one_task(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(
        GradientAudit,
        "step_begins",
        lambda audit, step: called.extend(batch.called for batch in step.batches),
    )
    entry = {"source": "lines", "options": {"kinds": ["point"]}}
    data = {"points": entry, "masses": {"source": "lines", "options": {"kinds": ["mass"]}}}
    parts = {"llm": "lora", "bridge": "full", "point": "full", "mass": "full"}
    changes = {"mix": {"points": 0.5, "masses": 0.5}, "steps": 4, "samples_per_step": 4}
    changes["without_conversation"] = True
    recipe = write_recipe(tmp_path, data=data, stages=[stage("heads", parts, **changes)])
    train(*read_recipe(recipe, "run.schedule=same_task"), curves=False)
    assert len(called) == 8
    assert sorted(map(sorted, called)) == [["mass"]] * 4 + [["point"]] * 4


def test_a_run_in_the_same_task_goes_on_with_as_many_processes_as_before(tmp_path):
    recipe, _ = read_recipe(write_recipe(tmp_path), "run.schedule=same_task")
    with pytest.raises(UsageError, match=r"which was 2 and is 4; go on with 2"):
        _refuse_other_order(recipe, 2, 4)
