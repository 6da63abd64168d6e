"""How J and F are averaged over frames, objects and samples, and what is refused."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpokit import DataError
from tpokit_mask.metrics.davis_statistics import value_statistics
from tpokit_mask.metrics.protocols import (
    MaskScores,
    davis_semi_supervised,
    davis_unsupervised,
    referring_video,
    segment_anything_video,
)
from tpokit_mask.metrics.quality import MaskQuality, mask_quality, match_proposals
from tpokit_mask.metrics.referring import referring_scores
from tpokit_mask.metrics.region import Overlap, overlap


def quality(region, in_truth=None, in_prediction=None):
    region = np.array(region, dtype=float)
    seen = [
        np.ones(region.shape, dtype=bool) if flags is None else np.array(flags, dtype=bool)
        for flags in (in_truth, in_prediction)
    ]
    return MaskQuality(region, region / 2, *seen, name="cat-girl")


# ---- statistics ----


def test_the_statistics_of_davis_by_hand():
    values = np.array([[0.9, 0.8, 0.5, 0.6, 0.4], [1, 1, 1, 1, 1]])
    found = value_statistics(values)
    np.testing.assert_allclose(found.mean, [0.64, 1])
    np.testing.assert_allclose(found.recall, [3 / 5, 1])  # 0.5 is not over 0.5
    np.testing.assert_allclose(found.decay, [(0.9 + 0.8) / 2 - (0.6 + 0.4) / 2, 0])  # shared ends


def test_decay_is_right_beyond_256_frames_where_the_original_overflows():
    values = np.linspace(1, 0, 401)[None]
    assert value_statistics(values).decay[0] == pytest.approx(0.75)


def test_one_frame_does_not_decay_and_none_has_no_mean():
    assert value_statistics(np.array([[0.7]])).decay[0] == 0
    with pytest.raises(DataError, match="no frame is left"):
        value_statistics(np.zeros((2, 0)))


# ---- protocols ----


def test_all_objects_count_the_same_however_long_their_sequences():
    short, long = quality([[0, 1, 0]]), quality([[0] * 12, [0] * 12])
    assert davis_semi_supervised([short, long]).scores.region == pytest.approx(1 / 3)
    assert davis_unsupervised([short, long]).scores.region == pytest.approx(1 / 9)
    assert referring_video([short, long]).scores.region == pytest.approx(1 / 9)
    assert segment_anything_video([short, long]).scores.region == pytest.approx(1 / 3)


def test_davis_counts_frames_before_an_object_appears_and_sa_v_does_not():
    truth = [[False, False, False, True, True]]
    late = quality([[1, 1, 1, 0.5, 1]], in_truth=truth, in_prediction=truth)
    assert davis_semi_supervised([late]).scores.region == pytest.approx(2.5 / 3)
    assert segment_anything_video([late]).scores.region == pytest.approx(0.5)
    early = [[False, False, True, False, False]]  # a false alarm starts the count
    alarm = quality([[1, 1, 0, 0.5, 1]], in_truth=truth, in_prediction=early)
    assert segment_anything_video([alarm]).scores.region == pytest.approx(0.25)


def test_sa_v_looks_for_the_first_frame_among_the_counted_ones():
    truth = [[True, False, False, True, True]]
    found = quality([[0, 1, 1, 0.5, 0]], in_truth=truth, in_prediction=truth)
    assert segment_anything_video([found]).scores.region == pytest.approx(0.5)
    assert segment_anything_video([found], skip_ends=False).scores.region == pytest.approx(0.5)


def test_sa_v_refuses_an_object_that_is_on_no_counted_frame():
    truth = [[True, True, True], [True, False, True]]
    with pytest.raises(DataError, match=r"cat-girl: object 1 .* on none of the 1 counted frames"):
        segment_anything_video([quality(np.ones((2, 3)), in_truth=truth)])


@pytest.mark.parametrize("protocol", [davis_semi_supervised, segment_anything_video])
def test_protocols_that_drop_the_ends_refuse_two_frames(protocol):
    with pytest.raises(DataError, match=r"cat-girl: of 2 frames none is left .* at least 3"):
        protocol([quality([[1, 1]])])


@pytest.mark.parametrize(
    "protocol",
    [davis_semi_supervised, davis_unsupervised, referring_video, segment_anything_video],
)
def test_protocols_refuse_to_score_nothing(protocol):
    for nothing in ([], [quality(np.zeros((0, 5)))]):
        with pytest.raises(DataError, match="no object to score"):
            protocol(nothing)


def test_percentages_are_rounded_as_papers_print_them():
    found = MaskScores(region=0.567891, boundary=0.61)
    assert found.percentages() == {"J&F": 58.89, "J": 56.79, "F": 61.0}


def squares(*corners, frames=3):
    """Objects ``[o, frames, 24, 32]``: squares of 6 pixels that move right by a pixel a frame."""
    masks = np.zeros((len(corners), frames, 24, 32), dtype=bool)
    for place, (y, x) in enumerate(corners):
        for frame in range(frames):
            masks[place, frame, y : y + 6, x + frame : x + frame + 6] = True
    return masks


def test_missing_objects_count_as_empty_masks():
    true = squares((2, 2), (12, 10))
    found = mask_quality(true[:1], true)
    assert found.region.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert found.in_prediction.tolist() == [[True] * 3, [False] * 3]
    assert mask_quality(true[:0], true).boundary.max() == 0


def test_proposals_in_any_order_are_given_to_the_objects_that_they_fit():
    true = squares((2, 2), (12, 10))
    predicted = squares((15, 1), (12, 11), (2, 2))
    match = match_proposals(predicted, true)
    assert match.proposals.tolist() == [2, 1]
    straight = mask_quality(predicted[[2, 1]], true)
    for field in ("region", "boundary", "in_truth", "in_prediction"):
        np.testing.assert_allclose(getattr(match.quality, field), getattr(straight, field))
    assert davis_unsupervised([match.quality]).scores.region == straight.region.mean()


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 20)), min_size=5, max_size=5))
@settings(max_examples=50, deadline=None)
def test_the_sum_over_objects_is_the_best_of_all_ways_to_give_proposals(corners):
    predicted, true = squares(*corners[:3]), squares(*corners[3:])
    sums = {}
    for order in itertools.permutations(range(3), 2):
        found = mask_quality(predicted[list(order)], true)
        sums[order] = (found.region.mean(-1) + found.boundary.mean(-1)).sum() / 2
    match = match_proposals(predicted, true)
    assert len(set(match.proposals)) == 2
    assert sums[tuple(match.proposals.tolist())] == pytest.approx(max(sums.values()))


def test_too_few_proposals_leave_objects_without_one():
    true = squares((2, 2), (12, 10))
    match = match_proposals(true[1:], true)
    assert match.proposals.tolist() == [-1, 0]
    assert match.quality.region.tolist() == [[0, 0, 0], [1, 1, 1]]


def test_void_pixels_count_for_no_proposal():
    true = squares((2, 2))
    predicted, void = true.copy(), np.zeros((3, 24, 32), dtype=bool)
    predicted[0, :, 14:, 20:] = void[:, 14:, 20:] = True
    assert match_proposals(predicted, true).quality.region.max() < 0.5
    assert match_proposals(predicted, true, void).quality.region.min() == 1


# ---- referring image segmentation ----


def test_giou_is_the_mean_of_samples_and_ciou_that_of_pixels():
    found = referring_scores(Overlap(np.array([1, 900]), np.array([10, 1000])))
    assert found.giou == pytest.approx((0.1 + 0.9) / 2)
    assert found.ciou == pytest.approx(901 / 1010)


def test_an_expression_that_names_nothing_is_right_if_nothing_is_predicted():
    empty, some = np.zeros((4, 5), dtype=bool), np.ones((4, 5), dtype=bool)
    pairs = [overlap(p, t) for p, t in ((empty, empty), (some, empty), (empty, some))]
    samples = Overlap(*(np.stack(counts) for counts in zip(*pairs, strict=True)))
    assert samples.iou.tolist() == [1, 0, 0]
    assert referring_scores(samples) == (pytest.approx(1 / 3), 0)
    assert referring_scores(Overlap(np.array([0]), np.array([0]))) == (1, 1)


@pytest.mark.parametrize(
    ("intersections", "unions", "message"),
    [
        ([], [], "at least one sample"),
        ([1], [2, 3], "one of each for every sample"),
        ([1, 5], [2, 3], "sample 1: an intersection of 5 and a union of 3 pixels cannot be"),
        ([-1], [3], "sample 0: an intersection of -1"),
    ],
)
def test_counts_that_cannot_be_are_refused(intersections, unions, message):
    with pytest.raises(DataError, match=message):
        referring_scores(Overlap(np.array(intersections), np.array(unions)))


# ---- bad input ----


@pytest.mark.parametrize("compare", [mask_quality, match_proposals])
def test_sequences_that_cannot_be_compared_are_refused(compare):
    true = squares((2, 2), (12, 10))
    cases = {
        "breakdance: masks are predicted on 2 frames, the truth has 3": (true[:, :2], true),
        "on 0 frames, the truth has 0": (true[:, :0], true[:, :0]),
        r"breakdance: predicted masks have shape \(3, 24, 32\); .* four dimensions": (
            true[0],
            true,
        ),
        "breakdance: predicted masks are 16 x 24 pixels": (true[..., :16], true),
        "breakdance: predicted masks are int64": (true.astype(np.int64), true),
    }
    for message, pair in cases.items():
        with pytest.raises(DataError, match=message):
            compare(*pair, name="breakdance")


def test_more_objects_than_the_protocol_allows_are_refused():
    true = squares((2, 2), (12, 10))
    with pytest.raises(DataError, match="soapbox: 2 predicted objects, but the truth has 1"):
        mask_quality(true, true[:1], name="soapbox")
    with pytest.raises(DataError, match=r"soapbox: 21 predicted objects; .* allows 20"):
        match_proposals(squares(*[(2, 2)] * 21), true, name="soapbox")
    assert match_proposals(squares(*[(2, 2)] * 20), true).quality.region[0].max() == 1


def test_a_sequence_without_true_objects_has_no_quality_and_no_match():
    none = squares((2, 2))[:0]
    assert mask_quality(none, none).region.shape == (0, 3)
    with pytest.raises(DataError, match="soapbox: the truth has no object to match"):
        match_proposals(squares((2, 2)), none, name="soapbox")


def test_void_pixels_must_be_given_for_each_frame():
    true = squares((2, 2))
    with pytest.raises(DataError, match=r"void pixels of shape \(2, 24, 32\); .* \(3, 24, 32\)"):
        match_proposals(true, true, np.zeros((2, 24, 32), dtype=bool))
