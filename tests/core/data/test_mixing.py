"""The order of samples is arithmetic."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpokit.data.mixing import Mixture, generator, permuted


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_every_index_is_reached_once(size, key):
    assert sorted(permuted(index, size, key) for index in range(size)) == list(range(size))


def test_another_key_gives_another_order():
    orders = {tuple(permuted(index, 50, key) for index in range(50)) for key in range(20)}
    assert len(orders) == 20


@given(
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6),
    st.integers(0, 1000),
    st.integers(1, 200),
)
def test_any_stretch_holds_each_source_by_its_share(shares, start, length):
    """As many as it should, but for 1 + share x sources: at both ends half a draw of its own, and
    its share of the half draw by which each of the others may be ahead.
    """
    total = sum(shares)
    mix = {f"s{index}": share / total for index, share in enumerate(shares)}
    mixture = Mixture(mix, dict.fromkeys(mix, 10_000), seed=1)
    counted = Counter(mixture.draw(start + offset).source for offset in range(length))
    for name, share in mix.items():
        assert abs(counted[name] - share * length) <= 1 + share * len(mix)


def test_a_source_is_gone_through_once_an_epoch_in_changing_order():
    mixture = Mixture({"a": 0.5, "b": 0.5}, {"a": 7, "b": 100}, seed=3)
    drawn = [draw for draw in map(mixture.draw, range(70)) if draw.source == "a"]
    epochs = [[draw.index for draw in drawn if draw.epoch == epoch] for epoch in range(5)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_place_far_into_a_run_needs_no_replay():
    mixture = Mixture({"a": 0.3, "b": 0.7}, {"a": 1000, "b": 3_500_000}, seed=0)
    near = [mixture.draw(position) for position in range(2_000_000, 2_000_050)]
    assert near == [mixture.draw(position) for position in range(2_000_000, 2_000_050)]
    assert sum(draw.source == "a" for draw in near) == pytest.approx(15, abs=1)


def test_a_source_without_a_share_never_comes():
    mixture = Mixture({"a": 1.0, "b": 0.0}, {"a": 5, "b": 5}, seed=0)
    assert {mixture.draw(position).source for position in range(100)} == {"a"}


def test_randomness_of_a_sample_depends_on_seed_epoch_sample_and_purpose():
    keys = [(0, 0, "a/1", "read"), (1, 0, "a/1", "read"), (0, 1, "a/1", "read")]
    keys += [(0, 0, "a/2", "read"), (0, 0, "a/1", "crop")]
    values = [generator(*key).integers(2**62) for key in keys]
    assert len(set(values)) == len(keys)
    assert values[0] == generator(*keys[0]).integers(2**62)
