"""Masks are seen where they are, at their moment, and the rest of the picture stays."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.heads.mask.test_results import square
from tpokit import View
from tpokit.reporting.canvas import colour
from tpokit_mask.drawing import MaskDrawing
from tpokit_mask.results import FrameResult, MaskTrack, frame_result

GROUND = (40, 90, 160)
HEIGHT, WIDTH = 150, 300


def track(*masks, step_s=0.5):
    frames = tuple(frame_result(k * step_s, mask) for k, mask in enumerate(masks))
    return MaskTrack("video", HEIGHT, WIDTH, frames)


def block(x, y, side=60):
    return square(x, y, side, HEIGHT, WIDTH)


def drawn(*results, time_s=0.0, size=(WIDTH, HEIGHT)):
    picture = Image.new("RGB", size, GROUND)
    made = MaskDrawing().draw_frame(picture, results, time_s)
    assert picture.getcolors() == [(size[0] * size[1], GROUND)]  # the given one stays as it is
    return np.asarray(made)


def changed(pixels):
    """First and last column and row that differ from the ground."""
    rows, columns = np.nonzero((pixels != GROUND).any(-1))
    return int(columns.min()), int(columns.max()), int(rows.min()), int(rows.max())


def test_an_object_is_tinted_half_way_and_outlined_in_its_colour():
    pixels = drawn(track(block(100, 60)))
    half = [(first // 2 + second // 2) for first, second in zip(GROUND, colour(0), strict=True)]
    assert pixels[90, 130].tolist() == half
    assert pixels[90, 99].tolist() == list(colour(0))
    x0, x1, _, y1 = changed(pixels[60:])
    assert (x0, x1) == pytest.approx((99, 160), abs=2)
    assert y1 + 60 == pytest.approx(120, abs=2)


def test_the_number_stands_at_the_upper_left_corner():
    pixels = drawn(track(block(100, 60)))
    plate = pixels[40:58, 100:106].reshape(-1, 3)
    assert (plate == colour(0)).all(-1).any()
    assert (pixels[:40] == GROUND).all()


def test_each_object_has_a_colour_of_its_own_and_numbers_are_over_masks():
    first, second = track(block(20, 80)), track(block(20, 30, 100))
    pixels = drawn(first, second)
    assert pixels[127, 60].tolist() != pixels[60, 60].tolist()
    plate = pixels[70:79, 21:24].reshape(-1, 3)
    assert (plate == colour(0)).all(-1).any()


@pytest.mark.parametrize(("time_s", "x"), [(0.0, 20), (0.2, 20), (0.3, 150), (9.0, 150)])
def test_the_masks_of_the_moment_are_drawn(time_s, x):
    pixels = drawn(track(block(20, 60), block(150, 60)), time_s=time_s)
    assert changed(pixels)[0] == pytest.approx(x, abs=2)


def test_what_is_not_visible_leaves_no_trace():
    hidden = track(np.zeros((HEIGHT, WIDTH), dtype=bool))
    nothing = MaskTrack("video", HEIGHT, WIDTH, ())
    assert (drawn(hidden, nothing) == GROUND).all()


def test_the_next_object_keeps_its_number_and_colour_when_the_first_is_hidden():
    hidden = track(np.zeros((HEIGHT, WIDTH), dtype=bool))
    assert drawn(hidden, track(block(100, 60)))[90, 99].tolist() == list(colour(1))


def test_a_mask_that_fills_the_picture_is_tinted_to_its_edges():
    pixels = drawn(track(np.ones((HEIGHT, WIDTH), dtype=bool)))
    assert (pixels != GROUND).any(-1).all()


def test_a_box_without_a_mask_is_outlined():
    frame = FrameResult(0.0, None, (50.0, 60.0, 120.0, 130.0))
    pixels = drawn(MaskTrack("video", HEIGHT, WIDTH, (frame,)))
    assert (pixels[100, 48:56] == colour(0)).all(-1).any()
    assert pixels[100, 80].tolist() == list(GROUND)


def test_drawings_below_the_first_frame_are_left_alone():
    pixels = drawn(track(block(240, 90)), size=(WIDTH + 40, HEIGHT + 200))
    assert (pixels[HEIGHT:] == GROUND).all()
    assert (pixels[:, WIDTH:] == GROUND).all()


def test_a_picture_shows_the_masks_of_the_moment_that_it_was_taken():
    found = track(block(20, 60), block(150, 60))
    frame = np.full((1, HEIGHT, WIDTH, 3), GROUND, dtype=np.uint8)
    view = View("video", frame, (0.5,), 1.0, Path("clip.mp4"))
    made = MaskDrawing().draw(Image.fromarray(frame[0]), [found], view)
    assert np.array_equal(np.asarray(made), drawn(found, time_s=0.5))
    assert MaskDrawing.moves
