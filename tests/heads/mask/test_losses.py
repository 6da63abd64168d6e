"""Losses of the mask head: parity with SAM 2, values and gradients; names, weights, options."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from tpokit.losses import CombinedLoss
from tpokit.types import LossTerm
from tpokit_mask.losses.masks import focal_cost, mask_dice, mask_focal, mask_iou
from tpokit_mask.losses.options import LossOptions
from tpokit_mask.losses.terms import (
    DecodedMasks,
    WantedMasks,
    box_tokens_term,
    mask_terms,
    term_counts,
)
from tpokit_mask.losses.weights import BOX_TERMS, MASK_TERMS, RELEASED_WEIGHTS, TERMS

GOLDEN = Path(__file__).parents[2] / "golden" / "sam2"
FACTS = json.loads((GOLDEN / "losses.json").read_text())
STORED = load_file(GOLDEN / "losses.safetensors")
VALUE = {"rtol": 1e-5, "atol": 1e-6}  # as stated with the numbers
GRADIENT = {"rtol": 1e-4, "atol": 1e-7}
RELEASED_NAMES = {
    "loss_mask": "focal",
    "loss_dice": "dice",
    "loss_iou": "iou",
    "loss_class": "object_score",
}
ELEMENTARY = [case for case in FACTS["cases"] if case["kind"] == "elementary"]
COMBINED = [case for case in FACTS["cases"] if case["kind"] == "combined"]
GROUPS = [
    (frame, step)
    for frame, steps in enumerate(FACTS["combined_inputs"]["masks_per_step"])
    for step in range(len(steps))
]


def by_name(case: dict) -> str:
    return case["name"]


# ---- one by one ----


def alpha_of(released: float) -> float | None:
    return None if released < 0 else released


def elementary_cost(case: dict) -> tuple[Tensor, Tensor]:
    """Cost of each mask or score, and the tensor that its gradient is stored for."""
    if case["inputs"] == "elem.object_score_logits":
        scores = STORED["elem.object_score_logits"].clone().requires_grad_()
        visible = STORED["elem.object_targets"].bool()
        return focal_cost(scores, visible, alpha_of(case["alpha"]), case["gamma"]), scores
    some = slice(None) if case["multimask"] else slice(1)
    logits = STORED["elem.logits"][:, some].clone().requires_grad_()
    masks = STORED["elem.targets"][:, some].bool()
    if case["loss"] == "iou":
        predicted = STORED["elem.pred_ious"][:, some].clone().requires_grad_()
        missed = predicted - mask_iou(logits, masks)
        return (missed.abs() if case["use_l1"] else missed.square()), predicted
    if case["loss"] == "dice":
        return mask_dice(logits, masks), logits
    return mask_focal(logits, masks, alpha_of(case["alpha"]), case["gamma"]), logits


@pytest.mark.parametrize("case", ELEMENTARY, ids=by_name)
def test_each_loss_of_sam2_and_its_gradient_is_met(case):
    cost, moved = elementary_cost(case)
    found = cost / case["num_objects"]
    weighted = found * STORED["elem.cotangent"] if case["multimask"] else found
    weighted.sum().backward()
    if not case["multimask"]:
        found = found.sum()[None]  # as the release does where there is one mask only
    torch.testing.assert_close(found, STORED[f"{case['name']}.value"], **VALUE)
    expected = STORED[f"{case['name']}.grad"]
    torch.testing.assert_close(moved.grad.reshape(expected.shape), expected, **GRADIENT)


# ---- the whole loss ----


def options_of(config: dict) -> LossOptions:
    return LossOptions(
        focal_alpha=alpha_of(config["focal_alpha"]),
        focal_gamma=config["focal_gamma"],
        iou_masks="all" if config["supervise_all_iou"] else "chosen",
        iou_error="l1" if config["iou_use_l1_loss"] else "squared",
        score_alpha=alpha_of(config["focal_alpha_obj_score"]),
        score_gamma=config["focal_gamma_obj_score"],
        absent_masks=not config["pred_obj_scores"],
        choice_focal=config["weight_dict"]["loss_mask"],
        choice_dice=config["weight_dict"]["loss_dice"],
    )


def stored_inputs(frame: int, step: int) -> dict[str, Tensor]:
    return {
        name: STORED[f"comb.f{frame}.s{step}.{name}"].clone().requires_grad_()
        for name in ("logits", "ious", "obj")
    }


def decoded_of(inputs: dict[str, Tensor]) -> DecodedMasks:
    return DecodedMasks(inputs["logits"], inputs["ious"], inputs["obj"][:, 0])


def wanted_of(frame: int) -> WantedMasks:
    masks = STORED["comb.targets"][frame].bool()
    return WantedMasks(masks, torch.ones(len(masks), dtype=torch.bool))


def object_count_of(case: dict) -> float:
    stated = case["num_objects"]
    return float(FACTS["combined_inputs"]["num_objects"] if isinstance(stated, str) else stated)


def released_values(terms: dict[str, LossTerm], config: dict) -> dict[str, Tensor]:
    """By released name: the terms divided by their counts, and all of it weighted."""
    weights = config["weight_dict"]
    found = {old: terms[RELEASED_NAMES[old]] for old in weights}
    values = {old: term.sum / term.count for old, term in found.items()}
    whole = sum(weights[old] * value for old, value in values.items())
    return {"loss_class": torch.tensor(0.0), **values, "core_loss": whole}


def assert_values(found: dict[str, Tensor], expected: dict[str, float]) -> None:
    assert {name: value.item() for name, value in found.items()} == {
        name: pytest.approx(value, rel=VALUE["rtol"], abs=VALUE["atol"])
        for name, value in expected.items()
    }


@pytest.mark.parametrize("case", COMBINED, ids=by_name)
def test_the_whole_loss_of_sam2_and_every_gradient_is_met(case):
    inputs = [stored_inputs(frame, step) for frame, step in GROUPS]
    decoded = [decoded_of(group) for group in inputs]
    wanted = [wanted_of(frame) for frame, _ in GROUPS]
    terms = mask_terms(decoded, wanted, object_count_of(case), options_of(case["config"]))
    found = released_values(terms, case["config"])
    assert_values(found, case["values"])
    found["core_loss"].backward()
    compared = 0
    for (frame, step), group in zip(GROUPS, inputs, strict=True):
        for name, tensor in group.items():
            expected = STORED[f"{case['name']}.grad.f{frame}.s{step}.{name}"]
            moved = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            torch.testing.assert_close(moved, expected, **GRADIENT)
            compared += 1
    assert compared == sum(key.startswith(f"{case['name']}.grad.") for key in STORED)


@pytest.mark.parametrize("case", COMBINED, ids=by_name)
def test_the_loss_of_sam2_on_each_frame_is_met(case):
    for frame, expected in enumerate(case["values_per_frame"]):
        decoded = [decoded_of(stored_inputs(*place)) for place in GROUPS if place[0] == frame]
        wanted = [wanted_of(frame)] * len(decoded)
        terms = mask_terms(decoded, wanted, object_count_of(case), options_of(case["config"]))
        assert_values(released_values(terms, case["config"]), expected)


def test_the_default_weights_and_options_give_the_official_loss():
    (case,) = [case for case in COMBINED if case["name"] == "comb_official_auto"]
    assert options_of(case["config"]) == LossOptions()
    decoded = [decoded_of(stored_inputs(*place)) for place in GROUPS]
    terms = mask_terms(decoded, [wanted_of(frame) for frame, _ in GROUPS], 4, LossOptions())
    loss = CombinedLoss(next(iter(RELEASED_WEIGHTS.values())))
    total = loss(terms, term_counts(object_count=4, box_count=0))
    torch.testing.assert_close(total.item(), case["values"]["core_loss"], **VALUE)


def test_the_released_loss_on_prompt_tokens_is_met():
    facts = json.loads((GOLDEN / "adapter.json").read_text())["box_token_loss"]
    stored = load_file(GOLDEN / "adapter.safetensors")
    there = torch.ones(3, dtype=torch.bool)
    term = box_tokens_term(stored["tokens"], stored["box_tokens"], there, box_count=3)
    assert term.sum.item() / term.count == pytest.approx(facts["value"], rel=1e-5)  # as stated


# ---- names, weights and options ----


def test_published_weights_name_every_term():
    assert list(RELEASED_WEIGHTS) == ["sam2", "videochat_tpo"]
    assert all(tuple(weights) == TERMS for weights in RELEASED_WEIGHTS.values())
    assert tuple(RELEASED_WEIGHTS["sam2"].values()) == (20, 1, 1, 1, 0, 0)
    assert tuple(RELEASED_WEIGHTS["videochat_tpo"].values()) == (0, 0, 0, 0, 1, 1)


def test_counts_follow_from_the_targets_alone():
    counts = term_counts(object_count=3, box_count=2)
    assert tuple(counts) == TERMS
    assert counts == dict.fromkeys(MASK_TERMS, 3.0) | dict.fromkeys(BOX_TERMS, 2.0)
    decoded, wanted = decoded_of(stored_inputs(0, 0)), wanted_of(0)
    terms = mask_terms([decoded], [wanted], 3, LossOptions())
    assert {name: term.count for name, term in terms.items()} == dict.fromkeys(MASK_TERMS, 3.0)


def test_names_weights_and_options_can_be_had_without_torch():
    code = (
        "import sys, tpokit_mask.losses.weights, tpokit_mask.losses.options;"
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"focal_gamma": -1}, "greater than or equal to 0"),
        ({"focal_alpha": 1.5}, "less than or equal to 1"),
        ({"score_alpha": -1}, "greater than or equal to 0"),
        ({"iou_masks": "best"}, "'all' or 'chosen'"),
        ({"iou_error": "l2"}, "'l1' or 'squared'"),
        ({"gamma": 2}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_option_is_refused(given, problem):
    with pytest.raises(ValidationError, match=problem):
        LossOptions(**given)
