"""The order of samples is arithmetic."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_recipe import PLAIN
from tpokit import UsageError
from tpokit.data.mixing import Mixture, generator, permuted, portions, with_lengths
from tpokit.recipe import parse_recipe
from tpokit.recipe_mix import BlendEntry, GroupEntry, mix_plan


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


def test_randomness_of_a_sample_depends_on_seed_epoch_sample_and_purpose():
    keys = [(0, 0, "a/1", "read"), (1, 0, "a/1", "read"), (0, 1, "a/1", "read")]
    keys += [(0, 0, "a/2", "read"), (0, 0, "a/1", "crop")]
    values = [generator(*key).integers(2**62) for key in keys]
    assert len(set(values)) == len(keys)
    assert values[0] == generator(*keys[0]).integers(2**62)


# ---- shares


def shares(mix, sizes):
    return {part.source: part.share for group in portions(mix_plan(mix), sizes) for part in group}


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (None, {"a": 0.1, "b": 0.9}),
        (1, {"a": 0.1, "b": 0.9}),
        (2, {"a": 0.25, "b": 0.75}),  # square roots of the sizes: 1 to 3
        (1e9, {"a": 0.5, "b": 0.5}),
    ],
)
def test_shares_by_size_are_levelled_by_a_temperature(temperature, expected):
    mix = BlendEntry(of=("a", "b"), temperature=temperature)
    assert shares(mix, {"a": 10, "b": 90}) == pytest.approx(expected)


def test_a_cap_counts_as_the_size():
    mix = BlendEntry(of=("a", "b", "c"), caps={"b": 10, "c": 500})
    assert shares(mix, {"a": 10, "b": 1000, "c": 20}) == {"a": 0.25, "b": 0.25, "c": 0.5}


def test_a_group_has_its_share_and_its_entries_have_theirs_inside():
    mix = {
        "boxes": GroupEntry(share=0.4, of=("a", "b"), temperature=2),
        "talk": GroupEntry(share=0.5, of={"c": 0.3, "d": 0.7}),
        "e": 0.1,
    }
    found = shares(mix, {"a": 10, "b": 90, "c": 7, "d": 7, "e": 7})
    assert found == pytest.approx({"a": 0.1, "b": 0.3, "c": 0.15, "d": 0.35, "e": 0.1})


def test_groups_without_shares_have_them_by_size():
    mix = {"boxes": GroupEntry(of=("a", "b"), caps={"b": 20}), "talk": GroupEntry(of=("c",))}
    assert shares(mix, {"a": 10, "b": 90, "c": 70}) == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.7})


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 9))
def test_with_shares_by_size_an_epoch_has_every_sample_once(sizes, seed):
    named = {f"s{index}": size for index, size in enumerate(sizes)}
    groups = {"one": GroupEntry(of=("s0",)), "rest": GroupEntry(of=tuple(list(named)[1:] or "x"))}
    for mix in (BlendEntry(of=tuple(named)), groups if len(sizes) > 1 else {"s0": 1.0}):
        mixture = Mixture(mix, named, seed)
        drawn = [mixture.draw(position) for position in range(sum(sizes))]
        assert sorted((draw.source, draw.index) for draw in drawn) == [
            (name, index) for name, size in named.items() for index in range(size)
        ]


def test_a_cap_leaves_the_same_samples_in_every_epoch_and_with_every_seed():
    def used(cap, seed):
        mixture = Mixture(BlendEntry(of=("a",), caps={"a": cap}), {"a": 1000}, seed)
        epochs = [{mixture.draw(cap * epoch + k).index for k in range(cap)} for epoch in range(3)]
        assert epochs[0] == epochs[1] == epochs[2]
        return epochs[0]

    ten = used(10, seed=0)
    assert len(ten) == 10
    assert ten == used(10, seed=1)
    assert ten < used(100, seed=2)
    assert ten != set(range(10))


# ---- one task at a time


@given(
    st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4),
    st.integers(1, 12),
    st.integers(0, 500),
)
def test_a_block_has_one_task_and_shares_stay_right(levels, block, start):
    total = sum(levels)
    mix = {
        f"g{index}": GroupEntry(share=level / total, of={f"a{index}": 0.25, f"b{index}": 0.75})
        for index, level in enumerate(levels)
    }
    sizes = {name: 1000 for group in mix.values() for name in group.of}
    mixture = Mixture(mix, sizes, seed=4, block=block)
    blocks = [
        [mixture.draw((start + number) * block + place) for place in range(block)]
        for number in range(40)
    ]
    assert all(len({draw.task for draw in drawn}) == 1 for drawn in blocks)
    tasks = Counter(drawn[0].task for drawn in blocks)
    drawn = Counter(draw.source for drawn in blocks for draw in drawn)
    for index, (name, group) in enumerate(mix.items()):
        assert abs(tasks[name] - 40 * group.share) <= 1 + group.share * len(mix)
        of_task = block * tasks[name]
        assert abs(drawn[f"a{index}"] - of_task / 4) <= 1.5


def test_blocks_draw_what_single_positions_draw():
    mix = {"boxes": GroupEntry(share=0.5, of=("a", "b")), "talk": 0.5}
    sizes = {"a": 30, "b": 60, "talk": 90}
    alone, blocks = (Mixture(mix, sizes, seed=7, block=block) for block in (1, 6))
    first = sorted(str(alone.draw(position)) for position in range(180))
    assert sorted(str(blocks.draw(position)) for position in range(180)) == first


# ---- length of a stage


@pytest.mark.parametrize(
    ("epochs", "mix", "steps"),
    [
        (1, {"of": ["chat", "grounding"]}, 32),  # 1010 samples in 32 steps of 32
        (2, {"of": ["chat", "grounding"]}, 64),
        (0.001, {"of": ["chat", "grounding"]}, 1),
        (1, {"of": ["chat", "grounding"], "caps": {"chat": 22}}, 1),
        (3, {"chat": 0.5, "grounding": 0.5}, 95),
    ],
)
def test_epochs_are_counted_in_steps_where_sizes_are_known(epochs, mix, steps):
    plain = {**PLAIN, "stages": [dict(PLAIN["stages"][0], epochs=epochs, mix=mix)]}
    plain["stages"][0].update(steps=None, samples_per_step=32)
    recipe = parse_recipe(plain)
    counted = with_lengths(recipe, {"chat": 1000, "grounding": 10})
    assert counted.stages[0].length == steps
    assert counted.dump() == recipe.dump()
    assert with_lengths(recipe, {"chat": 1000}) == recipe


def test_steps_stay_as_they_are_and_uncounted_epochs_are_an_error():
    recipe = parse_recipe(PLAIN)
    assert with_lengths(recipe, {"chat": 7, "grounding": 7}) == recipe
    assert recipe.stages[0].length == 100
    plain = {**PLAIN, "stages": [dict(PLAIN["stages"][0], steps=None, epochs=2)]}
    with pytest.raises(UsageError, match="stage 'assign': its epochs are counted when its data"):
        _ = parse_recipe(plain).stages[0].length
