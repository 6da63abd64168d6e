"""Highlights: golden numbers of TVSum and YouTube, and the rules of QVHighlights."""

import json
from pathlib import Path

import numpy as np
import pytest

from tpokit_temporal.highlights import (
    HighlightQuery,
    highlight_scores,
    tvsum_average_precision,
    youtube_average_precision,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "moment_retrieval"


def golden(name):
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    videos = zip(case["saliency_scores"], case["labels"], strict=True)
    return case, [(np.array(saliency), np.array(labels)) for saliency, labels in videos]


def query(saliency, *annotators):
    return HighlightQuery(np.array(saliency, dtype=float), np.array(annotators, dtype=bool).T)


def test_tvsum_equals_the_released_numbers():
    case, videos = golden("highlight_map_tvsum_seed51")
    found = [tvsum_average_precision(*video) for video in videos]
    np.testing.assert_allclose(found, case["expected_per_video"], atol=1e-5)
    assert round(float(np.mean(found)), 5) == case["expected"]["mAP"]


def test_youtube_equals_the_released_numbers_and_leaves_out_a_video_without_highlight():
    case, videos = golden("highlight_map_youtube_uni_seed52")
    found = [youtube_average_precision(saliency, labels[:, 0] > 0) for saliency, labels in videos]
    assert found.index(None) == case["expected_per_video"].index(None)
    counted = [value for value in found if value is not None]
    expected = [value for value in case["expected_per_video"] if value is not None]
    np.testing.assert_allclose(counted, expected, atol=1e-5)
    assert round(float(np.mean(counted)), 5) == case["expected"]["mAP"]


def test_the_median_of_an_even_number_of_clips_is_the_lower_one():
    saliency, ratings = np.array([1.0, 4.0, 3.0, 2.0]), np.array([[1.0], [2.0], [4.0], [5.0]])
    # above 2: the third and fourth clip, which the saliency ranks second and third
    expected = 0.5 * (0 + 1 / 2) / 2 + 0.5 * (1 / 2 + 2 / 3) / 2
    assert tvsum_average_precision(saliency, ratings) == pytest.approx(expected)


def test_a_hit_needs_one_rater_and_precision_is_a_mean_over_all():
    found = highlight_scores([query([0.1, 0.9], [0, 1], [1, 0], [0, 0])])
    assert found.hit1 == 1
    assert found.mean_average_precision == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_saliency_of_another_length_is_cut_or_filled_with_zeros():
    beyond = query([0.5, 0.1, 0.9], [1, 0])
    assert highlight_scores([beyond]).hit1 == 0  # the highest is where the video has no clip
    assert highlight_scores([beyond]).mean_average_precision == 1
    short = query([-1.0], [0, 1, 1])
    assert highlight_scores([short]).mean_average_precision == 1  # 0 is more than -1
    assert highlight_scores([query([], [0, 1])]).hit1 == 0


def test_videos_of_different_length_do_not_disturb_each_other():
    one = query([0.3, -0.2, 0.1], [0, 0, 1])
    other = query(np.linspace(-1, 1, 50), np.arange(50) % 3 == 0)
    alone = [highlight_scores([each]) for each in (one, other)]
    together = highlight_scores([one, other])
    expected = np.mean([scores.mean_average_precision for scores in alone])
    assert together.mean_average_precision == pytest.approx(expected)


def test_no_queries_have_no_scores():
    assert highlight_scores([]) is None
