"""Which samples take the place of bad ones, and how many may be bad."""

from types import SimpleNamespace

import pytest

from tests.core.data.fakes import PointHead
from tests.core.data.test_conversation import make_encoder
from tpokit import DataError, DataSource, Sample, Turn
from tpokit.data.bad_samples import (
    BadSample,
    BadSampleLimit,
    ReadBatch,
    Reading,
    ReadingCollator,
)
from tpokit.data.dataset import MixedDataset


class Lines(DataSource):
    """Every third line calls the head; ``wrong`` lines have no target or no answer, ``torn`` ones
    cannot be read at all.
    """

    def __init__(self, count, wrong=(), torn=()):
        self.count, self.wrong, self.torn = count, wrong, torn

    def __len__(self):
        return self.count

    def read(self, index, random):
        if index in self.torn:
            raise DataError(f"line {index} is torn")
        question = Turn("user", f"where {random.choice(['it', 'ring', 'square'])}")
        if index in self.wrong:
            answer, targets = "it <point>" if index % 3 == 0 else "", {}
            turns = (question, Turn("assistant", answer)) if answer else (question,)
            return Sample(f"s{index}", turns, targets=targets)
        if index % 3:
            return Sample(f"s{index}", (question, Turn("assistant", "it is here")))
        return Sample(
            f"s{index}", (question, Turn("assistant", "it <point>")), targets={"point": (0.5,)}
        )


def dataset(count=30, share=1.0, samples=200, seed=0, **lines):
    source = Lines(count, **lines)
    return MixedDataset(
        {"mine": source},
        {"mine": 1.0},
        seed,
        make_encoder(PointHead),
        BadSampleLimit(share, samples),
    )


def index_of(reading):
    return int(reading.example.sample.id.removeprefix("s"))


# ---- what takes the place of a bad sample ----


def test_a_good_sample_stays_and_a_bad_one_is_replaced_by_a_good_one():
    whole = dataset()
    wrong = {0, 1, 7, 9}
    found = dataset(wrong=wrong)
    replaced = 0
    for position in range(60):
        reading, expected = found[position], index_of(whole[position])
        if expected in wrong:
            replaced += 1
            assert reading.bad[0].index == expected
            assert (reading.bad[0].position, reading.bad[0].source) == (position, "mine")
            assert reading.bad[0].sample == f"s{expected}"
            assert index_of(reading) not in wrong
        else:
            assert reading.bad == ()
            assert index_of(reading) == expected
            assert reading.example.ids == whole[position].example.ids
    assert replaced == 8  # four in each of two epochs


def test_the_replacement_follows_from_seed_and_position_alone():
    first, again = dataset(wrong={0, 1, 7, 9}), dataset(wrong={0, 1, 7, 9})
    expected = {
        position: (index_of(first[position]), first[position].bad) for position in range(60)
    }
    for position in reversed(range(60)):
        assert (index_of(again[position]), again[position].bad) == expected[position]
    other = dataset(wrong={0, 1, 7, 9}, seed=1)
    assert [index_of(other[position]) for position in range(60)] != [
        index_of(first[position]) for position in range(60)
    ]


def test_the_same_bad_sample_has_another_replacement_each_time():
    found = dataset(wrong={0})
    stand_ins = [index_of(found[at]) for at in range(200) if found[at].bad]
    assert len(stand_ins) > 5
    assert len(set(stand_ins)) > 2


def test_a_sample_that_calls_a_head_is_replaced_by_one_that_calls_it_too():
    found = dataset(wrong={0, 3, 4, 5})
    readings = [reading for reading in map(found.__getitem__, range(120)) if reading.bad]
    assert len(readings) == 16
    for reading in readings:
        assert bool(index_of(reading) % 3) == bool(reading.bad[0].index % 3)


def test_without_another_of_its_kind_any_sample_of_the_entry_does():
    found = dataset(count=3, wrong={0})
    replaced = [reading for reading in map(found.__getitem__, range(30)) if reading.bad]
    assert {index_of(reading) for reading in replaced} == {1, 2}


def test_a_sample_that_cannot_be_read_at_all_is_replaced_by_any():
    found = dataset(torn={4})
    replaced = next(reading for reading in map(found.__getitem__, range(60)) if reading.bad)
    assert (replaced.bad[0].sample, replaced.bad[0].message) == (None, "line 4 is torn")
    assert index_of(replaced) != 4


def test_samples_that_were_tried_in_vain_are_listed_in_their_order():
    found = dataset(count=6, wrong={0, 1, 2, 3, 4})
    for position in range(20):
        reading = found[position]
        assert index_of(reading) == 5
        assert len({bad.index for bad in reading.bad}) == len(reading.bad)


def test_a_place_stays_empty_when_nothing_is_left_or_the_run_stops_anyway():
    assert dataset(count=1, wrong={0})[0].example is None
    assert len(dataset(count=6, wrong=set(range(6)))[0].bad) == 6
    reading = dataset(count=30, wrong=set(range(30)), share=0.01)[0]  # 2 of 200 may be bad
    assert (reading.example, len(reading.bad)) == (None, 3)


def test_no_more_than_a_hundred_others_are_tried():
    reading = dataset(count=500, wrong=set(range(500)), samples=1000)[0]
    assert (reading.example, len(reading.bad)) == (None, 101)


# ---- how many may be bad ----


@pytest.mark.parametrize(
    ("share", "samples", "position", "allowed"),
    [
        (0.01, 2, 0, 0),  # a tiny stage: the first one stops it
        (0.01, 99, 98, 0),
        (0.01, 100, 0, 1),
        (0.01, 50_000, 9, 10),  # one bad of the first ten stops nothing
        (0.01, 50_000, 999, 10),
        (0.01, 50_000, 1999, 20),
        (0.29, 100, 0, 29),
        (0.0, 50_000, 40_000, 0),
        (1.0, 4, 0, 4),
    ],
)
def test_the_share_is_of_the_samples_so_far_but_of_the_first_thousand_together(
    share, samples, position, allowed
):
    assert BadSampleLimit(share, samples).allowed(position) == allowed


def bad(position, index=7):
    return BadSample(position, "mine", index, f"s{index}", "mine/s7: no target")


# ---- on the way ----


def test_notes_travel_with_the_batch():
    def arrange(examples):
        return [[[example] for example in examples[:2]], [examples[2:]]]

    whole, cut = SimpleNamespace(shortened=False), SimpleNamespace(shortened=True)
    collate = ReadingCollator(arrange, lambda rows: [len(row) for row in rows])
    readings = [Reading(whole, (bad(1),)), cut, Reading(whole, (bad(2), bad(2, 8))), Reading(cut)]
    found = collate(readings)
    assert found.batches == ([1, 1], [2])
    assert [sample.position for sample in found.bad] == [1, 2, 2]
    assert found.shortened == 2
    assert collate([Reading(cut), Reading(None, (bad(1),))]) == ReadBatch((), (bad(1),))


def test_a_batch_with_notes_goes_to_a_device_and_into_locked_memory():
    class Moving:
        where = "here"

        def to(self, device, non_blocking):
            return f"{device} {non_blocking}"

        def pin_memory(self):
            return "locked"

    found = ReadBatch((Moving(),), (bad(1),))
    assert found.to("there", non_blocking=True) == ReadBatch(("there True",), (bad(1),))
    assert found.pin_memory() == ReadBatch(("locked",), (bad(1),))
    assert ReadBatch(()).to("there") == ReadBatch(()).pin_memory() == ReadBatch(())
