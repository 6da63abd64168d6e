"""J and F of single masks: their definitions, and masks that cannot be compared."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import distance_transform_edt

from tpokit import DataError
from tpokit_mask.metrics.boundary import (
    boundary_accuracy,
    boundary_map,
    near,
    pairwise_boundary_accuracy,
    tolerance_px,
)
from tpokit_mask.metrics.quality import match_proposals
from tpokit_mask.metrics.region import pairwise_overlap, region_similarity

small_masks = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 12)))


@given(small_masks, st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_near_is_what_a_distance_transform_says(outline, radius_px):
    far = distance_transform_edt(~outline) if outline.any() else np.full(outline.shape, np.inf)
    np.testing.assert_array_equal(near(outline, radius_px), far <= radius_px)


@given(small_masks)
@settings(max_examples=100, deadline=None)
def test_a_boundary_map_is_what_its_definition_says_pixel_by_pixel(mask):
    height, width = mask.shape
    expected = np.zeros(mask.shape, dtype=bool)
    for y in range(height):
        for x in range(width):
            around = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            inside = [place for place in around if place[0] < height and place[1] < width]
            expected[y, x] = any(mask[place] != mask[y, x] for place in inside)
    np.testing.assert_array_equal(boundary_map(mask), expected)


def plain_f(predicted, true):
    """By the book, over whole pictures."""
    radius = tolerance_px(*true.shape)
    first, second = boundary_map(predicted), boundary_map(true)
    if not first.any() or not second.any():
        return float(first.any() == second.any())
    precision = (distance_transform_edt(~second)[first] <= radius).mean()
    recall = (distance_transform_edt(~first)[second] <= radius).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_f_one_by_one_and_all_pairs_at_once_equal_the_plain_definition(seed):
    random = np.random.default_rng(seed)
    places = random.integers(-20, 160, (2, 3, 2))
    sizes = random.integers(1, 60, (2, 3))
    y, x = np.ogrid[:90, :140]  # radius 2
    masks = [
        np.stack([np.hypot(y - a, x - b) < s for (a, b), s in zip(*discs, strict=True)])
        for discs in zip(places, sizes, strict=True)
    ]
    expected = [[plain_f(predicted, true) for true in masks[1]] for predicted in masks[0]]
    np.testing.assert_allclose(pairwise_boundary_accuracy(*masks), expected, atol=1e-12)
    np.testing.assert_allclose(boundary_accuracy(*masks), np.diagonal(expected), atol=1e-12)
    pairs = [[region_similarity(p, t) for t in masks[1]] for p in masks[0]]
    np.testing.assert_allclose(pairwise_overlap(*masks).iou, pairs, atol=1e-12)


def test_leading_dimensions_are_kept():
    masks = np.random.default_rng(0).random((2, 3, 8, 9)) > 0.5
    for measure in (region_similarity, boundary_accuracy):
        assert measure(masks, masks).tolist() == [[1.0] * 3] * 2
        assert measure(masks[:, :0], masks[:, :0]).shape == (2, 0)


def test_a_full_mask_has_no_boundary_and_so_fits_an_empty_one():
    full, empty = np.ones((20, 30), dtype=bool), np.zeros((20, 30), dtype=bool)
    assert (region_similarity(full, empty), boundary_accuracy(full, empty)) == (0.0, 1.0)


def test_void_pixels_are_taken_out_of_both_masks():
    true = np.zeros((40, 60), dtype=bool)
    true[10:20, 10:20] = True
    predicted, void = true.copy(), np.zeros_like(true)
    predicted[10:20, 40:50] = void[5:30, 35:55] = True
    assert region_similarity(predicted, true) == 0.5
    assert boundary_accuracy(predicted, true) < 0.8
    both = np.stack([predicted, true]), np.stack([true, true])
    assert region_similarity(*both, void).tolist() == [1.0, 1.0]  # void is given once for both
    assert boundary_accuracy(*both, void).tolist() == [1.0, 1.0]


def test_the_masks_that_are_given_stay_as_they_are():
    random = np.random.default_rng(1)
    given_masks = [random.random((2, 4, 20, 30)) > 0.5 for _ in range(2)]
    void = random.random((4, 20, 30)) > 0.8
    before = [masks.copy() for masks in (*given_masks, void)]
    region_similarity(*given_masks, void)
    boundary_accuracy(*given_masks, void)
    match_proposals(*given_masks, void)
    for masks, copy in zip((*given_masks, void), before, strict=True):
        np.testing.assert_array_equal(masks, copy)


# ---- bad input ----


@pytest.mark.parametrize("measure", [region_similarity, boundary_accuracy])
def test_masks_that_cannot_be_compared_are_refused(measure):
    mask = np.zeros((4, 6), dtype=bool)
    cases = {
        r"predicted masks are 3 x 4 pixels \(width x height\), true ones 6 x 4": (
            mask[:, :3],
            mask,
        ),
        "predicted masks are float32, they must be bool": (mask.astype(np.float32), mask),
        "true masks are uint8, they must be bool": (mask, mask.astype(np.uint8)),
        r"shape \(2, 4, 6\) for true ones of shape \(3, 4, 6\)": (
            np.stack([mask] * 2),
            np.stack([mask] * 3),
        ),
        r"shape \(4, 0\) have no pixels": (mask[:, :0], mask[:, :0]),
    }
    for message, pair in cases.items():
        with pytest.raises(DataError, match=message):
            measure(*pair)
    with pytest.raises(DataError, match="void masks are 6 x 3 pixels"):
        measure(mask, mask, mask[:3])
    with pytest.raises(DataError, match=r"void pixels of shape \(2, 4, 6\) for .* \(3, 4, 6\)"):
        measure(*[np.stack([mask] * 3)] * 2, np.stack([mask] * 2))
