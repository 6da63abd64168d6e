"""The metric of ``tpokit evaluate``."""

import numpy as np
import pytest

from tpokit import DataError, MediaInfo
from tpokit_temporal.metrics import TemporalMetric
from tpokit_temporal.results import Moment, Moments

VIDEO = MediaInfo("video", 64, 64, duration_s=20.0)
MOMENTS = {"r1@0.3", "r1@0.5", "r1@0.7", "mean_iou", "map"}
CLIPS = {"hl_map", "hl_hit1"}


def truth(start_s=4.0, end_s=8.0, clip_s=2.0, duration_s=20.0):
    """A moment, and the clips inside it."""
    middles_s = (np.arange(round(duration_s / clip_s)) + 0.5) * clip_s
    inside = tuple(((middles_s > start_s) & (middles_s < end_s)).astype(float).tolist())
    return Moments((Moment(start_s, end_s),), inside, clip_s)


def metric(*samples, media=VIDEO):
    made = TemporalMetric()
    for predicted, expected in samples:
        made.add(predicted, expected, media)
    return made


def test_the_truth_itself_scores_one():
    scores = metric(([truth()], [truth()])).scores()
    assert set(scores) == MOMENTS | CLIPS
    assert set(scores.values()) == {1.0}


def test_scores_of_hand_computed_moments():
    half = Moments((Moment(4, 6, 0.9), Moment(4, 8, 0.8)), (), 0.0)
    scores = metric(([half], [Moments((Moment(4, 8),))])).scores()
    assert scores == {"r1@0.3": 1, "r1@0.5": 1, "r1@0.7": 0, "mean_iou": 0.5, "map": 0.55}


def test_a_call_that_was_not_made_is_wrong_and_a_surplus_one_earns_nothing():
    missing = metric(([], [truth()]), ([truth()], [truth()]))
    assert set(missing.scores().values()) == {0.5}
    both = metric(([truth()], [truth(), truth(10, 14)])).scores()
    assert set(both.values()) == {0.5}
    surplus = metric(([truth(), truth(0, 2)], [truth()])).scores()
    assert set(surplus.values()) == {1.0}
    assert set(metric(([], [truth()])).scores().values()) == {0.0}


def test_results_are_paired_in_reading_order():
    first, second = truth(0, 4), truth(10, 16)
    assert metric(([second, first], [first, second])).scores()["r1@0.3"] == 0


def test_what_is_not_expected_is_not_scored():
    only_moments, only_clips = Moments((Moment(0, 4),)), Moments((), (0.0, 1.0), 10.0)
    assert set(metric(([truth()], [only_moments])).scores()) == MOMENTS
    assert set(metric(([truth()], [only_clips])).scores()) == CLIPS
    for nothing in (Moments(()), Moments((), (0.0, 0.3), 10.0)):
        made = metric(([truth()], [nothing]))
        assert made.scores() == {}
        assert made.constant() == {}


def test_a_clip_counts_from_eight_of_twelve_points():
    points = np.array([7, 8, 12, 0]) / 12
    rated = Moments((), tuple(points.tolist()), 5.0)
    best = {0: 0.0, 1: 1.0, 2: 1.0, 3: 0.0}
    for clip, hit in best.items():
        found = Moments((), tuple(float(place == clip) for place in range(4)), 5.0)
        assert metric(([found], [rated])).scores()["hl_hit1"] == hit


def test_saliency_on_other_clips_is_compared_by_time():
    expected = truth(8, 12, clip_s=2.0)
    fine = truth(8, 12, clip_s=0.5)
    assert metric(([fine], [expected])).scores()["hl_map"] == 1
    assert metric(([expected], [fine])).scores()["hl_map"] == 1


def test_clips_that_a_prediction_lacks_are_ranked_last():
    expected = Moments((), (1.0, 0.0, 1.0), 2.0)
    found = Moments((), (-5.0, -7.0), 2.0)
    assert metric(([found], [expected])).scores()["hl_map"] == pytest.approx((1 + 2 / 3) / 2)


def test_the_best_constant_moment_is_a_fraction_of_the_video():
    made = TemporalMetric()
    for duration_s in (10.0, 20.0, 300.0):
        true = Moments((Moment(0.25 * duration_s, 0.5 * duration_s),))
        made.add([], [true], MediaInfo("video", 8, 8, duration_s))
    assert made.constant() == pytest.approx(dict.fromkeys(MOMENTS, 1.0))


def test_a_constant_moment_meets_one_of_several():
    made = TemporalMetric()
    made.add([], [Moments((Moment(0, 5), Moment(10, 15)))], VIDEO)
    constant = made.constant()
    assert constant["mean_iou"] == 1
    assert constant["map"] == 0.5


def test_moments_all_over_the_video_leave_a_constant_little():
    random = np.random.default_rng(5)
    made = TemporalMetric()
    for start_s in random.uniform(0, 16, 300):
        made.add([], [truth(start_s, start_s + 4)], VIDEO)
    constant = made.constant()
    assert 0.05 < constant["r1@0.7"] < constant["r1@0.5"] < constant["r1@0.3"] < 0.7
    assert constant["hl_hit1"] < 0.5
    assert set(constant) == MOMENTS | CLIPS


def test_the_best_constant_saliency_ranks_places_by_how_often_they_are_relevant():
    made = metric(*[([], [truth(4, 8)])] * 3, ([], [truth(12, 16)]))
    constant = made.constant()
    assert constant["hl_hit1"] == 0.75
    # three times the front, once ranks three and four
    assert constant["hl_map"] == pytest.approx((3 * 1 + (1 / 2 + 1 / 2) / 2) / 4)


def test_nothing_seen_gives_no_scores():
    assert metric().scores() == {}
    assert metric(([truth()], [])).scores() == {}


def test_a_medium_without_a_duration_is_refused():
    with pytest.raises(DataError, match="moments are expected in an image of 0 s"):
        metric(([truth()], [truth()]), media=MediaInfo("image", 8, 8))
