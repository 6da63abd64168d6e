"""Weights that are trained but cannot learn stop the stage that trains them."""

import pytest
import torch
from torch import nn

from tests.core.training.one_step import OneStep
from tests.core.training.small_runs import read_recipe, write_recipe
from tpokit import TrainingError
from tpokit.data.collate import Collator
from tpokit.lora import lora_layers
from tpokit.losses import CombinedLoss
from tpokit.model import build_model
from tpokit.parts import set_modes
from tpokit.training.audit import AUDITED_STEPS, GradientAudit
from tpokit.training.ranks import Ranks
from tpokit.training.stages import train
from tpokit.training.watching import Step

PLACES = {"point": 0, "image": 1, "talk": 2, "given": 4, "mass": 5}
FULL = dict.fromkeys(("vision", "connector", "llm", "bridge", "point", "mass"), "full")


class Stage:
    """Steps of a tiny model under the audit, each of the samples that are named."""

    def __init__(self, folder, train=FULL, change=lambda model: None, allowed=(), seed=0):
        recipe, plugins = read_recipe(write_recipe(folder))
        self.model = build_model(recipe, plugins)
        torch.manual_seed(seed)
        nn.init.normal_(self.model.bridge.output.weight, std=0.3)
        nn.init.constant_(self.model.head("point").inner.bias, 1.0)  # no ReLU is dead
        nn.init.constant_(self.model.head("mass").inner.bias, 1.0)
        change(self.model)
        set_modes(self.model, train, recipe.lora, 0)
        self.model.alike = True
        self.samples = OneStep(self.model, folder)
        heads = {task: self.model.head(task) for task in self.model.heads}
        self.collate = Collator(self.model.backbone.processor, heads, self.model.tokens)
        weights = recipe.loss_weights(recipe.stages[1])
        self.combined = CombinedLoss(weights)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=0.01)
        self.audit = GradientAudit(self.model, weights, allowed, "all", Ranks(0, 1, False))
        self.number = 0

    def step(self, *names, scale=1.0):
        self.number += 1
        batch = self.collate([self.samples[PLACES[name]] for name in names])
        self.audit.step_begins(Step(self.number, [batch], batch.counts, 0.0))
        self.optimizer.zero_grad()
        terms = self.model(batch)
        loss = self.combined(terms, batch.counts) * scale
        self.audit.loss_known(terms, loss, batch)
        loss.backward()
        self.audit.gradients_ready()
        self.optimizer.step()


def without_effect(model):
    """A layer of a head that is there and runs, times zero."""
    head = model.head("mass")
    head.extra = nn.Linear(1, 1)
    found = head.forward
    head.forward = lambda slots, context: found(slots, context) + 0 * head.extra.weight.sum()


def test_a_model_in_which_everything_learns_goes_on(tmp_path):
    stage = Stage(tmp_path)
    for _ in range(AUDITED_STEPS + 1):
        stage.step("point", "image", "given", "mass")


def test_a_weight_that_no_loss_depends_on_is_named_before_the_first_backward_pass(tmp_path):
    def change(model):
        model.head("mass").lost = nn.Linear(2, 2)

    with pytest.raises(TrainingError) as caught:
        Stage(tmp_path, change=change).step("talk", "talk")
    message = str(caught.value)
    assert message.startswith("stage all, step 1: no loss depends on 2 of the trained weights")
    assert "(mass: heads.mass.lost.weight, heads.mass.lost.bias)" in message
    assert r"run.without_gradient: ['heads\.mass\.lost\.']" in message


def test_a_gradient_of_exactly_zero_is_named_after_the_first_steps_that_call_its_head(tmp_path):
    def change(model):
        without_effect(model)
        model.head("mass").extra.bias = None

    stage = Stage(tmp_path, change=change)
    for _ in range(AUDITED_STEPS + 2):
        stage.step("talk", "point", "given", "image")  # which do not call it
    for _ in range(AUDITED_STEPS - 1):
        stage.step("mass", "talk")
    with pytest.raises(TrainingError) as caught:
        stage.step("mass", "talk")
    message = str(caught.value)
    assert f"the gradient was exactly zero in {AUDITED_STEPS} steps that ran 1 of" in message
    assert "(mass: heads.mass.extra.weight)" in message
    assert r"run.without_gradient: ['heads\.mass\.extra\.weight']" in message


