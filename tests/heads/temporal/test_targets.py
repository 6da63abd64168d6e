"""Targets of the temporal head: published rules, reading annotations, collating."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tpokit import DataError
from tpokit_temporal.annotations import MOMENTS_MAX, read_annotation
from tpokit_temporal.labels import (
    choose_pairs,
    clips_inside,
    released_inside,
    resample,
    to_fractions,
)
from tpokit_temporal.targets import collate_targets

GOLDEN = Path(__file__).parents[2] / "golden" / "cg_detr" / "targets_from_annotations.json"
CASES = json.loads(GOLDEN.read_text())["cases"]
GRADED = [case for case in CASES if case["kind"] == "graded"]
BINARY = [case for case in CASES if case["kind"] == "binary"]


def read(annotation, clips=10, duration_s=10.0, **named):
    return read_annotation(annotation, clips, duration_s, "videos/7", **named)


def generator():
    return np.random.default_rng(0)


# ---- parity with the release ----


@pytest.mark.parametrize("case", GRADED)
def test_graded_annotations_give_the_released_targets(case):
    ratings = [0.0] * case["clips"]
    for clip, rates in zip(case["relevant_clip_ids"], case["saliency_scores"], strict=True):
        ratings[clip] = float(sum(rates))
    length_s = float(case["clips"] * case["clip_length"])
    annotation = {
        "moments_s": case["relevant_windows"],
        "saliency": ratings,
        "saliency_max": 12,
        "clip_s": case["clip_length"],
    }
    target = read(annotation, case["clips"], length_s)
    assert np.allclose(target.moments, case["expected_span_labels"], atol=1e-6)
    assert list(target.saliency) == case["expected_saliency_all"]
    assert len(target.pairs) == case["number_of_pairs"]


@pytest.mark.parametrize("case", BINARY)
def test_moments_alone_give_the_released_targets(case):
    saliency = released_inside(case["window"], case["clips"], case["duration"])
    assert list(saliency) == case["expected_saliency_all"]
    released_length_s = case["clips"] * case["clip_length"]
    moments = to_fractions([case["window"]], released_length_s)
    assert np.allclose(moments, case["expected_span_labels"], atol=1e-6)
    pairs = choose_pairs(saliency, generator())
    assert len(pairs) == case["number_of_pairs"]
    assert all(saliency[better] == 1 for better, _ in pairs)


def test_the_released_rule_for_clips_is_an_option():
    annotation = {"moments_s": [[4.7, 4.8]]}
    assert np.flatnonzero(read(annotation).saliency).tolist() == [4]
    assert np.flatnonzero(read(annotation, released_quirks=True).saliency).tolist() == [3]


# ---- clips and grades ----


def test_clips_are_inside_by_their_middle():
    assert clips_inside((1.0, 3.0), 5, 5.0) == (0, 1, 1, 0, 0)
    assert clips_inside((0.6, 2.5), 5, 5.0) == (0, 1, 0, 0, 0)
    assert clips_inside((0.5, 2.6), 5, 5.0) == (1, 1, 1, 0, 0)


@given(st.integers(1, 200), st.floats(0.1, 5000), st.floats(0, 0.999), st.floats(0.001, 1))
def test_every_moment_has_a_clip_and_no_clip_far_away(clips, duration_s, start, width):
    edges_s = start * duration_s, min(start + width, 1.0) * duration_s
    inside = np.flatnonzero(clips_inside(edges_s, clips, duration_s))
    clip_s = duration_s / clips
    assert len(inside)
    assert inside[0] * clip_s <= edges_s[1]
    assert (inside[-1] + 1) * clip_s >= edges_s[0]
    assert (np.diff(inside) == 1).all()
    assert abs(len(inside) * clip_s - (edges_s[1] - edges_s[0])) <= clip_s * (1 + 1e-6)


def test_saliency_of_other_clips_is_resampled():
    assert resample((1, 2, 3), 1.0, 3, 3.0) == (1, 2, 3)
    assert resample((1, 2, 3), 2.0, 6, 6.0) == (1, 1, 2, 2, 3, 3)  # more clips than values
    assert resample((1, 0, 0, 5, 2, 2), 1.0, 3, 6.0) == (1, 5, 2)  # fewer: no highlight is lost
    assert resample((7,), 1.0, 3, 3.0) == (7, 0, 0)  # nothing is known behind the values
    assert resample((7, 8), 1.0, 1, 1.0) == (7,)  # values behind the video


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.5, 500))
def test_resampled_saliency_keeps_its_highest_value_and_makes_up_none(parts, clips, duration_s):
    values = tuple(float(value) for value in np.random.default_rng(parts).permutation(parts))
    found = resample(values, duration_s / parts, clips, duration_s)
    assert len(found) == clips
    assert set(found) <= set(values)
    if parts >= clips or parts == 1:
        assert max(found) == max(values)


def test_an_annotation_without_saliency_says_which_clips_are_relevant():
    target = read({"moments_s": [[1, 3], [5, 6]]})
    assert target.saliency == (0, 1, 1, 0, 0, 1, 0, 0, 0, 0)
    assert target.saliency_max == 1


def test_saliency_is_spread_over_twelve_grades():
    target = read({"moments_s": [[1, 3]], "saliency": [0, 0.5, 1, 0.25]}, clips=4)
    assert target.saliency == (0, 6, 12, 3)
    assert target.saliency_max == 12
    same = read({"moments_s": [[1, 3]], "saliency": [0, 2, 4, 1], "saliency_max": 4}, clips=4)
    assert same == target


def test_without_knowing_the_clips_there_is_one_for_each_value_or_second():
    assert len(read({"moments_s": [[1, 3]], "saliency": [0, 1, 1]}, None).saliency) == 3
    assert len(read({"moments_s": [[1, 3]]}, None, 9.4).saliency) == 10


# ---- pairs and moments to learn from ----


def test_graded_pairs_are_best_with_worst_and_relevant_with_irrelevant():
    (best, worst), (relevant, irrelevant) = choose_pairs((0, 5, 3, 9, 0), generator())
    assert (best, worst) == (3, 2)
    assert relevant in (1, 2, 3)
    assert irrelevant in (0, 4)
    assert choose_pairs((5, 3, 9), generator()) == ((2, 1), (2, 1))


def test_yes_or_no_pairs_are_two_inside_with_two_outside():
    for _ in range(20):
        pairs = choose_pairs((0, 1, 1, 1, 0), generator())
        assert {better for better, _ in pairs} < {1, 2, 3}
        assert len({better for better, _ in pairs}) == 2
        assert {worse for _, worse in pairs} == {0, 4}
    assert choose_pairs((0, 1, 0), generator())[0][0] == 1
    assert choose_pairs((1, 1, 0), generator())[1][1] == 2


@pytest.mark.parametrize("saliency", [(1, 1, 1), (0, 0), (1,), (0,)])
def test_where_nothing_can_be_compared_a_clip_is_paired_with_itself(saliency):
    assert all(better == worse for better, worse in choose_pairs(saliency, generator()))


def test_the_same_annotation_gives_the_same_target_wherever_it_is_read():
    many = {"moments_s": [[start, start + 0.5] for start in range(9)]}
    first = read_annotation(many, 10, 10.0, "a/1", "v")
    assert first == read_annotation(many, 10, 10.0, "another place", "v")
    assert len(first.moments) == 9
    assert len(set(first.learnt)) == MOMENTS_MAX
    assert set(first.learnt) < set(range(9))
    assert read({"moments_s": [[0, 1], [2, 3]]}).learnt == (0, 1)


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"moments_s": [[8, 3]]}, "the moment [8, 3] s is reversed; the start comes first"),
        (
            {"moments_s": [[1, 2], [3, 14]]},
            "the moment [3, 14] s leaves the video, which lasts from 0 to 10 s; an end may lie "
            "behind it by one clip (1 s) at most",
        ),
        ({"moments_s": [[-1, 4]]}, "the moment [-1, 4] s leaves the video"),
        (
            {"moments_s": [[4, 4]]},
            "the moment [4, 4] s has no length in a video of 10 s; start < end",
        ),
        (
            {"moments_s": [[10.2, 10.8]]},
            "the moment [10.2, 10.8] s has no length in a video of 10 s",
        ),
        (
            {"moments_s": []},
            "moments_s is []; it is a list of one or more [start, end] in seconds",
        ),
        ({"moments_s": None}, "moments_s is None"),
        ({"moments_s": "all"}, "moments_s is 'all'"),
        (
            {"moments_s": [[1]]},
            "[1] is no moment; a moment is two finite numbers, start and end in seconds",
        ),
        ({"moments_s": [[1, "2"]]}, "[1, '2'] is no moment"),
        ({"moments_s": [[1, float("nan")]]}, "[1, nan] is no moment"),
        ({"moments_s": [1, 2]}, "1 is no moment"),
        ([[1, 2]], "[[1, 2]] has no 'moments_s'; a target of the temporal head is such as"),
        (
            {"moments_s": [[1, 2]], "salency": [1]},
            "a target of the temporal head has no 'salency'; it has moments_s, saliency, ",
        ),
        (
            {"moments_s": [[1, 2]], "saliency": []},
            "saliency is []; it is a list of finite numbers, one for each clip",
        ),
        ({"moments_s": [[1, 2]], "saliency": [1, None]}, "saliency is [1, None]"),
        (
            {"moments_s": [[1, 2]], "saliency": [0, 7]},
            "saliency holds 7, which is not in 0 to saliency_max = 1; of another scale, say the "
            "largest value",
        ),
        (
            {"moments_s": [[1, 2]], "saliency": [-1, 7], "saliency_max": 12},
            "saliency holds -1, which is not in 0 to saliency_max = 12",
        ),
        (
            {"moments_s": [[1, 2]], "saliency": [1], "saliency_max": 0},
            "saliency_max is 0; it is a number above 0",
        ),
        (
            {"moments_s": [[1, 2]], "saliency": [1], "clip_s": "2"},
            "clip_s is '2'; it is a number above 0",
        ),
    ],
)
def test_a_wrong_annotation_is_named_with_what_would_be_right(annotation, message):
    with pytest.raises(DataError, match=f"^videos/7: {re.escape(message)}"):
        read(annotation)


def test_a_video_that_does_not_last_or_has_no_clips_has_no_moments():
    with pytest.raises(DataError, match=r"^videos/7: moments need a video that lasts.* 0\.0 s"):
        read({"moments_s": [[0, 1]]}, duration_s=0.0)
    with pytest.raises(DataError, match=r"^videos/7: the video has no clips"):
        read({"moments_s": [[0, 1]]}, clips=0)


def test_an_end_up_to_one_clip_behind_the_video_is_put_on_its_end():
    target = read({"moments_s": [[8, 11]]})
    assert target.moments == ((0.9, pytest.approx(0.2)),)
    with pytest.raises(DataError, match="leaves the video"):
        read({"moments_s": [[8, 11.01]]})


def test_arrays_and_what_our_sources_add_are_read():
    target = read(
        {
            "moments_s": np.array([[1.0, 3.0]]),
            "saliency": torch.tensor([0.0, 1.0, 0.5]),
            "video": "v",
            "query": "a door opens",
            "query_id": "7",
            "duration_s": 10.0,
        }
    )
    assert target.moments == ((0.2, 0.2),)
    assert target.video == "v"


# ---- collating ----


def test_targets_are_padded_and_masked():
    batch = collate_targets(
        [
            read({"moments_s": [[1, 3], [5, 6]]}, clips=10),
            read({"moments_s": [[0, 5]], "saliency": [0.5, 1, 0, 0]}, clips=4),
        ]
    )
    assert len(batch) == 2
    assert torch.allclose(
        batch.moments, torch.tensor([[[0.2, 0.2], [0.55, 0.1]], [[0.25, 0.5], [0, 0]]])
    )
    assert batch.moment_mask.tolist() == [[True, True], [True, False]]
    assert batch.saliency[1].tolist() == [6, 12] + [0] * 8
    assert batch.clip_mask.sum(1).tolist() == [10, 4]
    assert batch.relevant.sum() == batch.relevant_count == 5
    assert batch.clip_count == 14
    assert batch.moment_counts == (2, 1)
    assert batch.pairs.shape == (2, 2, 2)
    assert (batch.pairs < torch.tensor([10, 4])[:, None, None]).all()


@pytest.mark.parametrize(
    ("videos", "is_real"),
    [
        ("a", [False]),
        ("aa", [False, False]),
        ("ab", [True, True]),
        ("aab", [False, True, True]),
        ("aba", [True, True, False]),
    ],
)
def test_a_negative_is_real_where_the_next_call_is_about_another_video(videos, is_real):
    batch = collate_targets([read({"moments_s": [[1, 3]]}, video=video) for video in videos])
    assert batch.is_real.tolist() == is_real
    assert batch.real_count == sum(is_real)


def test_calls_of_one_sample_are_about_one_video_and_an_annotation_can_name_it():
    one, other = {"moments_s": [[1, 3]]}, {"moments_s": [[4, 5]]}
    assert read(one).video == read(other).video == "videos/7"
    assert read({**one, "video": "x"}, video="y").video == "x"


def test_no_call_makes_an_empty_batch():
    batch = collate_targets([])
    assert len(batch) == 0
    assert batch.moments.shape == (0, 0, 2)
    assert batch.saliency.shape == batch.clip_mask.shape == (0, 0)
    assert batch.pairs.shape == (0, 2, 2)
    assert batch.is_real.shape == (0,)


def test_targets_move_to_a_device_as_a_whole():
    batch = collate_targets([read({"moments_s": [[1, 3]]})])
    moved = batch.to("meta")
    assert {part.device.type for part in (moved.moments, moved.pairs, moved.relevant)} == {"meta"}
    assert moved.moment_counts == batch.moment_counts
    assert len(moved) == 1
