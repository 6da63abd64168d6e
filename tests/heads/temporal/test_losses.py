"""Loss terms of the temporal head: parity with the release, values and gradients."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.heads.temporal.released_runs import TRAINING_RUNS, Run, load_run, options_of
from tpokit_temporal.detector.network import Detector
from tpokit_temporal.losses.terms import LossSettings, temporal_terms, term_counts
from tpokit_temporal.losses.weights import RELEASED_WEIGHTS, TERMS, released_weights
from tpokit_temporal.matching import MatchingCosts, match
from tpokit_temporal.options import TemporalOptions
from tpokit_temporal.released_names import from_released, to_released

AS_RELEASED = LossSettings(released_quirks=True)
TOLERANCE = {"rel": 1e-4, "abs": 1e-4}  # as stated with the numbers


def values(run: Run, settings: LossSettings = AS_RELEASED) -> dict[str, float]:
    """Each term divided by its count."""
    terms = temporal_terms(run.output, run.targets, settings)
    return {name: term.sum.item() / max(term.count, 1) for name, term in terms.items()}


def auxiliary(run: Run, name: str) -> float:
    layers = len(run.output.logits) - 1
    return sum(run.stored_loss(f"{name}_{layer}") for layer in range(layers))


def detector_of(run: Run) -> tuple[Detector, TemporalOptions]:
    """Our network with the stored weights."""
    config = run.facts["config"]
    options = options_of(config)
    detector = Detector(options, config["v_feat_dim"], config["t_feat_dim"]).eval()
    stored = {
        name.removeprefix("param."): tensor
        for name, tensor in run.tensors.items()
        if name.startswith("param.")
    }
    detector.load_state_dict(from_released(stored, options))
    return detector, options


# ---- values ----


@pytest.mark.parametrize("name", TRAINING_RUNS)
def test_every_loss_of_the_release_is_met(name):
    run = load_run(name)
    found = values(run)
    part = run.saliency_part
    expected = {
        "moment_l1": run.stored_loss("loss_span"),
        "moment_giou": run.stored_loss("loss_giou"),
        "label": run.stored_loss("loss_label"),
        "aux_moment_l1": auxiliary(run, "loss_span"),
        "aux_moment_giou": auxiliary(run, "loss_giou"),
        "aux_label": auxiliary(run, "loss_label"),
        "saliency_hinge": part("hinge"),
        "saliency_rank": part("rank_real") + part("rank_false"),
        "saliency_negative": part("neg_pair"),
        "attention_hinge": part("attn_hinge"),
        "attention_rank": part("attn_rank_real"),
        "attention_bce": part("attn_bce"),
        "attention_negative": part("attn_neg_pair"),
        "distill": run.stored_loss("loss_distill"),
        "orthogonal_dummy": run.stored_loss("loss_orthogonal_dummy"),
    }
    aligned = [term for term in TERMS if term.startswith("align_")]
    assert {term: found[term] for term in TERMS if term not in aligned} == {
        term: pytest.approx(value, **TOLERANCE) for term, value in expected.items()
    }
    whole = sum(found[term] for term in aligned)  # the release has their sum only
    coarse = run.facts["tolerances"].get("loss_ms_align", {"atol": TOLERANCE["abs"]})["atol"]
    assert whole == pytest.approx(run.stored_loss("loss_ms_align"), rel=1e-4, abs=coarse)


@pytest.mark.parametrize("name", TRAINING_RUNS)
def test_released_weights_add_the_terms_up_to_the_released_loss(name):
    run = load_run(name)
    weights = released_weights(run.facts["weight_dict"]["loss_saliency"])
    total = sum(weights[term] * value for term, value in values(run).items())
    assert total == pytest.approx(run.stored_loss("total"), rel=1e-4)


@pytest.mark.parametrize("name", TRAINING_RUNS)
@pytest.mark.parametrize("rounded", [False, True])
def test_every_matching_of_the_release_is_met(name, rounded):
    run = load_run(name)
    output, targets = run.output, run.targets
    costs = MatchingCosts(bfloat16_l1=rounded)  # no two costs are so near that it matters
    found = match(output.logits, output.moments, targets.moments, targets.moment_mask, costs)
    layers = [str(layer) for layer in range(len(output.logits) - 1)] + ["last"]
    for layer, where in enumerate(layers):
        for sample in range(len(targets)):
            queries = run.tensors[f"match.{where}.{sample}.pred"]
            moments = run.tensors[f"match.{where}.{sample}.tgt"]
            assert found.matched[layer, sample].sum() == len(moments)
            assert torch.equal(found.queries[layer, sample, moments], queries)


@pytest.mark.parametrize("name", TRAINING_RUNS)
@pytest.mark.parametrize("released_quirks", [False, True])
def test_counts_follow_from_the_targets_alone(name, released_quirks):
    run = load_run(name)
    settings = LossSettings(released_quirks=released_quirks)
    terms = temporal_terms(run.output, run.targets, settings)
    counted = term_counts(run.targets, run.facts["config"]["num_queries"], released_quirks)
    assert {term: found.count for term, found in terms.items()} == counted


# ---- gradients, through our network ----


@pytest.mark.parametrize("name", TRAINING_RUNS)
def test_every_gradient_of_the_release_is_met(name):
    run = load_run(name)
    detector, options = detector_of(run)
    inputs = {
        key: run.tensors[f"input.{key}"].clone().requires_grad_()
        for key in ("src_vid", "src_txt", "prompt_token")
        if f"input.{key}" in run.tensors
    }
    output = detector(
        inputs["src_vid"],
        run.tensors["input.src_vid_mask"].bool(),
        inputs["src_txt"],
        run.tensors["input.src_txt_mask"].bool(),
        inputs["prompt_token"][:, 0] if "prompt_token" in inputs else None,
        run.targets.relevant,
        run.targets.is_real,
    )
    weights = released_weights(run.facts["weight_dict"]["loss_saliency"])
    terms = temporal_terms(output, run.targets, AS_RELEASED)
    loss = sum(weights[term] * found.sum / max(found.count, 1) for term, found in terms.items())
    loss.backward()
    assert loss.item() == pytest.approx(run.stored_loss("total"), rel=1e-4)
    parameters = {
        key: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for key, parameter in detector.named_parameters()
    }
    found = {f"param.{key}": grad for key, grad in to_released(parameters, options).items()}
    found |= {f"input.{key}": tensor.grad for key, tensor in inputs.items()}
    stored = {
        key.removeprefix("grad."): tensor
        for key, tensor in run.tensors.items()
        if key.startswith("grad.")
    }
    assert {key for key in stored if key not in found} == set()
    wrong = [key for key, expected in stored.items() if not is_near(found[key], expected)]
    assert wrong == []


def is_near(found: Tensor, expected: Tensor) -> bool:
    """Within what is stated with the numbers."""
    return bool((found - expected).abs().max() <= 0.002 * expected.abs().max() + 1e-6)


# ---- what the release does wrong, and we only on demand ----


def test_a_lone_false_negative_is_ranked_too():
    run = load_run("original_hl_b4_one_false_negative")
    false = int((~run.targets.is_real).nonzero())
    for quirks, learns in ((True, False), (False, True)):
        saliency = run.output.saliency.clone().requires_grad_()
        attention = run.output.attention.clone().requires_grad_()
        output = run.output._replace(saliency=saliency, attention=attention)
        terms = temporal_terms(output, run.targets, LossSettings(released_quirks=quirks))
        (terms["saliency_rank"].sum + terms["attention_rank"].sum).backward()
        assert bool(saliency.grad[false].any()) is learns
        assert bool(attention.grad[false].any()) is learns


def test_the_top_grade_is_ranked_too():
    run = load_run("tpo_train_b3")
    lower = run.targets.saliency.clamp(max=11)
    only_top = run.targets.saliency == 12
    assert only_top.any()
    found = [
        values(load_with(run, saliency), LossSettings(released_quirks=quirks))["saliency_rank"]
        for quirks in (True, False)
        for saliency in (lower, run.targets.saliency)
    ]
    assert found[0] == found[1]
    assert found[2] < found[3]


def load_with(run: Run, saliency: Tensor) -> Run:
    """The run with other grades."""
    return replace(run, targets=replace(run.targets, saliency=saliency))


def test_saturated_clips_learn_only_without_the_quirk():
    run = load_run("original_charades_b2")
    alignment = run.output.alignment
    likeness = (alignment.clips @ alignment.moment[..., None])[..., 0]
    saturated = (likeness > 17.4) & ~run.targets.relevant & run.targets.clip_mask
    assert saturated.any()
    for quirks in (True, False):
        clips = alignment.clips.clone().requires_grad_()
        output = run.output._replace(alignment=alignment._replace(clips=clips))
        terms = temporal_terms(output, run.targets, LossSettings(released_quirks=quirks))
        terms["align_clips"].sum.backward()
        assert bool(clips.grad[saturated].any(-1).any()) is not quirks


# ---- names and weights ----


def test_published_weights_name_every_term():
    for weights in RELEASED_WEIGHTS.values():
        assert tuple(weights) == TERMS
    hl, tpo = RELEASED_WEIGHTS["qvhighlights"], RELEASED_WEIGHTS["videochat_tpo"]
    assert {name for name in TERMS if hl[name] != tpo[name]} == {
        name for name in TERMS if name.startswith(("saliency_", "attention_"))
    }
    assert (hl["saliency_rank"], tpo["saliency_rank"], tpo["aux_moment_l1"]) == (1, 4, 10)
    assert released_weights(4.0, attention=0.5)["attention_bce"] == 2


def test_names_and_weights_can_be_had_without_torch():
    code = "import sys, tpokit_temporal.losses.weights; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
