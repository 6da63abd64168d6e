"""The samples of a stage in the order of its mix."""

from tests.core.data.fakes import PointHead
from tests.core.data.test_bad_samples import Lines, index_of
from tests.core.data.test_conversation import make_encoder
from tpokit.data.bad_samples import BadSampleLimit
from tpokit.data.dataset import MixedDataset
from tpokit.recipe_mix import GroupEntry

SAMPLES = 60


def dataset(sources, mix, block=1):
    limit = BadSampleLimit(1.0, SAMPLES)
    return MixedDataset(sources, mix, 0, make_encoder(PointHead), limit, block)


def test_what_takes_the_place_in_a_group_is_of_the_same_entry_and_calls_the_same_heads():
    sources = {"good": Lines(30), "bad": Lines(30, torn=range(0, 30, 5), wrong=range(3))}
    mix = {"both": GroupEntry(share=1.0, of=("good", "bad"))}
    readings = dataset(sources, mix)
    replaced = 0
    for position in range(SAMPLES):
        wanted, reading = readings.draw(position), readings[position]
        assert reading.example.source == wanted.source
        if reading.bad:
            replaced += 1
            assert wanted.source == "bad"
            if wanted.index not in sources["bad"].torn and wanted.index % 3 == 0:
                assert index_of(reading) % 3 == 0
    assert replaced >= 7


def test_what_takes_the_place_is_one_that_the_cap_leaves():
    kept = {draw.index for draw in map(dataset_of_capped(torn=()).draw, range(SAMPLES))}
    assert len(kept) == 8
    torn = sorted(kept)[:4]
    readings = dataset_of_capped(torn)
    found = {index_of(readings[position]) for position in range(SAMPLES)}
    assert found == kept - set(torn)


def dataset_of_capped(torn):
    mix = {"few": GroupEntry(share=1.0, of=("a",), caps={"a": 8})}
    return dataset({"a": Lines(500, torn=torn)}, mix)


def test_a_block_is_of_one_task():
    mix = {"talk": 0.5, "both": GroupEntry(share=0.5, of=("a", "b"))}
    sources = {name: Lines(30) for name in ("talk", "a", "b")}
    readings = dataset(sources, mix, block=4)
    tasks = [
        {readings[4 * block + place].example.source == "talk" for place in range(4)}
        for block in range(10)
    ]
    assert all(len(task) == 1 for task in tasks)
    assert {True} in tasks
    assert {False} in tasks
