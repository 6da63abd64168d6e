"""How samples that are read together become micro-batches."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.data.fakes import WordProcessor
from tpokit import Example, Sample, UsageError, View
from tpokit.data.arrangement import Arrangement, packing_of
from tpokit.recipe_schema import RunEntry

CALL = {"point": [[1, 2]]}


def example(length, pixels=0, calls=False, name="7"):
    views = [View("image", np.zeros((1, pixels, 1, 3), np.uint8), (0.0,), 0.0, Path("a.png"))]
    empty = {"point": []}
    return Example(
        sample=Sample(name, turns=()),
        source="data",
        ids=[0] * length,
        labels=[0] * length,
        slots=CALL if calls else empty,
        given_positions=empty,
        targets={},
        given={},
        views=views if pixels else [],
    )


def lengths(batches):
    return [[[len(found.ids) for found in row] for row in rows] for rows in batches]


def arrangement(samples, **rules):
    return Arrangement(samples, pixels_of=WordProcessor().pixels, **rules)


def test_samples_that_fit_together_stay_in_their_order():
    examples = [example(length) for length in (6, 9, 5)]
    for packing in ("none", "conversation"):
        assert lengths(arrangement(3, packing=packing)(examples)) == [[[6], [9], [5]]]


def test_a_group_is_arranged_by_length():
    examples = [example(length) for length in (3, 90, 5, 80, 4, 85)]
    assert lengths(arrangement(3)(examples)) == [[[90], [85], [80]], [[5], [4], [3]]]


def test_a_micro_batch_stays_within_the_budget_of_tokens_with_its_padding():
    examples = [example(length) for length in (10, 6, 6, 5, 2)]
    assert lengths(arrangement(9, tokens=20)(examples)) == [[[10], [6]], [[6], [5], [2]]]


def test_a_micro_batch_stays_within_the_budget_of_pixels():
    examples = [example(9, 40), example(9), example(8, 50), example(7, 20)]
    assert lengths(arrangement(9, pixels=90)(examples)) == [[[9], [9], [8]], [[7]]]


def test_conversation_shares_rows_that_are_no_longer_than_the_longest_sample():
    examples = [example(length) for length in (4, 10, 3, 6, 2)]
    found = arrangement(9, packing="conversation")(examples)
    assert lengths(found) == [[[10], [6, 4], [3, 2]]]


def test_samples_with_calls_or_given_values_share_a_row_only_if_all_do():
    examples = [example(10), example(5, calls=True), example(4), example(3), example(2)]
    examples[3].given_positions = {"point": [1]}
    assert lengths(arrangement(9, packing="conversation")(examples)) == [[[10], [5], [4, 2], [3]]]
    assert lengths(arrangement(9, packing="all")(examples)) == [[[10], [5, 4], [3, 2]]]
    assert lengths(arrangement(9)(examples)) == [[[10], [5], [4], [3], [2]]]


def test_packing_lets_more_samples_into_a_budget():
    examples = [example(length) for length in (10, 5, 5, 4, 4)]
    assert len(arrangement(9, tokens=30)(examples)) == 2
    found = arrangement(9, tokens=30, packing="all")(examples)
    assert lengths(found) == [[[10], [5, 5], [4, 4]]]


samples_and_rules = st.tuples(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9), st.booleans()), min_size=1),
    st.integers(1, 9),
    st.none() | st.integers(1, 120),
    st.none() | st.integers(1, 30),
    st.sampled_from(["none", "conversation", "all"]),
)


@settings(max_examples=80, deadline=None)
@given(samples_and_rules)
def test_every_sample_comes_once_and_every_limit_holds(drawn):
    facts, most, tokens, pixels, packing = drawn
    examples = [example(*fact, name=str(place)) for place, fact in enumerate(facts)]
    arrange = arrangement(most, tokens=tokens, pixels=pixels, packing=packing)
    found = arrange(examples)
    names = [one.sample.id for rows in found for row in rows for one in row]
    assert sorted(names) == sorted(one.sample.id for one in examples)
    assert found == arrange(examples)
    for rows in found:
        members = [one for row in rows for one in row]
        longest = max(len(one.ids) for one in members)
        assert len(members) <= most
        assert all(sum(len(one.ids) for one in row) <= longest for row in rows)
        shared = [one for row in rows if len(row) > 1 for one in row]
        assert not shared or packing != "none"
        assert packing == "all" or not any(any(one.slots.values()) for one in shared)
        if len(members) > 1:  # one alone has its own place, whatever it needs
            assert tokens is None or len(rows) * longest <= tokens
            seen = sum(view.frames.shape[1] for one in members for view in one.views)
            assert pixels is None or seen <= pixels


def test_packing_that_the_backbone_cannot_do_is_refused_and_otherwise_conversation_is_packed():
    able, unable = SimpleNamespace(packs=True), SimpleNamespace(packs=False)
    assert [packing_of(RunEntry(), backbone) for backbone in (able, unable)] == [
        "conversation",
        "none",
    ]
    assert packing_of(RunEntry(packing="all"), able) == "all"
    for backbone in (able, unable):
        assert packing_of(RunEntry(packing="none"), backbone) == "none"
    message = "run.packing is 'all', but SimpleNamespace cannot take several samples in one row; "
    with pytest.raises(UsageError, match=message):
        packing_of(RunEntry(packing="all"), unable)
