"""Clips are sorted by length and put back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tpokit import DataError
from tpokit_videochat2.clips import ClipOrder, Run

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 6), min_size=1, max_size=9))
def test_sorting_keeps_clips_whole_and_can_be_undone(lengths):
    found = ClipOrder.of(lengths, CPU)
    frames = torch.arange(sum(lengths))
    clips = list(frames.split(lengths))
    expected = torch.cat(sorted(clips, key=len))  # stable: equally long clips keep their order
    moved = frames if found.order is None else frames[found.order]
    assert torch.equal(moved, expected)
    assert torch.equal(moved if found.back is None else moved[found.back], frames)
    assert [run.length for run in found.runs] == sorted(set(lengths))
    assert [run.clips for run in found.runs] == [
        lengths.count(length) for length in sorted(set(lengths))
    ]


def test_clips_that_are_sorted_already_are_not_moved():
    assert ClipOrder.of([1, 1, 8], CPU) == ClipOrder((Run(2, 1), Run(1, 8)))


@pytest.mark.parametrize("lengths", [[], [0], [4, -1]])
def test_a_clip_without_frames_is_refused(lengths):
    with pytest.raises(DataError, match="each must have at least one"):
        ClipOrder.of(lengths, CPU)