def test_weights_that_the_recipe_allows_may_learn_nothing(tmp_path):
    stage = Stage(tmp_path, change=without_effect, allowed=(r"mass\.extra", "mass.lost"))
    for _ in range(AUDITED_STEPS):
        stage.step("mass", "point", "image", "given")


def test_a_head_may_name_weights_that_the_learnt_terms_leave_alone(tmp_path):
    asked = []

    def change(model):
        without_effect(model)
        model.head("mass").without_gradient = lambda learnt: asked.append(learnt) or ("^extra",)

    stage = Stage(tmp_path, change=change)
    for _ in range(AUDITED_STEPS):
        stage.step("mass")
    assert asked == [{"error"}]


def test_a_backbone_may_name_weights_that_it_has_but_does_not_use(tmp_path):
    def change(model):
        model.backbone.layers[0].spare = nn.Linear(1, 1)
        model.backbone.without_gradient = lambda: (r"^layers\.0\.spare",)

    Stage(tmp_path, change=change).step("talk")


def test_vision_is_judged_by_steps_with_media_and_given_values_by_steps_that_have_some(tmp_path):
    stage = Stage(tmp_path)
    for _ in range(AUDITED_STEPS + 1):
        stage.step("point", "mass", "talk")

    def change(model):
        nn.init.zeros_(model.backbone.connector.weight)  # and it never moves
        model.backbone.connector.weight.register_hook(torch.zeros_like)

    stage = Stage(tmp_path / "blind", change=change)
    stage.step("point", "mass", "talk")
    for _ in range(AUDITED_STEPS - 1):
        stage.step("image")
    with pytest.raises(TrainingError, match=r"vision: backbone\.vision\.weight, .*connector: "):
        stage.step("image")


def test_lora_learns_behind_its_second_matrix_which_starts_at_zero(tmp_path):
    stage = Stage(tmp_path, {**FULL, "llm": "lora"})
    for _ in range(AUDITED_STEPS + 1):
        stage.step("point", "mass", "image")


def test_an_adapter_that_gets_no_gradient_is_named(tmp_path):
    """As with checkpointing behind frozen embeddings, the reentrant way."""
    stage = Stage(tmp_path, {**FULL, "llm": "lora"})
    name, layer = next(lora_layers(stage.model))
    layer.lora_B["default"].weight.register_hook(torch.zeros_like)
    for _ in range(AUDITED_STEPS - 1):
        stage.step("point", "mass", "image")
    with pytest.raises(TrainingError) as caught:
        stage.step("point", "mass", "image")
    assert f"(llm: {name}.lora_A.default.weight, {name}.lora_B.default.weight)" in str(caught.value)


def test_a_step_that_is_skipped_counts_for_nothing(tmp_path):
    stage = Stage(tmp_path, change=without_effect, allowed=(r"extra\.bias",))
    for _ in range(AUDITED_STEPS - 1):
        stage.step("mass")
    stage.step("mass", scale=float("nan"))
    for parameter in stage.model.parameters():
        nn.init.constant_(parameter, 0.1)  # the step has changed them here
    with pytest.raises(TrainingError, match=r"heads\.mass\.extra\.weight"):
        stage.step("mass")


def test_a_run_with_a_loss_of_weight_zero_stops_and_says_which_part_learns_nothing(tmp_path):
    changes = ["loss.mass={weight: 0.0, error: 1.0}", "stages[1].steps=12"]
    recipe, plugins = read_recipe(write_recipe(tmp_path), *changes)
    with pytest.raises(TrainingError, match=r"stage heads, step \d+: the gradient was .*\(mass: "):
        train(recipe, plugins)
