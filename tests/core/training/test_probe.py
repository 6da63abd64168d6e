"""The conversation probe against a plain computation, and when it ends a stage."""

import pytest
import torch

from tests.core.training.evaluated import evaluated_recipe
from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tpokit import RecipeError, UsageError
from tpokit.data.collate import Collator
from tpokit.data.conversation import Encoder
from tpokit.data.conversation_check import check_conversation
from tpokit.data.dataset import open_sources
from tpokit.data.mixing import generator
from tpokit.evaluation.sharing import Sharing
from tpokit.inference.lockstep import Lockstep
from tpokit.model import build_model
from tpokit.recipe import StopEntry
from tpokit.training import probe_reference
from tpokit.training.probe import ConversationProbe, ProbeScores, StopRule
from tpokit.training.stages import train


@pytest.fixture
def model(tmp_path):
    recipe, plugins = read_recipe(evaluated_recipe(tmp_path))
    made = build_model(recipe, plugins).eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(made.bridge.output.weight, std=0.3)
    return made, recipe, plugins


def probe_of(model, tmp_path):
    made, recipe, plugins = model
    return ConversationProbe(recipe, plugins, made, Sharing(), tmp_path / "probe" / "kept")


@torch.no_grad()
def distributions(model):
    """Log-probabilities and tokens of the answers of the first three samples without calls."""
    made, recipe, plugins = model
    source = open_sources(recipe, plugins, ["mixed"])["mixed"]
    found = [
        source.read(index, generator(recipe.seed, 0, f"mixed/{index}", "probe"))
        for index in (1, 2, 6)  # talk, seen, talk
    ]
    heads = {task: made.head(task) for task in made.heads}
    encoder = Encoder(made.backbone.processor, heads, made.tokens, 100)
    collate = Collator(made.backbone.processor, heads, made.tokens)
    rows, labels = [], []
    for sample in found:
        batch = collate([encoder.encode(sample, "mixed")])
        read = made.hidden(batch)[batch.learnt.rows, batch.learnt.positions]
        rows.append(made.bridge.logits(made.backbone.logits(read), read).double().log_softmax(-1))
        labels.append(batch.learnt.ids)
    return torch.cat(rows), torch.cat(labels)


def disturb(model):
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in model[0].parameters():
            weight += 0.1 * torch.randn_like(weight)


@torch.no_grad()
def test_accuracy_and_divergence_are_those_of_a_plain_computation(model, tmp_path):
    probe = probe_of(model, tmp_path)
    probe.remember(Lockstep())
    before, labels = distributions(model)
    accuracy = float((before.argmax(-1) == labels).double().mean())
    assert probe.scores(Lockstep()) == ProbeScores(pytest.approx(accuracy), 0.0, 0.0)
    disturb(model)
    after, _ = distributions(model)
    expected = float((before.exp() * (before - after)).sum(-1).mean())
    now = float((after.argmax(-1) == labels).double().mean())
    found = probe.scores(Lockstep())
    assert expected > 0.01
    assert found == pytest.approx((now, accuracy - now, expected), abs=1e-6)


@torch.no_grad()
def test_with_few_tokens_kept_the_divergence_is_a_lower_bound(model, tmp_path, monkeypatch):
    monkeypatch.setattr(probe_reference, "_PIECE", 40)  # one position at a time
    bounds = []
    fresh = {name: weight.clone() for name, weight in model[0].state_dict().items()}
    for kept in (2, 5, 100):
        model[0].load_state_dict(fresh)
        monkeypatch.setattr(probe_reference, "_KEPT", kept)
        probe = probe_of(model, tmp_path)
        probe.remember(Lockstep())
        assert probe.scores(Lockstep()).kl == 0.0
        disturb(model)
        bounds.append(probe.scores(Lockstep()).kl)
    assert 0 < bounds[0] < bounds[1] < bounds[2]


@pytest.mark.parametrize("change", ["data.mixed.options.count=4", "seed=4"])
def test_other_conversations_than_those_of_the_reference_are_refused(model, tmp_path, change):
    probe_of(model, tmp_path).remember(Lockstep())
    other = read_recipe(tmp_path / "recipe.yaml", change)
    with pytest.raises(UsageError, match="not those that the reference was made with"):
        probe_of((model[0], *other), tmp_path).scores(Lockstep())


def test_a_stage_ends_after_so_many_evaluations_in_a_row_beyond_a_limit():
    rule = StopRule(StopEntry(accuracy_drop=0.1, kl=0.5, patience=2))
    fine, wrong, far = (
        ProbeScores(0.9, 0.1, 0.5),
        ProbeScores(0.7, 0.3, 0.2),
        ProbeScores(0.9, 0, 1),
    )
    assert [rule.reason(scores) for scores in (fine, wrong, fine, far)] == [None] * 4
    said = rule.reason(wrong)
    assert said == "evaluate.probe.stop: accuracy_drop 0.3 > 0.1, for 2 evaluations"
    both = StopRule(StopEntry(accuracy_drop=0.1, kl=0.5)).reason(ProbeScores(0.5, 0.4, 0.6))
    assert both == "evaluate.probe.stop: accuracy_drop 0.4 > 0.1 and kl 0.6 > 0.5"


def test_prompts_that_all_call_heads_are_refused(tmp_path):
    lines = {"source": "lines", "options": {"kinds": ["point"]}}
    path = evaluated_recipe(tmp_path, data={"mixed": lines})
    with pytest.raises(UsageError, match=r"first 40 samples of data.mixed call a head"):
        probe_of((build_model(*read_recipe(path)), *read_recipe(path)), tmp_path)


def test_what_a_recipe_says_of_the_probe_is_checked(tmp_path):
    probe = {"prompts": "mixd", "stop": {"patience": 3}}
    with pytest.raises(RecipeError) as told:
        read_recipe(evaluated_recipe(tmp_path, probe=probe, evaluate={"every": 0}))
    found = {problem.path: problem.message for problem in told.value.problems}
    assert found == {
        "evaluate.probe.prompts": "no data entry 'mixd'; did you mean 'mixed'? (there are: mixed)",
        "evaluate.probe": "is measured at evaluations during a stage; say how often with "
        "evaluate.every",
        "evaluate.probe.stop": "needs a limit: accuracy_drop, kl or both",
    }


def test_heads_and_llm_are_not_trained_together_without_conversation(tmp_path):
    lines = {"source": "lines", "options": {"kinds": ["point", "mass"]}}
    both = stage("joint", {"llm": "lora", "bridge": "full", "point": "full"}, steps=1)
    path = write_recipe(tmp_path, data={"mixed": lines}, stages=[both])
    with pytest.raises(UsageError, match="without_conversation: true in the stage") as told:
        train(*read_recipe(path))
    assert "stage 'joint' trains llm and point" in str(told.value)
    assert "the first 50 samples of mixed all call heads" in str(told.value)
    assert not (tmp_path / "run").exists()
    recipe, plugins = read_recipe(path, "stages.joint.without_conversation=true")
    check_conversation(recipe, recipe.stages, open_sources(recipe, plugins, ["mixed"]))
