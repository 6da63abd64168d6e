"""What the temporal head's results say of themselves."""

import json
import math

import pytest

from tpokit_temporal.results import Moment, Moments, curve


def test_json_has_seconds_with_two_decimals_and_scores_with_four():
    found = Moments((Moment(1.23456, 7.0, 0.123456), Moment(0, 1)), (-1.23456, 2.0), 2.0)
    plain = found.to_json()
    assert plain == {
        "moments": [
            {"start_s": 1.23, "end_s": 7.0, "score": 0.1235},
            {"start_s": 0, "end_s": 1, "score": 1.0},
        ],
        "saliency": [-1.2346, 2.0],
        "clip_s": 2.0,
    }
    assert json.loads(json.dumps(plain)) == plain


def test_text_shows_the_best_three_moments_and_a_curve():
    moments = tuple(Moment(second, second + 1.5, 0.9) for second in range(5))
    text = str(Moments(moments, (0.0, 1.0, 0.5), 2.0))
    assert text == ("0.00-1.50 s (0.90), 1.00-2.50 s (0.90), 2.00-3.50 s (0.90) and 2 more  ▁█▅")
    assert str(Moments(())) == "no moment"


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], ""),
        ([3.0], "▁"),
        ([2.0, 2.0], "▁▁"),
        ([-5.0, 2.0], "▁█"),
        ([0.0, math.nan, 1.0], "▁▁█"),
    ],
)
def test_a_curve_runs_from_the_lowest_to_the_highest_value(values, shown):
    assert curve(values) == shown


def test_a_long_curve_keeps_its_peak():
    values = [0.0] * 1000
    values[777] = 1.0
    assert curve(values, columns=10) == "▁▁▁▁▁▁▁█▁▁"
