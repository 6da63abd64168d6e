"""Losses of the mask head: costs of single masks, and the terms of the box."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tpokit.errors import TpokitError
from tpokit_mask.losses.masks import focal_cost, mask_dice, mask_focal, mask_iou
from tpokit_mask.losses.terms import box_l1_term, box_tokens_term

# ---- masks ----


@settings(max_examples=60, deadline=None)
@given(
    logit=st.one_of(st.floats(-1200, 1200), st.just(-1024.0)),
    wanted=st.booleans(),
    alpha=st.one_of(st.none(), st.floats(0, 1)),
    gamma=st.sampled_from([0.0, 0.3, 1.0, 2.0, 5.0]),
)
def test_no_logit_is_too_large_for_the_focal_loss(logit, wanted, alpha, gamma):
    logits = torch.tensor([logit], requires_grad=True)
    cost = focal_cost(logits, torch.tensor([wanted]), alpha, gamma)
    cost.sum().backward()
    exact = torch.tensor([logit], dtype=torch.float64)
    wrong = -functional.logsigmoid(exact if wanted else -exact)
    right = 1.0 if alpha is None else alpha if wanted else 1 - alpha
    expected = right * (1 - (-wrong).exp()) ** gamma * wrong
    torch.testing.assert_close(cost.double(), expected, rtol=1e-4, atol=1e-7)
    assert logits.grad.isfinite().all()


def test_a_right_mask_costs_nothing_and_a_wrong_one_all():
    true = torch.zeros(8, 6, dtype=torch.bool)
    true[2:5, 1:4] = True
    logits = torch.where(true, 50.0, -50.0)
    assert mask_focal(logits, true, 0.25, 2.0) == 0
    assert mask_dice(logits, true) == 0
    assert (mask_iou(logits, true), mask_iou(-logits, true)) == (1, 0)
    assert mask_dice(-logits, true) == pytest.approx(1 - 1 / 49)
    empty = torch.zeros_like(true)
    assert mask_dice(torch.full((8, 6), -50.0), empty) == 0
    assert mask_iou(torch.zeros(8, 6), empty) == 0  # a logit of 0 is not the object


# ---- terms of the box ----


@pytest.mark.parametrize(("term", "numbers"), [(box_tokens_term, (3, 5)), (box_l1_term, (4,))])
def test_terms_of_the_box_are_mean_differences_of_what_is_there(term, numbers):
    found = torch.randn(2, 3, *numbers, requires_grad=True)
    wanted = torch.randn(2, 3, *numbers, requires_grad=True)
    there = torch.tensor([[True, True, False], [True, False, False]])
    with torch.no_grad():
        found[~there], wanted[~there] = torch.nan, torch.inf
    result = term(found, wanted, there, box_count=3)
    assert result.count == 3
    expected = (found - wanted)[there].abs().mean()  # as released, over all numbers of all boxes
    torch.testing.assert_close(result.sum / result.count, expected)
    result.sum.backward()
    assert wanted.grad is None
    assert not found.grad[~there].any()
    assert found.grad[there].abs().sum() == pytest.approx(3)
    half = term(found.bfloat16(), wanted.bfloat16(), there, box_count=3).sum
    full = term(found.bfloat16().float(), wanted.bfloat16().float(), there, box_count=3).sum
    assert half.dtype == torch.float32
    assert half == full


@pytest.mark.parametrize(("term", "numbers"), [(box_tokens_term, (3, 5)), (box_l1_term, (4,))])
def test_no_box_costs_nothing_but_has_a_graph(term, numbers):
    found = torch.zeros(0, *numbers, requires_grad=True)
    result = term(found, torch.zeros(0, *numbers), torch.zeros(0, dtype=torch.bool), box_count=0)
    assert result.sum == 0
    assert result.sum.requires_grad


def test_boxes_that_do_not_fit_are_named():
    there = torch.ones(2, dtype=torch.bool)
    with pytest.raises(TpokitError, match=r"predicted \[2, 4\] and true \[3, 4\] must be"):
        box_l1_term(torch.zeros(2, 4), torch.zeros(3, 4), there, 2)
    with pytest.raises(TpokitError, match=r"begin like the mask of what is there, \[2\]"):
        box_l1_term(torch.zeros(3, 4), torch.zeros(3, 4), there, 2)
