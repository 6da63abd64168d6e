"""Conversions and overlaps of boxes: known values, laws, and finite gradients everywhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpokit import geometry

fraction = st.floats(-0.5, 1.5, width=32)
any_box = st.tuples(fraction, fraction, fraction, fraction)
size = st.floats(1 / 64, 1.0, width=32)
proper_box = st.tuples(fraction, fraction, size, size).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)


def boxes(*corners):
    return torch.tensor(corners, dtype=torch.float64)


def test_overlaps_of_hand_computed_boxes():
    first = boxes((0, 0, 2, 2), (0, 0, 1, 1), (0, 0, 4, 4))
    second = boxes((1, 1, 3, 3), (2, 0, 3, 1), (1, 1, 2, 3))
    assert geometry.aligned_iou(first, second).tolist() == pytest.approx([1 / 7, 0, 2 / 16])
    assert geometry.aligned_giou(first, second).tolist() == pytest.approx(
        [1 / 7 - 2 / 9, -1 / 3, 2 / 16]
    )


def test_pairwise_is_aligned_on_its_diagonal():
    first, second = torch.rand(5, 4).sort(-1).values, torch.rand(5, 4).sort(-1).values
    table = geometry.pairwise_iou(first, second)
    assert table.shape == (5, 5)
    assert torch.equal(table.diagonal(), geometry.aligned_iou(first, second))
    assert geometry.pairwise_iou(first[:0], second).shape == (0, 5)


def test_areas_are_in_the_unit_of_the_boxes():
    assert geometry.area(boxes((1, 2, 4, 4), (3, 0, 1, 1), (1, 1, 1, 5))).tolist() == [6, 0, 0]


def test_a_box_in_the_middle_by_its_centre_and_in_pixels():
    corners = boxes((0.25, 0.5, 0.75, 1.0))
    assert geometry.corners_to_centre(corners).tolist() == [[0.5, 0.75, 0.5, 0.5]]
    sizes = boxes((640, 480))
    assert geometry.to_pixels(corners, sizes).tolist() == [[160, 240, 480, 480]]
    assert (
        geometry.to_fractions(geometry.to_pixels(corners, sizes), sizes).tolist()
        == corners.tolist()
    )


def test_swapped_corners_are_found_and_put_right_by_axis():
    swapped = boxes((0.8, 0.1, 0.2, 0.3), (0.1, 0.3, 0.2, 0.3))
    assert geometry.is_proper(swapped).tolist() == [False, True]  # a line is proper
    assert geometry.order_corners(swapped).tolist() == [[0.2, 0.1, 0.8, 0.3], [0.1, 0.3, 0.2, 0.3]]


@given(any_box)
def test_centre_and_corners_are_inverse(corners):
    there = geometry.corners_to_centre(boxes(corners))
    assert torch.allclose(geometry.centre_to_corners(there), boxes(corners), atol=1e-12)


@given(any_box, any_box)
def test_overlaps_are_symmetric_and_bounded_even_for_swapped_corners(first, second):
    a, b = boxes(first), boxes(second)
    iou, giou = geometry.aligned_iou(a, b), geometry.aligned_giou(a, b)
    assert torch.equal(iou, geometry.aligned_iou(b, a))
    assert torch.equal(giou, geometry.aligned_giou(b, a))
    assert 0 <= float(iou) <= 1 + 1e-9
    assert -1 - 1e-9 <= float(giou) <= float(iou) + 1e-9


@given(proper_box, proper_box, fraction, fraction, st.floats(0.5, 1000))
def test_overlaps_do_not_change_when_both_boxes_move_and_grow(first, second, right, down, scale):
    a, b = boxes(first), boxes(second)
    shift = boxes((right, down, right, down))
    moved, other = (a + shift) * scale, (b + shift) * scale
    assert torch.allclose(geometry.aligned_iou(a, b), geometry.aligned_iou(moved, other), atol=1e-9)
    assert torch.allclose(
        geometry.aligned_giou(a, b), geometry.aligned_giou(moved, other), atol=1e-9
    )


@given(proper_box)
def test_a_box_overlaps_wholly_with_itself(corners):
    box = torch.tensor([corners])
    assert float(geometry.aligned_iou(box, box)) == pytest.approx(1, abs=1e-5)
    assert float(geometry.aligned_giou(box, box)) == pytest.approx(1, abs=1e-5)


coarse = st.sampled_from([0.0, 1e-30, 1e-9, 0.3, 0.3000001, 1.0])  # points, lines, slivers


@settings(max_examples=200)
@given(st.tuples(*[coarse] * 4), st.tuples(*[coarse] * 4))
def test_values_and_gradients_are_finite_for_points_lines_and_slivers(first, second):
    predicted = torch.tensor([first], requires_grad=True)
    for overlap in (geometry.aligned_iou, geometry.aligned_giou):
        value = overlap(predicted, torch.tensor([second]))
        (gradient,) = torch.autograd.grad(value.sum(), predicted)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()


def test_boxes_apart_still_pull_each_other():
    predicted = torch.tensor([[0.0, 0.0, 0.1, 0.1]], requires_grad=True)
    geometry.aligned_giou(predicted, torch.tensor([[0.8, 0.8, 0.9, 0.9]])).sum().backward()
    assert (predicted.grad[0, 2:] > 0).all()  # the lower right corner must move to the right, down


def test_half_precision_is_computed_in_float32():
    box = torch.tensor([[0.1, 0.1, 0.11, 0.11]]).bfloat16()
    assert geometry.area(box).dtype == torch.float32
    assert geometry.aligned_iou(box, box).tolist() == [1.0]
