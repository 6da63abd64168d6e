"""J, F and their averages: the golden numbers of the public evaluators, and the rules."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file
from scipy.ndimage import distance_transform_edt

from tpokit import DataError
from tpokit_mask.metrics.boundary import (
    boundary_accuracy,
    boundary_map,
    near,
    pairwise_boundary_accuracy,
    tolerance_px,
)
from tpokit_mask.metrics.davis_statistics import value_statistics
from tpokit_mask.metrics.protocols import (
    MaskScores,
    davis_semi_supervised,
    davis_unsupervised,
    referring_video,
    segment_anything_video,
)
from tpokit_mask.metrics.quality import MaskQuality, mask_quality, match_proposals
from tpokit_mask.metrics.referring import referring_scores
from tpokit_mask.metrics.region import Overlap, overlap, pairwise_overlap, region_similarity

GOLDEN = Path(__file__).parents[2] / "golden" / "masks"
NUMBERS = json.loads((GOLDEN / "jf.json").read_text(encoding="utf-8"))
TENSORS = load_file(GOLDEN / "jf.safetensors")
PAIRS = NUMBERS["pairs"]["rows"]
SEQUENCES = NUMBERS["sequences"]["results"]
TOLERANCE, PERCENT_TOLERANCE = 1e-6, 1e-4  # as the JSON file states


def decoded(name, shape):
    """Masks from row-major run lengths that start with zeros."""
    runs = TENSORS[f"{name}.runs"]
    offsets = TENSORS.get(f"{name}.offsets", np.array([0, len(runs)]))
    parts = np.split(runs, offsets[1:-1])
    masks = [np.repeat(np.arange(len(part)) % 2 == 1, part) for part in parts]
    return np.concatenate(masks).reshape(shape)


@pytest.fixture(scope="module", params=sorted(SEQUENCES))
def sequence(request):
    """Name, expected numbers and quality of a golden sequence."""
    expected = SEQUENCES[request.param]
    masks = [decoded(f"seq.{request.param}.{k}", expected["shape"]) for k in ("pred", "gt")]
    return request.param, expected, mask_quality(*masks)


def masks_of(*rows):
    return np.array(rows, dtype=bool)


def quality(region, in_truth=None, in_prediction=None):
    region = np.array(region, dtype=float)
    seen = [
        np.ones(region.shape, dtype=bool) if flags is None else np.array(flags, dtype=bool)
        for flags in (in_truth, in_prediction)
    ]
    return MaskQuality(region, region / 2, *seen, name="cat-girl")


# ---- golden numbers ----


@pytest.mark.parametrize("row", PAIRS, ids=lambda row: row["name"])
def test_j_and_f_of_single_pairs_are_those_of_the_public_evaluator(row):
    predicted, true = (decoded(f"pair.{row['id']}.{k}", row["shape"]) for k in ("pred", "gt"))
    assert region_similarity(predicted, true) == pytest.approx(row["J"], abs=TOLERANCE)
    assert boundary_accuracy(predicted, true) == pytest.approx(row["F"], abs=TOLERANCE)
    assert tolerance_px(*row["shape"]) == row["radius"]
    assert boundary_map(true).sum() == row["n_boundary_gt"]
    assert boundary_map(predicted).sum() == row["n_boundary_pred"]


@pytest.mark.parametrize("row", PAIRS, ids=lambda row: row["name"])
def test_every_pair_counts_for_sa_v_as_it_does_in_its_evaluator(row):
    # Two frames, so that an object that is in neither mask of the pair does not count on it. On the
    # other one it is predicted perfectly.
    predicted, true = (decoded(f"pair.{row['id']}.{k}", row["shape"]) for k in ("pred", "gt"))
    full = np.ones(row["shape"], dtype=bool)
    two = [np.stack([mask, full])[None] for mask in (predicted, true)]
    found = segment_anything_video([mask_quality(*two)], skip_ends=False).scores
    for name, value in (("J_sav", found.region), ("F_sav", found.boundary)):
        expected = 1.0 if row[name] is None else (row[name] + 1) / 2
        assert value == pytest.approx(expected, abs=TOLERANCE)


def test_j_and_f_of_real_sequences_agree_frame_by_frame(sequence):
    name, _, found = sequence
    np.testing.assert_allclose(found.region, TENSORS[f"seq.{name}.J"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.boundary, TENSORS[f"seq.{name}.F"], rtol=0, atol=TOLERANCE)


def test_the_averages_of_davis_agree(sequence):
    _, numbers, found = sequence
    expected, scores = numbers["davis_semi_supervised"], davis_semi_supervised([found])
    for letter, statistics in (("J", scores.region), ("F", scores.boundary)):
        for field in ("mean", "recall", "decay"):
            wanted = [row[field] for row in expected["per_object"][letter]]
            values = getattr(statistics, field)
            np.testing.assert_allclose(values, wanted, rtol=0, atol=TOLERANCE)
    summary = {"mean": scores.scores, "recall": scores.recall, "decay": scores.decay}
    for field, values in summary.items():
        assert values.region == pytest.approx(expected[f"J_{field}"], abs=TOLERANCE)
        assert values.boundary == pytest.approx(expected[f"F_{field}"], abs=TOLERANCE)
    assert scores.scores.mean == pytest.approx(expected["JF_mean"], abs=TOLERANCE)


def test_the_averages_of_referring_video_agree(sequence):
    _, numbers, found = sequence
    expected, scores = numbers["referring_vos_all_frames"], referring_video([found])
    np.testing.assert_allclose(scores.region, expected["per_object_J"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(scores.boundary, expected["per_object_F"], rtol=0, atol=TOLERANCE)
    assert scores.scores.region == pytest.approx(expected["J"], abs=TOLERANCE)
    assert scores.scores.boundary == pytest.approx(expected["F"], abs=TOLERANCE)
    assert scores.scores.mean == pytest.approx(expected["JF"], abs=TOLERANCE)


@pytest.mark.parametrize("frames", ["skip_first_and_last", "all_frames"])
def test_the_averages_of_sa_v_agree(sequence, frames):
    _, numbers, found = sequence
    expected = numbers["sav_percent"][frames]
    scores = segment_anything_video([found], skip_ends=frames == "skip_first_and_last")
    rows = [expected["per_object"][name] for name in sorted(expected["per_object"])]
    for letter, values in (("J", scores.region), ("F", scores.boundary)):
        wanted = [row[letter] for row in rows]
        np.testing.assert_allclose(100 * values, wanted, rtol=0, atol=PERCENT_TOLERANCE)
    printed = scores.scores.percentages(decimals=6)
    wanted = {"J&F": expected["JF"], "J": expected["J"], "F": expected["F"]}
    assert printed == pytest.approx(wanted, abs=PERCENT_TOLERANCE)


# ---- region and boundary ----


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


# ---- statistics ----


def test_the_statistics_of_davis_by_hand():
    values = np.array([[0.9, 0.8, 0.5, 0.6, 0.4], [1, 1, 1, 1, 1]])
    found = value_statistics(values)
    np.testing.assert_allclose(found.mean, [0.64, 1])
    np.testing.assert_allclose(found.recall, [3 / 5, 1])  # 0.5 is not over 0.5
    np.testing.assert_allclose(found.decay, [(0.9 + 0.8) / 2 - (0.6 + 0.4) / 2, 0])  # shared ends


def test_decay_is_right_beyond_256_frames_where_the_original_overflows():
    values = np.linspace(1, 0, 401)[None]
    assert value_statistics(values).decay[0] == pytest.approx(0.75)


def test_one_frame_does_not_decay_and_none_has_no_mean():
    assert value_statistics(np.array([[0.7]])).decay[0] == 0
    with pytest.raises(DataError, match="no frame is left"):
        value_statistics(np.zeros((2, 0)))


# ---- protocols ----


def test_all_objects_count_the_same_however_long_their_sequences():
    short, long = quality([[0, 1, 0]]), quality([[0] * 12, [0] * 12])
    assert davis_semi_supervised([short, long]).scores.region == pytest.approx(1 / 3)
    assert davis_unsupervised([short, long]).scores.region == pytest.approx(1 / 9)
    assert referring_video([short, long]).scores.region == pytest.approx(1 / 9)
    assert segment_anything_video([short, long]).scores.region == pytest.approx(1 / 3)


def test_davis_counts_frames_before_an_object_appears_and_sa_v_does_not():
    truth = [[False, False, False, True, True]]
    late = quality([[1, 1, 1, 0.5, 1]], in_truth=truth, in_prediction=truth)
    assert davis_semi_supervised([late]).scores.region == pytest.approx(2.5 / 3)
    assert segment_anything_video([late]).scores.region == pytest.approx(0.5)
    early = [[False, False, True, False, False]]  # a false alarm starts the count
    alarm = quality([[1, 1, 0, 0.5, 1]], in_truth=truth, in_prediction=early)
    assert segment_anything_video([alarm]).scores.region == pytest.approx(0.25)


def test_sa_v_looks_for_the_first_frame_among_the_counted_ones():
    truth = [[True, False, False, True, True]]
    found = quality([[0, 1, 1, 0.5, 0]], in_truth=truth, in_prediction=truth)
    assert segment_anything_video([found]).scores.region == pytest.approx(0.5)
    assert segment_anything_video([found], skip_ends=False).scores.region == pytest.approx(0.5)


def test_sa_v_refuses_an_object_that_is_on_no_counted_frame():
    truth = [[True, True, True], [True, False, True]]
    with pytest.raises(DataError, match=r"cat-girl: object 1 .* on none of the 1 counted frames"):
        segment_anything_video([quality(np.ones((2, 3)), in_truth=truth)])


@pytest.mark.parametrize("protocol", [davis_semi_supervised, segment_anything_video])
def test_protocols_that_drop_the_ends_refuse_two_frames(protocol):
    with pytest.raises(DataError, match=r"cat-girl: of 2 frames none is left .* at least 3"):
        protocol([quality([[1, 1]])])


@pytest.mark.parametrize(
    "protocol",
    [davis_semi_supervised, davis_unsupervised, referring_video, segment_anything_video],
)
def test_protocols_refuse_to_score_nothing(protocol):
    for nothing in ([], [quality(np.zeros((0, 5)))]):
        with pytest.raises(DataError, match="no object to score"):
            protocol(nothing)


def test_percentages_are_rounded_as_papers_print_them():
    found = MaskScores(region=0.567891, boundary=0.61)
    assert found.percentages() == {"J&F": 58.89, "J": 56.79, "F": 61.0}


def squares(*corners, frames=3):
    """Objects ``[o, frames, 24, 32]``: squares of 6 pixels that move right by a pixel a frame."""
    masks = np.zeros((len(corners), frames, 24, 32), dtype=bool)
    for place, (y, x) in enumerate(corners):
        for frame in range(frames):
            masks[place, frame, y : y + 6, x + frame : x + frame + 6] = True
    return masks


def test_missing_objects_count_as_empty_masks():
    true = squares((2, 2), (12, 10))
    found = mask_quality(true[:1], true)
    assert found.region.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert found.in_prediction.tolist() == [[True] * 3, [False] * 3]
    assert mask_quality(true[:0], true).boundary.max() == 0


def test_proposals_in_any_order_are_given_to_the_objects_that_they_fit():
    true = squares((2, 2), (12, 10))
    predicted = squares((15, 1), (12, 11), (2, 2))
    match = match_proposals(predicted, true)
    assert match.proposals.tolist() == [2, 1]
    straight = mask_quality(predicted[[2, 1]], true)
    for field in ("region", "boundary", "in_truth", "in_prediction"):
        np.testing.assert_allclose(getattr(match.quality, field), getattr(straight, field))
    assert davis_unsupervised([match.quality]).scores.region == straight.region.mean()


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 20)), min_size=5, max_size=5))
@settings(max_examples=50, deadline=None)
def test_the_sum_over_objects_is_the_best_of_all_ways_to_give_proposals(corners):
    predicted, true = squares(*corners[:3]), squares(*corners[3:])
    sums = {}
    for order in itertools.permutations(range(3), 2):
        found = mask_quality(predicted[list(order)], true)
        sums[order] = (found.region.mean(-1) + found.boundary.mean(-1)).sum() / 2
    match = match_proposals(predicted, true)
    assert len(set(match.proposals)) == 2
    assert sums[tuple(match.proposals.tolist())] == pytest.approx(max(sums.values()))


def test_too_few_proposals_leave_objects_without_one():
    true = squares((2, 2), (12, 10))
    match = match_proposals(true[1:], true)
    assert match.proposals.tolist() == [-1, 0]
    assert match.quality.region.tolist() == [[0, 0, 0], [1, 1, 1]]


def test_void_pixels_count_for_no_proposal():
    true = squares((2, 2))
    predicted, void = true.copy(), np.zeros((3, 24, 32), dtype=bool)
    predicted[0, :, 14:, 20:] = void[:, 14:, 20:] = True
    assert match_proposals(predicted, true).quality.region.max() < 0.5
    assert match_proposals(predicted, true, void).quality.region.min() == 1


# ---- referring image segmentation ----


def test_giou_is_the_mean_of_samples_and_ciou_that_of_pixels():
    found = referring_scores(Overlap(np.array([1, 900]), np.array([10, 1000])))
    assert found.giou == pytest.approx((0.1 + 0.9) / 2)
    assert found.ciou == pytest.approx(901 / 1010)


def test_an_expression_that_names_nothing_is_right_if_nothing_is_predicted():
    empty, some = np.zeros((4, 5), dtype=bool), np.ones((4, 5), dtype=bool)
    pairs = [overlap(p, t) for p, t in ((empty, empty), (some, empty), (empty, some))]
    samples = Overlap(*(np.stack(counts) for counts in zip(*pairs, strict=True)))
    assert samples.iou.tolist() == [1, 0, 0]
    assert referring_scores(samples) == (pytest.approx(1 / 3), 0)
    assert referring_scores(Overlap(np.array([0]), np.array([0]))) == (1, 1)


@pytest.mark.parametrize(
    ("intersections", "unions", "message"),
    [
        ([], [], "at least one sample"),
        ([1], [2, 3], "one of each for every sample"),
        ([1, 5], [2, 3], "sample 1: an intersection of 5 and a union of 3 pixels cannot be"),
        ([-1], [3], "sample 0: an intersection of -1"),
    ],
)
def test_counts_that_cannot_be_are_refused(intersections, unions, message):
    with pytest.raises(DataError, match=message):
        referring_scores(Overlap(np.array(intersections), np.array(unions)))


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


@pytest.mark.parametrize("compare", [mask_quality, match_proposals])
def test_sequences_that_cannot_be_compared_are_refused(compare):
    true = squares((2, 2), (12, 10))
    cases = {
        "breakdance: masks are predicted on 2 frames, the truth has 3": (true[:, :2], true),
        "on 0 frames, the truth has 0": (true[:, :0], true[:, :0]),
        r"breakdance: predicted masks have shape \(3, 24, 32\); .* four dimensions": (
            true[0],
            true,
        ),
        "breakdance: predicted masks are 16 x 24 pixels": (true[..., :16], true),
        "breakdance: predicted masks are int64": (true.astype(np.int64), true),
    }
    for message, pair in cases.items():
        with pytest.raises(DataError, match=message):
            compare(*pair, name="breakdance")


def test_more_objects_than_the_protocol_allows_are_refused():
    true = squares((2, 2), (12, 10))
    with pytest.raises(DataError, match="soapbox: 2 predicted objects, but the truth has 1"):
        mask_quality(true, true[:1], name="soapbox")
    with pytest.raises(DataError, match=r"soapbox: 21 predicted objects; .* allows 20"):
        match_proposals(squares(*[(2, 2)] * 21), true, name="soapbox")
    assert match_proposals(squares(*[(2, 2)] * 20), true).quality.region[0].max() == 1


def test_a_sequence_without_true_objects_has_no_quality_and_no_match():
    none = squares((2, 2))[:0]
    assert mask_quality(none, none).region.shape == (0, 3)
    with pytest.raises(DataError, match="soapbox: the truth has no object to match"):
        match_proposals(squares((2, 2)), none, name="soapbox")


def test_void_pixels_must_be_given_for_each_frame():
    true = squares((2, 2))
    with pytest.raises(DataError, match=r"void pixels of shape \(2, 24, 32\); .* \(3, 24, 32\)"):
        match_proposals(true, true, np.zeros((2, 24, 32), dtype=bool))
