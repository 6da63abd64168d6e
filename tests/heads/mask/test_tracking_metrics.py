"""Tracking: the golden numbers of three public programs, and the rules that set them apart."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tpokit import DataError
from tpokit_mask.metrics.boxes import (
    box_iou,
    boxes_from_masks,
    centre_distance_by_size,
    centre_distance_px,
    clip_to_image,
    repeat_empty,
)
from tpokit_mask.metrics.tracking import OVERLAPS, frame_errors, success_curve, track_curves
from tpokit_mask.metrics.tracking_benchmarks import (
    TrackedSequence,
    got10k_scores,
    lasot_scores,
    otb_scores,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "masks" / "tracking.json"
NUMBERS = json.loads(GOLDEN.read_text(encoding="utf-8"))
TOLERANCE, PERCENT_TOLERANCE = 1e-6, 1e-4  # as the JSON file states


def golden_sequences(visibility):
    """Sequences of the file; ``visibility`` names the row that says where the target is seen."""
    return [
        TrackedSequence(
            name=row["name"],
            predicted_xywh_px=np.array(row["prediction"], dtype=float),
            true_xywh_px=np.array(row["ground_truth"], dtype=float),
            visible=np.array(row[visibility]) > 0,
            size_px=tuple(row["resolution_wh"]),
        )
        for row in NUMBERS["sequences"]
    ]


def sequence(predicted, true, **other):
    return TrackedSequence(
        "car-6", np.array(predicted, dtype=float), np.array(true, dtype=float), **other
    )


def close(found, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


BOX = [10, 20, 30, 40]
FAR = [200, 200, 30, 40]
BENCHMARKS = {
    "otb, pytracking": lambda rows: otb_scores(rows, "pytracking"),
    "otb, toolkit": lambda rows: otb_scores(rows, "toolkit"),
    "lasot, pytracking": lambda rows: lasot_scores(rows, "pytracking"),
    "lasot, toolkit": lambda rows: lasot_scores(rows, "toolkit"),
    "got10k": got10k_scores,
}
every_benchmark = pytest.mark.parametrize("score", BENCHMARKS.values(), ids=BENCHMARKS)


# ---- golden numbers ----


def test_iou_and_centre_distance_agree_frame_by_frame():
    expected = NUMBERS["otb_one_pass"]["results"]["per_frame"]
    for track in golden_sequences("target_visible"):
        errors = frame_errors(track.predicted_xywh_px, track.true_xywh_px)
        close(errors.overlap, expected[track.name]["iou"])
        close(errors.distance_px, expected[track.name]["center_error"])


@pytest.mark.parametrize(
    ("score", "block"), [(otb_scores, "otb_one_pass"), (lasot_scores, "lasot_got10k_toolkit")]
)
def test_otb_and_lasot_agree_with_the_got10k_toolkit(score, block):
    results = NUMBERS[block]["results"]
    tracks = golden_sequences("target_visible")
    scores = score(tracks, "toolkit")
    singles = [(score([track], "toolkit"), results["seq_wise"][track.name]) for track in tracks]
    for found, expected in [(scores, results["overall"]), *singles]:
        close(found.mean_curves.success, expected["success_curve"])
        close(found.mean_curves.precision, expected["precision_curve"])
        close(found.success_auc, expected["success_score"])
        close(found.precision_at_20_px, expected["precision_score"])
        close(found.success_at_50, expected["success_rate"])
        if score is lasot_scores:
            close(found.mean_curves.normalised_precision, expected["normalized_precision_curve"])
            close(found.normalised_precision_mean, expected["normalized_precision_score"])


@pytest.mark.parametrize(("score", "block"), [(otb_scores, "otb"), (lasot_scores, "lasot")])
def test_otb_and_lasot_agree_with_pytracking(score, block):
    expected = NUMBERS["pytracking"]["results"][block]
    scores = score(golden_sequences("target_visible"), "pytracking")
    percentages = {
        "auc_percent": scores.success_auc,
        "precision_20px_percent": scores.precision_at_20_px,
        "norm_precision_020_percent": scores.normalised_precision_at_020,
        "op50_percent": scores.success_at_50,
        "op75_percent": scores.success_at_75,
    }
    for name, value in percentages.items():
        close(100 * value, expected[name], PERCENT_TOLERANCE)
    for place, name in enumerate(scores.names):
        single = expected["per_sequence"][name]
        close(scores.curves.success[place], single["success_curve"])
        close(scores.curves.precision[place], single["precision_curve"])
        close(scores.curves.normalised_precision[place], single["norm_precision_curve"])
        close(scores.overlaps[place], single["mean_overlap_of_valid_frames"])


def test_got10k_agrees_with_its_toolkit():
    results = NUMBERS["got10k"]["results"]
    tracks = golden_sequences("cover")
    scores = got10k_scores(tracks)
    expected = results["overall"]
    close(scores.success, expected["succ_curve"])
    close(scores.average_overlap, expected["ao"])
    close([scores.success_at_50, scores.success_at_75], [expected["sr_050"], expected["sr_075"]])
    for found, track in zip(scores.sequences, tracks, strict=True):
        single = results["seq_wise"][track.name]
        close(found.average_overlap, single["ao"])
        close([found.success_at_50, found.success_at_75], [single["sr_050"], single["sr_075"]])


def test_the_conventions_differ_by_as_much_as_they_are_known_to():
    tracks = golden_sequences("target_visible")
    ours, theirs = lasot_scores(tracks, "pytracking"), lasot_scores(tracks, "toolkit")
    assert (round(ours.success_auc, 3), round(theirs.success_auc, 3)) == (0.503, 0.516)
    assert round(ours.normalised_precision_at_020, 3) == 0.467
    assert round(otb_scores(tracks).normalised_precision_at_020, 3) == 0.476
    assert round(theirs.normalised_precision_mean, 3) == 0.480


# ---- rules ----


def test_a_perfect_track_has_a_success_of_20_of_21():
    rows = [sequence([BOX] * 4, [BOX] * 4, size_px=(640, 480))]
    for convention in ("pytracking", "toolkit"):
        for score in (otb_scores, lasot_scores):
            scores = score(rows, convention)
            assert scores.success_auc == pytest.approx(20 / 21)
            assert scores.precision_at_20_px == scores.normalised_precision_at_020 == 1
            assert scores.mean_overlap == 1
    assert got10k_scores(rows).average_overlap == 1


def test_an_iou_must_be_over_a_threshold_and_a_distance_may_be_equal():
    half = frame_errors(np.array([[0.0, 0, 10, 5]]), np.array([[0.0, 0, 10, 10]]))
    assert track_curves(half).success[[9, 10]].tolist() == [1, 0]
    off = frame_errors(np.array([[20.0, 0, 10, 10]]), np.array([[0.0, 0, 100, 10]]))
    assert off.distance_px[0] == 25
    assert track_curves(off).precision[[24, 25]].tolist() == [0, 1]


def test_normalised_distance_is_in_widths_and_heights_of_the_true_box():
    found = centre_distance_by_size(np.array([[3.0, 8.0, 10, 20]]), np.array([[0.0, 0, 10, 20]]))
    assert found[0] == pytest.approx(0.5)  # 0.3 widths, 0.4 heights
    assert np.isinf(centre_distance_by_size(np.array([BOX]), np.array([[10, 20, 0, 40]])))[0]


def test_boxes_without_area_overlap_with_nothing():
    boxes = np.array([[0, 0, 0, 5], [5, 5, 0, 0], [20, 20, -10, -10]], dtype=float)
    assert box_iou(boxes, np.array([[0.0, 0, 10, 10]])).tolist() == [0, 0, 0]
    assert box_iou(boxes, boxes).tolist() == [0, 0, 0]


def test_rounding_never_makes_an_iou_greater_than_one():
    boxes = np.random.default_rng(0).random((5000, 4)) * 1000
    iou = box_iou(boxes, boxes)
    assert iou.max() == 1
    assert success_curve(iou, OVERLAPS)[-1] == 0


def test_rounding_counts_at_the_last_threshold_as_it_does_in_pytracking():
    first = golden_sequences("target_visible")[0].true_xywh_px[:1]
    assert 1 < box_iou(first, first, clip=False)[0] < 1 + 1e-14
    rows = [sequence(first, first)]
    assert otb_scores(rows, "pytracking").success_auc == 1
    assert otb_scores(rows, "toolkit").success_auc == pytest.approx(20 / 21)


def test_sequences_count_the_same_but_for_got10k_where_frames_do():
    good, bad = [BOX] * 3, [BOX] + [FAR] * 10
    rows = [
        sequence(good, good, size_px=(640, 480)),
        sequence(bad, [BOX] * 11, size_px=(640, 480)),
    ]
    assert otb_scores(rows).success_at_50 == pytest.approx((1 + 1 / 11) / 2)
    pooled = got10k_scores(rows)
    assert pooled.success_at_50 == pooled.average_overlap == pytest.approx(2 / 12)
    assert [single.average_overlap for single in pooled.sequences] == [1, 0]


def test_the_first_box_is_given_and_so_is_right_and_got10k_drops_it():
    rows = [sequence([FAR, FAR], [BOX, BOX], size_px=(640, 480))]
    for convention in ("pytracking", "toolkit"):
        assert otb_scores(rows, convention).success_at_50 == 0.5
        assert lasot_scores(rows, convention).success_at_50 == 0.5
    assert got10k_scores(rows).success_at_50 == 0


def test_invisible_frames_are_misses_in_lasot_and_left_out_in_got10k():
    seen = np.array([True, True, False, False])
    rows = [sequence([BOX] * 4, [BOX] * 4, visible=seen, size_px=(640, 480))]
    scores = lasot_scores(rows)
    assert scores.success_at_50 == scores.precision_at_20_px == 0.5
    assert scores.mean_curves.normalised_precision.tolist() == [0.5] * 51
    assert scores.mean_overlap == 1  # of the frames where it is seen
    assert otb_scores(rows).success_at_50 == 1
    assert lasot_scores(rows, "toolkit").success_at_50 == 1
    assert (
        got10k_scores(
            [replace(rows[0], predicted_xywh_px=np.array([BOX, BOX, FAR, FAR]))]
        ).average_overlap
        == 1
    )


def test_a_true_box_that_is_not_positive_is_a_miss_in_all_three_curves_of_pytracking():
    for empty in ([0, 20, 30, 40], [10, 20, 0, 40], [10, 20, 30, -1]):
        rows = [sequence([BOX, BOX], [BOX, empty])]
        for score in (otb_scores, lasot_scores):
            curves = score(rows).mean_curves
            assert curves.success[0] == curves.precision[-1] == 0.5
            assert curves.normalised_precision[-1] == 0.5


def test_frames_with_a_true_box_of_nan_are_left_out_by_the_toolkit_for_lasot():
    rows = [sequence([BOX, FAR, BOX], [BOX, [np.nan] * 4, BOX])]
    assert lasot_scores(rows, "toolkit").success_at_50 == 1
    for score in (otb_scores, lasot_scores):
        with pytest.raises(DataError, match=r"car-6: the true box of frame 1 .* must be finite"):
            score(rows, "pytracking")


def test_a_predicted_box_without_size_is_replaced_by_the_one_before_in_pytracking():
    lost = [BOX, BOX, [0, 0, 0, 0], [7, 7, 5, 0]]
    rows = [sequence(lost, [BOX] * 4)]
    assert lasot_scores(rows).success_at_50 == otb_scores(rows).success_at_50 == 1
    assert lasot_scores(rows, "toolkit").success_at_50 == 0.5
    # The box before is the one that was predicted, also on the first frame.
    assert lasot_scores([sequence([FAR, [0, 0, 0, 0]], [BOX, BOX])]).success_at_50 == 0.5


def test_boxes_that_are_missing_at_the_end_are_zeros_for_otb_alone():
    rows = [sequence([BOX], [BOX, [1, 1, 10, 10]], size_px=(640, 480))]
    scores = otb_scores(rows)
    assert scores.success_at_50 == 0.5
    assert scores.precision_at_20_px == 1  # the corner (0, 0) is near: zeros, not the last box


def test_got10k_moves_the_corner_into_the_image_then_cuts_the_size():
    boxes = np.array([[-10, 5, 30, 40], [90, 70, 30, 40], [150, -200, 10, 10.0]])
    clipped = clip_to_image(boxes, 100, 80)
    assert clipped.tolist() == [[0, 5, 30, 40], [90, 70, 10, 10], [100, 0, 0, 10]]


@every_benchmark
def test_what_is_given_stays_as_it_is(score):
    rows = [
        sequence(
            [FAR, [0, 0, 0, 0], [-5, 20, 30, 4000]],
            [BOX, BOX, [600, 20, 300, 40]],
            visible=np.array([True, True, True]),
            size_px=(640, 480),
        )
    ]
    arrays = [rows[0].predicted_xywh_px, rows[0].true_xywh_px, rows[0].visible]
    before = [array.copy() for array in arrays]
    score(rows)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


# ---- boxes from masks ----


def test_boxes_of_masks_are_tight_and_an_empty_mask_repeats_the_last_one():
    masks = np.zeros((5, 20, 30), dtype=bool)
    masks[1, 3:8, 10:12] = True
    masks[1, 15, 29] = True
    masks[4, 0, 0] = True
    expected = [[0, 0, 0, 0], [10, 3, 20, 13], [10, 3, 20, 13], [10, 3, 20, 13], [0, 0, 1, 1]]
    assert boxes_from_masks(masks).tolist() == expected
    assert boxes_from_masks(np.stack([masks, masks[::-1]]))[1].tolist()[-1] == [10, 3, 20, 13]


def test_empty_boxes_at_the_start_have_nothing_to_repeat():
    track = np.array([[5, 5, 0, 9], [1, 1, 0, 0], BOX, [0, 0, 0, 3]], dtype=float)
    assert repeat_empty(track).tolist() == [[5, 5, 0, 9], [5, 5, 0, 9], BOX, BOX]


# ---- bad input ----


@every_benchmark
@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        ([BOX, [np.nan, 1, 2, 3]], "predicted box of frame 1 .* nan, 1, 2, 3; it must be finite"),
        ([BOX, [np.inf, 1, 2, 3]], "predicted box of frame 1 .* inf, 1, 2, 3; it must be finite"),
        ([BOX, [5, 5, -1, 3]], "frame 1 .* 5, 5, -1, 3; it must have no negative width or height"),
        ([BOX, BOX, BOX], "3 predicted boxes for 2 frames"),
        ([[1, 2, 3]], r"predicted boxes have shape \(1, 3\)"),
        (np.zeros((0, 4)), r"predicted boxes have shape \(0, 4\)"),
    ],
)
def test_bad_tracks_are_refused_with_the_name_of_the_sequence(score, predicted, message):
    with pytest.raises(DataError, match=f"^car-6: .*{message}"):
        score([sequence(predicted, [BOX, BOX], size_px=(640, 480))])


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "otb, pytracking"])
def test_missing_boxes_are_refused(name):
    with pytest.raises(DataError, match="car-6: 1 predicted boxes for 2 frames"):
        BENCHMARKS[name]([sequence([BOX], [BOX, BOX], size_px=(640, 480))])


@every_benchmark
def test_no_sequence_and_bad_truth_are_refused(score):
    with pytest.raises(DataError, match="no sequence to score"):
        score([])
    with pytest.raises(DataError, match=r"car-6: the true box of frame 1 .* must be finite"):
        score([sequence([BOX, BOX], [BOX, [1, np.inf, 3, 4]], size_px=(640, 480))])


@pytest.mark.parametrize("score", [lasot_scores, got10k_scores])
def test_flags_of_visibility_must_be_one_for_each_frame(score):
    rows = [sequence([BOX] * 2, [BOX] * 2, visible=np.array([True]), size_px=(640, 480))]
    with pytest.raises(DataError, match=r"car-6: flags of visibility of shape \(1,\) for 2 frames"):
        score(rows)


def test_sequences_without_a_frame_that_counts_are_refused():
    hidden = np.zeros(2, dtype=bool)
    rows = [sequence([BOX] * 2, [BOX] * 2, visible=hidden, size_px=(640, 480))]
    with pytest.raises(DataError, match="car-6: no frame has a true box of a visible target"):
        lasot_scores(rows)
    with pytest.raises(DataError, match="car-6: no frame counts"):
        got10k_scores(rows)
    with pytest.raises(DataError, match="car-6: no frame has a true box"):
        lasot_scores([sequence([BOX], [[np.nan] * 4])], "toolkit")


def test_got10k_needs_the_size_of_the_frames():
    with pytest.raises(
        DataError, match=r"car-6: .* give width and height of the frames as size_px"
    ):
        got10k_scores([sequence([BOX] * 2, [BOX] * 2)])


def test_distances_of_centres_need_no_half_pixels():
    found = centre_distance_px(np.array([[0.0, 0, 4, 4]]), np.array([[3.0, 4, 4, 4]]))
    assert found[0] == 5
