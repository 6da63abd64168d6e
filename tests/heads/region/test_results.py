"""Metrics and drawing of region results."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tpokit import Box, MediaInfo, View
from tpokit.geometry import pairwise_iou
from tpokit_region.drawing import RegionDrawing
from tpokit_region.metrics import RegionMetric

IMAGE = MediaInfo("image", 100, 100)
VIEW = View("image", np.zeros((1, 100, 200, 3), np.uint8), (0.0,), 0.0, Path("a.png"))


def metric(*samples, media=IMAGE):
    made = RegionMetric()
    for predicted, expected in samples:
        made.add(predicted, expected, media)
    return made


def test_scores_of_hand_computed_boxes():
    right = Box(0, 0, 10, 10)
    found = metric(
        ([right], [right]),  # IoU 1
        ([Box(0, 0, 10, 5)], [right]),  # IoU 1/2: a hit
        ([Box(0, 0, 10, 4)], [right]),  # IoU 2/5
        ([Box(50, 50, 60, 60)], [right]),  # IoU 0
    ).scores()
    assert found == pytest.approx({"acc@0.5": 2 / 4, "mean_iou": (1 + 0.5 + 0.4) / 4})


def test_a_missing_prediction_is_wrong_and_a_surplus_one_earns_nothing():
    first, second = Box(0, 0, 10, 10), Box(20, 20, 40, 40)
    assert metric(([first], [first, second])).scores()["acc@0.5"] == 0.5
    assert metric(([], [first])).scores() == {"acc@0.5": 0, "mean_iou": 0}
    assert metric(([first, second, second], [first])).scores()["acc@0.5"] == 1
    assert metric(([second, first], [first])).scores()["acc@0.5"] == 0  # paired in reading order


def test_nothing_expected_gives_no_scores():
    made = metric(([Box(0, 0, 1, 1)], []))
    assert made.scores() == {}
    assert made.constant() == {}


def test_iou_does_not_depend_on_the_shape_of_the_image():
    for media in (IMAGE, MediaInfo("image", 1000, 50)):
        wide = metric(([Box(0, 0, 10, 5)], [Box(0, 0, 10, 10)]), media=media)
        assert wide.scores()["mean_iou"] == pytest.approx(0.5)


def test_the_best_constant_box_is_the_one_that_hits_most():
    common, rare = Box(10, 10, 50, 50), Box(60, 60, 70, 70)
    near = Box(10, 10, 50, 40)  # IoU 3/4 with the common one
    found = metric(*(([], [box]) for box in (rare, common, common, near))).constant()
    assert found == pytest.approx({"acc@0.5": 3 / 4, "mean_iou": (1 + 1 + 0.75) / 4})


def test_a_constant_box_is_compared_as_fractions_of_each_image():
    made = RegionMetric()
    made.add([], [Box(0, 0, 50, 50)], IMAGE)
    made.add([], [Box(0, 0, 500, 100)], MediaInfo("image", 1000, 200))
    assert made.constant() == {"acc@0.5": 1, "mean_iou": 1}


def test_many_boxes_are_tried_in_parts_and_come_close_to_trying_all():
    corners = torch.rand(3000, 2, 2, generator=torch.Generator().manual_seed(1)).sort(1).values
    boxes = [Box(*row) for row in corners.mul(100).flatten(1).tolist()]
    made = RegionMetric()
    made.add([], boxes, IMAGE)
    everything = corners.double().flatten(1)
    best = (pairwise_iou(everything, everything) >= 0.5).double().mean(-1).max().item()
    assert best - 0.02 < made.constant()["acc@0.5"] <= best


def test_drawing_leaves_the_given_picture_alone_and_marks_each_box():
    picture = Image.new("RGB", (200, 100))
    drawn = RegionDrawing().draw(picture, [Box(20, 30, 90, 80), Box(110, 40, 190, 90)], VIEW)
    assert picture.getcolors() == [(200 * 100, (0, 0, 0))]
    assert drawn.size == picture.size
    assert drawn.crop((15, 25, 95, 85)).getcolors(9999) != drawn.crop((105, 35, 195, 95)).getcolors(
        9999
    )
    assert RegionDrawing().draw(picture, [], VIEW).tobytes() == picture.tobytes()
