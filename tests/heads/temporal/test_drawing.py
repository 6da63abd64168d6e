"""The timeline is seen, is complete, and keeps what was drawn before."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tpokit import MediaNeed, View
from tpokit.reporting.canvas import colour
from tpokit_temporal.drawing import TemporalDrawing
from tpokit_temporal.results import Moment, Moments
from tpokit_temporal.timeline import Axis

FRAME = (40, 90, 160)


def view(width=64, height=64, duration_s=40.0, frames=8, kind="video"):
    pixels = np.full((frames, height, width, 3), FRAME, dtype=np.uint8)
    times_s = tuple((index + 0.5) * duration_s / frames for index in range(frames))
    return View(kind, pixels, times_s, duration_s, Path("clip.mp4"))


def drawn(*results, **shape):
    seen = view(**shape)
    return TemporalDrawing().draw(Image.fromarray(seen.frames[0]), results, seen)


def columns_of(picture, tone, below=0):
    """First and last column that has a colour, below a row."""
    pixels = np.asarray(picture)[below:]
    found = np.flatnonzero((np.abs(pixels.astype(int) - tone).sum(-1) < 12).any(0))
    return int(found[0]), int(found[-1])


@pytest.mark.parametrize(("width", "height"), [(64, 64), (1280, 720), (360, 640), (1, 1)])
def test_the_timeline_stands_below_the_picture_at_any_size(width, height):
    found = Moments((Moment(10, 20, 0.9),), tuple(range(20)), 2.0)
    seen = view(width, height)
    picture = Image.new("RGB", (width, height), (1, 2, 3))
    made = TemporalDrawing().draw(picture, [found], seen)
    assert picture.getcolors() == [(width * height, (1, 2, 3))]  # the given one stays as it is
    assert made.crop((0, 0, width, height)).tobytes() == picture.tobytes()
    assert made.width == max(width, 720)
    assert made.height > height + 150


def test_a_bar_stands_at_its_seconds():
    made = drawn(Moments((Moment(10, 30, 1.0),)))
    first, last = columns_of(made, colour(0), below=64)
    inside = 720 - 2 * 13
    assert first == pytest.approx(13 + inside * 0.25, abs=3)
    assert last == pytest.approx(13 + inside * 0.75, abs=3)


def test_each_call_has_its_own_colour():
    made = drawn(*(Moments((Moment(5, 10, 1.0),)) for _ in range(3)))
    for index in range(3):
        assert columns_of(made, colour(index), below=64)


def test_the_curve_peaks_where_saliency_does():
    low, high = 4, 15
    saliency = [0.0] * 20
    saliency[low], saliency[high] = 0.5, 1.0
    made = np.asarray(drawn(Moments((), tuple(saliency), 2.0)).convert("RGB")).astype(int)
    strong = np.abs(made - colour(0)).sum(-1) < 60
    rows, columns = np.nonzero(strong)
    left, right = columns < 720 // 2, columns >= 720 // 2
    assert rows[right].min() < rows[left].min() - 10  # twice as high


def test_bars_at_the_ends_keep_their_labels_inside():
    seconds = [(0, 1), (39, 40), (0, 40), (38, 60), (-5, -1)]
    made = drawn(Moments(tuple(Moment(start, end, 0.5) for start, end in seconds)))
    edge = np.asarray(made)[64 + 120 :]
    assert (edge[:, :5] == 255).all()
    assert (edge[:, -5:] == 255).all()


def test_only_the_best_moments_are_shown():
    moments = tuple(Moment(index, index + 2, 1 - index / 20) for index in range(12))
    five, twelve = drawn(Moments(moments[:5])), drawn(Moments(moments))
    assert five.height < twelve.height < five.height + 30  # one line says how many more


@pytest.mark.parametrize(
    "found",
    [
        Moments(()),
        Moments((), (1.0,), 40.0),
        Moments((), (2.0, 2.0, 2.0), 10.0),
        Moments((), (float("nan"), 1.0), 20.0),
        Moments((Moment(5, 5, 0.0),), (0.0, 1.0), 30.0),
    ],
    ids=["nothing", "one clip", "flat", "not a number", "clips beyond the end"],
)
def test_odd_results_are_drawn(found):
    assert drawn(found).height > 64 + 100


@pytest.mark.parametrize("duration_s", [0.04, 0.5, 7.0, 59.94, 7200.0])
def test_ticks_are_round_few_and_inside(duration_s):
    ticks = Axis(10, 710, duration_s, 0.9).ticks_s()
    assert 2 <= len(ticks) <= 13
    assert ticks[0] == 0
    assert ticks[-1] <= duration_s * (1 + 1e-9)
    assert float(f"{ticks[1]:.0e}") == pytest.approx(ticks[1])  # one digit


def test_frames_of_any_number_and_shape_make_a_strip():
    for shape in ({"frames": 1}, {"frames": 13}, {"width": 30, "height": 300}):
        assert drawn(Moments((Moment(0, 4),)), **shape).width == 720


def test_an_image_and_no_results_leave_the_picture_alone():
    seen = view(duration_s=0.0, frames=1, kind="image")
    picture = Image.fromarray(seen.frames[0])
    for results in ([Moments((Moment(0, 1),))], []):
        made = TemporalDrawing().draw(picture, results, seen)
        assert made is not picture
        assert made.tobytes() == picture.tobytes()
    assert TemporalDrawing().draw(picture, [], view()).size == (64, 64)


def test_it_asks_for_eight_frames():
    assert TemporalDrawing.need == MediaNeed(frames=8)
    assert TemporalDrawing.task == "temporal"
