"""What is drawn is seen, stays in the picture, and is written whole or not at all."""

import sys

import numpy as np
import pytest
from PIL import Image

from tpokit import UsageError
from tpokit.reporting import canvas


def pixels(picture):
    return {picture.getpixel((x, y)) for x in range(picture.width) for y in range(picture.height)}


@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), canvas.colour(0)])
def test_an_outline_shows_on_any_ground(ground):
    picture = Image.new("RGB", (64, 48), ground)
    canvas.outline_box(picture, (10, 10, 40, 30), canvas.colour(0))
    other = pixels(picture) - {ground}
    assert other & {canvas.colour(0), (0, 0, 0)}
    assert picture.getpixel((25, 20)) == ground  # what is inside stays visible


def test_boxes_at_and_beyond_the_border_and_swapped_ones_are_drawn():
    picture = Image.new("RGB", (64, 48))
    for box in ((-20, -20, 10, 10), (60, 40, 200, 200), (30, 20, 10, 5), (5, 5, 5, 5)):
        canvas.outline_box(picture, box, (255, 0, 0), label="1")
    assert (255, 0, 0) in pixels(picture)


@pytest.mark.parametrize("corner", [(0, 0), (199, 0), (0, 99), (199, 99)])
def test_a_label_stays_inside_the_picture(corner):
    picture = Image.new("RGB", (200, 100))
    canvas.write_label(picture, corner, "12", (0, 255, 0))
    plate = sum(picture.getpixel((x, y)) == (0, 255, 0) for x in range(200) for y in range(100))
    middle = Image.new("RGB", (200, 100))
    canvas.write_label(middle, (80, 60), "12", (0, 255, 0))
    assert plate == sum(
        middle.getpixel((x, y)) == (0, 255, 0) for x in range(200) for y in range(100)
    )


def test_neighbouring_colours_differ_and_the_palette_repeats():
    assert len({canvas.colour(index) for index in range(7)}) == 7
    assert canvas.colour(7) == canvas.colour(0)
    assert canvas.contrast((240, 228, 66)) == (0, 0, 0)
    assert canvas.contrast((0, 0, 90)) == (255, 255, 255)


def test_loss_curves_are_one_png_that_leaves_out_what_is_missing(tmp_path):
    rows = [
        {"step": step, "language": 3 / (step + 1), **({"region.l1": 0.5} if step % 2 else {})}
        for step in range(40)
    ]
    rows[5]["language"] = float("nan")
    canvas.loss_curves(rows, tmp_path / "loss.png", [("assign", 0), ("heads", 20)])
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.format == "PNG"
        colours = np.asarray(picture.convert("RGB")).astype(int)
    blue = colours[..., 2] > colours[..., 0] + 100
    left, right = np.split(blue, 2, axis=1)
    assert min(left.sum(), right.sum()) > 50  # a curve in each of the two panels
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_gradients_are_drawn_behind_the_terms_if_they_were_logged(tmp_path):
    rows = [
        {
            "stage": "heads",
            "step": step,
            "loss": 1.0,
            "grad_norm": 2.0,
            "padding": 0.1,
            "learning_rate.llm": 0.1,
            "calls.region": 3,
            "machine.samples_per_s": 7.0,
            "gradient_norm.llm": 0.5,
            "gradient_norm.region": 0.0,  # cannot be drawn on a logarithmic axis
            **({"task_cosine.region.language": 0.3} if step % 2 else {}),
        }
        for step in range(6)
    ]
    panels = canvas.panels_of(rows)
    assert [(panel.title, dict(panel.columns)) for panel in panels] == [
        ("loss", {"loss": "loss"}),
        ("gradient norm", {"llm": "gradient_norm.llm", "region": "gradient_norm.region"}),
        ("cosine between tasks", {"region.language": "task_cosine.region.language"}),
    ]
    canvas.loss_curves(rows, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        colours = np.asarray(picture.convert("RGB")).astype(int)
    blue = colours[..., 2] > colours[..., 0] + 100
    assert min(third.sum() for third in np.array_split(blue, 3, axis=1)) > 50


def test_no_terms_is_an_error_and_leaves_no_file(tmp_path):
    with pytest.raises(UsageError, match=r"loss\.png: no loss terms to draw"):
        canvas.loss_curves([{"step": 1}], tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r'pip install "tpokit\[demo\]"'):
        canvas.loss_curves([{"step": 1, "language": 1.0}], tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())
