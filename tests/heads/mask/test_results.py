"""What the mask head's results hold and say of themselves."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays

from tpokit_mask.results import (
    FrameResult,
    MaskTrack,
    decode_mask,
    encode_mask,
    frame_result,
    tight_box_px,
)


def square(x, y, side=3, height=20, width=30):
    mask = np.zeros((height, width), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def track(*frames, kind="video"):
    return MaskTrack(kind, 20, 30, frames)


MOVING = track(*(frame_result(time_s, square(5 * k, 4)) for k, time_s in enumerate((0, 0.5, 1.0))))


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
@settings(max_examples=60, deadline=None)
def test_a_mask_comes_back_from_its_run_lengths(mask):
    coded = encode_mask(mask)
    assert json.loads(json.dumps(coded)) == coded
    assert coded["size"] == list(mask.shape)
    np.testing.assert_array_equal(decode_mask(coded, *mask.shape), mask)


def test_the_tight_box_ends_behind_the_last_pixel():
    assert tight_box_px(square(7, 2, side=3)) == (7, 2, 10, 5)
    assert tight_box_px(np.ones((20, 30), dtype=bool)) == (0, 0, 30, 20)
    assert tight_box_px(np.zeros((20, 30), dtype=bool)) is None


def test_masks_are_those_that_were_put_in_and_empty_where_none_is_known():
    found = track(frame_result(0, square(1, 2)), FrameResult(0.5, None, (1, 1, 4, 4)))
    np.testing.assert_array_equal(found.masks(), [square(1, 2), np.zeros((20, 30))])
    assert found.masks().dtype == np.bool_
    assert track().masks().shape == (0, 20, 30)


@pytest.mark.parametrize(
    ("time_s", "place"), [(-1, 0), (0, 0), (0.24, 0), (0.25, 0), (0.26, 1), (0.5, 1), (9, 2)]
)
def test_the_frame_at_a_time_is_the_nearest(time_s, place):
    assert MOVING.at(time_s) is MOVING.frames[place]


def test_a_track_without_frames_shows_nothing():
    assert track().at(1.0) is None


def test_json_of_a_video_has_every_frame_with_rounded_numbers():
    box_only = FrameResult(1 / 3, None, (1.2345, 0, 4, 5), 0.123456)
    plain = track(frame_result(0, square(1, 2)), box_only).to_json()
    first = {"time_s": 0, "rle": encode_mask(square(1, 2)), "box": [1, 2, 4, 5]}
    second = {"time_s": 0.3333, "rle": None, "box": [1.23, 0, 4, 5], "score": 0.1235}
    assert plain == {"masks": [first, second]}
    assert json.loads(json.dumps(plain)) == plain


def test_json_of_an_image_has_its_mask_alone():
    plain = track(frame_result(0, square(1, 2), 0.5), kind="image").to_json()
    assert plain == {"mask": encode_mask(square(1, 2)), "box": [1, 2, 4, 5], "score": 0.5}
    assert track(kind="image").to_json() == {"mask": None, "box": None}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (MOVING, "visible in 3 of 3 frames"),
        (track(MOVING.frames[0], FrameResult(0.5, None, None)), "visible in 1 of 2 frames"),
        (track(MOVING.frames[1], kind="image"), "mask of 9 pixels, box [5, 4, 8, 7]"),
        (track(FrameResult(0, None, (1, 2, 3.5, 4)), kind="image"), "box [1, 2, 3.5, 4]"),
        (track(frame_result(0, np.zeros((20, 30), bool)), kind="image"), "empty mask"),
        (track(kind="image"), "empty mask"),
    ],
)
def test_text_says_where_the_object_is(found, text):
    assert str(found) == text
