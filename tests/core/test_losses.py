"""The combined loss and the cross-entropy over words and triggers."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tpokit import LossTerm, TrainingError
from tpokit.batch import tensors_in
from tpokit.losses import (
    CombinedLoss,
    chunked_language_terms,
    language_terms,
)


@given(st.integers(1, 12), st.integers(2, 20), st.integers(0, 3), st.integers(0, 1000))
def test_it_equals_a_cross_entropy_over_joined_logits_with_its_gradients(
    positions, rows, triggers, seed
):
    torch.manual_seed(seed)
    words = torch.randn(positions, rows, dtype=torch.float64, requires_grad=True)
    calls = torch.randn(positions, triggers, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, rows + triggers, (positions,))
    called = ids >= rows
    terms = language_terms(words, calls, ids, {"language": 3.0, "assign": 2.0})
    assert (terms["language"].count, terms["assign"].count) == (3.0, 2.0)
    (2 * terms["language"].sum + 3 * terms["assign"].sum).backward()
    found = words.grad.clone(), calls.grad.clone()
    words.grad = calls.grad = None
    plain = torch.nn.functional.cross_entropy(torch.cat([words, calls], 1), ids, reduction="none")
    assert terms["language"].sum.item() == pytest.approx(
        plain[~called].sum().item(), rel=1e-5, abs=1e-5
    )
    assert terms["assign"].sum.item() == pytest.approx(
        plain[called].sum().item(), rel=1e-5, abs=1e-5
    )
    (plain * torch.where(called, 3.0, 2.0)).sum().backward()
    assert torch.allclose(found[0], words.grad, atol=1e-6)
    assert torch.allclose(found[1], calls.grad, atol=1e-6)


def test_no_label_at_all_costs_nothing_and_keeps_the_graph():
    words = torch.zeros(0, 5, requires_grad=True)
    terms = language_terms(
        words, torch.zeros(0, 2, requires_grad=True), torch.zeros(0, dtype=torch.long), {}
    )
    total = terms["language"].sum + terms["assign"].sum
    assert total.item() == 0
    total.backward()
    assert words.grad.shape == (0, 5)


@pytest.mark.parametrize(("positions", "chunks"), [(0, 2), (9, 2), (3, 12)])
def test_chunks_of_logits_give_the_same_terms_and_gradients_as_all_at_once(positions, chunks):
    torch.manual_seed(0)
    words, calls = torch.nn.Linear(4, 7), torch.nn.Linear(4, 2)
    read = torch.randn(positions, 4, requires_grad=True)
    ids = torch.randint(0, 9, (positions,))
    leaves = [read, *words.parameters(), *calls.parameters()]
    found = []
    for number in (1, chunks):
        terms = chunked_language_terms(
            lambda states: (words(states), calls(states)), read, ids, {"language": 3.0}, number
        )
        assert (terms["language"].count, terms["assign"].count) == (3.0, 0.0)
        total = 2 * terms["language"].sum + 3 * terms["assign"].sum
        found.append([total, *torch.autograd.grad(total, leaves)])
    for whole, chunked in zip(*found, strict=True):
        assert torch.allclose(whole, chunked, atol=1e-5)


def test_logits_of_one_chunk_at_a_time_exist_also_in_the_backward_pass():
    layer, sizes = torch.nn.Linear(4, 7), []

    def logits(states):
        sizes.append(len(states))
        return layer(states), states[:, :0]

    read = torch.randn(10, 4, requires_grad=True)
    terms = chunked_language_terms(logits, read, torch.zeros(10, dtype=torch.long), {}, 5)
    assert sizes == [2] * 5
    terms["language"].sum.backward()
    assert sizes == [2] * 10


def test_terms_are_divided_by_their_counts_over_the_whole_step():
    terms = {"language": LossTerm(torch.tensor(6.0), 2.0), "a.x": LossTerm(torch.tensor(4.0), 1.0)}
    loss = CombinedLoss({"language": 1.0, "a.x": 0.5})
    assert loss(terms, {"language": 3.0, "a.x": 4.0}).item() == pytest.approx(6 / 3 + 0.5 * 4 / 4)
    assert loss(terms, {"language": 3.0, "a.x": 4.0}, scale=2).item() == pytest.approx(5.0)


def test_a_term_without_weight_stays_in_the_graph_but_adds_nothing():
    value = torch.tensor(5.0, requires_grad=True)
    total = CombinedLoss({})({"a.x": LossTerm(value * 1.0, 1.0)}, {"a.x": 1.0})
    total.backward()
    assert total.item() == 0
    assert value.grad.item() == 0


def test_a_step_without_any_term_is_an_error():
    with pytest.raises(TrainingError, match="no answer to learn from"):
        CombinedLoss({})({}, {})


@dataclass(frozen=True)
class Nested:
    found: tuple
    by_name: dict


def test_all_tensors_of_a_prediction_are_found_whatever_holds_them():
    """A head that idles takes part by all of them."""
    a, b, c = (torch.full((1,), float(number)) for number in range(3))
    prediction = (a, Nested(found=(b, None, 3, slice(0, 1)), by_name={"c": [c], "name": "x"}))
    assert [float(tensor) for tensor in tensors_in(prediction)] == [0.0, 1.0, 2.0]
