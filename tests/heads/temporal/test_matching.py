"""Matching: parity with the release and with scipy, and its laws."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment
from torch.nn.utils.rnn import pad_sequence

from tpokit_temporal.matching import (
    FEW,
    MatchingCosts,
    assign,
    match,
    matching_costs,
    moment_giou,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "cg_detr"
CASES = ("matcher_seed41", "matcher_more_targets_seed42", "matcher_bf16_differs_seed462")


def golden_case(name):
    """Predictions of one layer, padded targets with their mask, and the file beside them."""
    tensors, facts = (
        load_file(GOLDEN / f"{name}.safetensors"),
        json.loads((GOLDEN / f"{name}.json").read_text()),
    )
    count = len(facts["targets_per_sample"])
    targets = [tensors[f"target.{sample}.spans"] for sample in range(count)]
    return (
        (tensors["pred_logits"][None], tensors["pred_spans"][None]),
        pad_sequence(targets, batch_first=True),
        mask_of(facts["targets_per_sample"]),
        facts,
        tensors,
    )


def mask_of(counts):
    return torch.arange(max(counts)) < torch.tensor(counts)[:, None]


def pairs_of(matching, layer, sample):
    """``[queries, moments]`` in the order of the queries, as the release gives them."""
    moments = matching.matched[layer, sample].nonzero()[:, 0]
    queries = matching.queries[layer, sample][moments]
    order = queries.argsort()
    return [queries[order].tolist(), moments[order].tolist()]


# ---- parity with the release ----


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rounded", [False, True])
def test_assignments_of_the_release_are_met(name, rounded):
    predictions, targets, mask, facts, _ = golden_case(name)
    found = match(*predictions, targets, mask, MatchingCosts(bfloat16_l1=rounded))
    expected = facts["expected"]["bfloat16_l1_cost" if rounded else "float32"]
    assert [pairs_of(found, 0, sample) for sample in range(len(expected))] == expected


@pytest.mark.parametrize("name", CASES)
def test_costs_of_the_release_are_met(name):
    predictions, targets, _, facts, tensors = golden_case(name)
    costs = matching_costs(*predictions, targets, MatchingCosts())[0]
    columns = tensors["cost_matrix"].split(facts["targets_per_sample"], dim=-1)
    for sample, count in enumerate(facts["targets_per_sample"]):
        assert torch.allclose(
            costs[sample, :, :count], columns[sample][sample], rtol=1e-5, atol=1e-5
        )


# ---- laws of the assignment ----


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, FEW + 2),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 2**20),
)
def test_no_assignment_costs_less(moments, queries, tied, seed):
    random = torch.Generator().manual_seed(seed)
    costs = torch.randn(2, 3, queries, moments, generator=random)
    costs = torch.where(torch.rand(costs.shape, generator=random) < tied, costs.round(), costs)
    counts = torch.randint(1, moments + 1, (3,), generator=random).tolist()
    mask = torch.arange(moments) < torch.tensor(counts)[:, None]
    found = assign(costs, mask)
    for layer, sample in np.ndindex(2, 3):
        ours, theirs = pairs_of(found, layer, sample), costs[layer, sample, :, : counts[sample]]
        assert len(set(ours[0])) == len(ours[0]) == min(queries, counts[sample])
        assert set(ours[1]) <= set(range(counts[sample]))
        best = theirs[linear_sum_assignment(theirs.double().numpy())].double().sum()
        assert costs[layer, sample][tuple(ours)].double().sum().item() == pytest.approx(best.item())


def test_of_equal_queries_the_first_is_taken_as_by_scipy():
    costs = torch.tensor([3.0, 1, 1, 1, 2])[None, None, :, None]
    found = assign(costs, torch.ones(1, 1, dtype=torch.bool))
    assert found.queries.item() == linear_sum_assignment(costs[0, 0].numpy())[0].item() == 1


@pytest.mark.parametrize("more", [1, FEW])
def test_padding_changes_no_assignment(more):
    costs = torch.randn(3, 4, 10, 2)
    padded = torch.cat([costs, torch.full((3, 4, 10, more), -50.0)], -1)
    there = torch.tensor([[True, True]] * 4)
    alone = assign(costs, there)
    beside = assign(padded, torch.cat([there, torch.zeros(4, more, dtype=torch.bool)], -1))
    assert torch.equal(alone.queries, beside.queries[..., :2])
    assert beside.matched[..., :2].all()
    assert not beside.matched[..., 2:].any()


def test_layers_and_samples_are_matched_by_themselves():
    logits, moments = torch.randn(3, 4, 6, 2), torch.rand(3, 4, 6, 2)
    targets, mask = torch.rand(4, 3, 2), mask_of([1, 3, 2, 3])
    together = match(logits, moments, targets, mask, MatchingCosts())
    for layer, sample in np.ndindex(3, 4):
        count = int(mask[sample].sum())
        one = (part[layer : layer + 1, sample : sample + 1] for part in (logits, moments))
        alone = match(*one, targets[sample : sample + 1, :count], mask_of([count]), MatchingCosts())
        assert pairs_of(alone, 0, 0) == pairs_of(together, layer, sample)


@pytest.mark.parametrize("moments", [1, 3, FEW + 1])
def test_predictions_that_are_not_finite_are_matched_nonetheless(moments):
    logits = torch.full((1, 2, 8, 2), torch.nan)  # the loss then says which term and sample
    found = match(
        logits,
        torch.rand(1, 2, 8, 2),
        torch.rand(2, moments, 2),
        mask_of([moments] * 2),
        MatchingCosts(),
    )
    assert found.matched.all()
    assert all(len(set(row)) == moments for row in found.queries[0].tolist())


def test_few_moments_are_matched_without_a_copy_to_the_host():
    # tensors on the device "meta" have no values that could be copied or looked at
    found = assign(
        torch.empty(3, 4, 10, FEW, device="meta"),
        torch.empty(4, FEW, dtype=torch.bool, device="meta"),
    )
    assert found.queries.shape == found.matched.shape == (3, 4, FEW)


def test_no_moment_gives_no_query():
    found = assign(torch.zeros(2, 0, 5, 0), torch.zeros(0, 0, dtype=torch.bool))
    assert found.queries.shape == found.matched.shape == (2, 0, 0)


def test_matching_has_no_gradient_and_is_in_float32_also_from_bfloat16():
    logits = torch.randn(1, 1, 4, 2, dtype=torch.bfloat16, requires_grad=True)
    moments = torch.rand(1, 1, 4, 2, dtype=torch.bfloat16)
    targets = torch.rand(1, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = match(logits, moments, targets, mask_of([2]), MatchingCosts())
    assert not found.queries.requires_grad
    assert matching_costs(logits, moments, targets, MatchingCosts()).dtype == torch.float32


# ---- overlap ----


def test_overlap_of_moments_by_hand():
    first = torch.tensor([[0.5, 0.4], [0.2, 0.2], [0.5, 0.4]])
    second = torch.tensor([[0.5, 0.4], [0.8, 0.2], [0.6, 0.4]])
    expected = [1.0, -0.5, 0.6]  # the same; 0.4 of a hull of 0.8 covered; 0.3 shared of 0.5
    assert moment_giou(first, second).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("width", [0.0, 0.3])
def test_moments_without_length_have_a_finite_overlap_and_gradient(width):
    first = torch.tensor([[0.5, 0.0]], requires_grad=True)
    giou = moment_giou(first, torch.tensor([[0.5, width]]))
    giou.sum().backward()
    assert giou.isfinite().all()
    assert first.grad.isfinite().all()
