"""Tensors of a batch on their way from a data worker."""

import pickle
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tpokit.batch import Batch, LabelIndex, SlotIndex, TokenIndex
from tpokit.packing import pack, unpack

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float64)


@dataclass(frozen=True)
class Targets:
    boxes: torch.Tensor
    names: tuple[str, ...]


def make_batch() -> Batch:
    numbers = torch.arange(12).reshape(3, 4)
    return Batch(
        ids=numbers,
        mask=numbers > 3,
        labels=numbers.T,  # not contiguous
        learnt=LabelIndex(numbers[0], numbers[1], numbers[2]),
        tokens=TokenIndex(*torch.zeros(3, 0, dtype=torch.long)),
        slots={"region": SlotIndex(torch.tensor([1]), torch.tensor([[2]]))},
        given={},
        targets={"region": Targets(torch.rand(1, 4), ("ring",))},
        contexts={},
        questions=None,
        media={"pixels": torch.rand(2, 3, 4, 4, dtype=torch.float64)},
        counts={"language": 3.0},
        samples=("talk/1", "boxes/2", "boxes/3"),
    )


def assert_same(found: Batch, batch: Batch) -> None:
    for name in ("ids", "mask", "labels", "learnt", "tokens", "slots", "media"):
        torch.testing.assert_close(getattr(found, name), getattr(batch, name), rtol=0, atol=0)
    assert torch.equal(found.targets["region"].boxes, batch.targets["region"].boxes)
    assert found.targets["region"].names == ("ring",)
    assert (found.questions, found.counts, found.samples) == (None, batch.counts, batch.samples)


def test_a_pickled_batch_is_one_tensor_to_torch():
    batch = make_batch()
    pickled = bytes(ForkingPickler.dumps(batch))
    assert pickled.count(b"rebuild_storage") == 1
    assert_same(pickle.loads(pickled), batch)


def test_a_batch_of_a_worker_is_the_batch_that_was_made():
    torch.manual_seed(0)
    batch = make_batch()
    [found] = DataLoader([0], num_workers=1, collate_fn=lambda _: batch)
    assert_same(found, batch)
    found.ids[0] = 7  # it is the trainer's own
    assert int(batch.ids[0, 0]) == 0


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 3), max_size=3), st.sampled_from(DTYPES)), max_size=6
    )
)
def test_tensors_of_all_shapes_and_types_come_out_as_they_went_in(kinds):
    value = {
        number: torch.randint(0, 2, tuple(shape)).to(dtype)
        for number, (shape, dtype) in enumerate(kinds)
    }
    torch.testing.assert_close(unpack(pack(value)), value, rtol=0, atol=0)


def test_a_tensor_that_stands_twice_is_packed_once_and_stays_one():
    one = torch.ones(100)
    packed = pack([one, {"again": one}])
    found = unpack(packed)
    assert len(packed.places) == 1
    assert found[0] is found[1]["again"]


def test_what_is_no_plain_tensor_is_pickled_as_ever():
    parameter, sparse = torch.nn.Parameter(torch.ones(2)), torch.eye(3).to_sparse()
    found = unpack(pack((parameter, sparse, torch.ones(2, requires_grad=True))))
    assert isinstance(found[0], torch.nn.Parameter)
    assert torch.equal(found[1].to_dense(), torch.eye(3))
    assert found[2].requires_grad
