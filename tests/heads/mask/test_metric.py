"""The measures of ``tpokit evaluate`` for masks, and their constants."""

import numpy as np
import pytest

from tests.heads.mask.test_results import square
from tpokit import DataError, MediaInfo
from tpokit_mask.constant_mask import constant_for_videos, grid_bits
from tpokit_mask.metric import MaskMetric
from tpokit_mask.metrics.boundary import boundary_accuracy
from tpokit_mask.metrics.protocols import referring_video
from tpokit_mask.metrics.quality import mask_quality
from tpokit_mask.metrics.region import region_similarity
from tpokit_mask.metrics.tracking_benchmarks import TrackedSequence, got10k_scores, lasot_scores
from tpokit_mask.results import FrameResult, MaskTrack, frame_result

VIDEO, IMAGE = MediaInfo("video", 30, 20, 2.0), MediaInfo("image", 30, 20)
EMPTY = np.zeros((20, 30), dtype=bool)


def image(mask):
    return MaskTrack("image", *mask.shape, (frame_result(0.0, mask),))


def video(*masks, step_s=0.5, start_s=0.0):
    frames = (frame_result(start_s + k * step_s, mask) for k, mask in enumerate(masks))
    return MaskTrack("video", 20, 30, tuple(frames))


def boxes(*corners, step_s=0.5):
    frames = (FrameResult(k * step_s, None, box) for k, box in enumerate(corners))
    return MaskTrack("video", 20, 30, tuple(frames))


def metric(*samples, media=VIDEO):
    made = MaskMetric()
    for predicted, expected in samples:
        made.add(predicted, expected, media)
    return made


# ---- images ----


def test_images_have_the_mean_of_iou_and_that_of_all_pixels():
    small, large = square(0, 0, 2), square(5, 5, 10)
    found = metric(([image(square(0, 0, 4))], [image(small)]), ([image(large)], [image(large)]))
    assert found.scores() == pytest.approx({"giou": (4 / 16 + 1) / 2, "ciou": 104 / 116})


def test_calls_are_paired_in_reading_order_and_a_missing_one_is_an_empty_mask():
    first, second = image(square(0, 0)), image(square(9, 9))
    for predicted, giou in (
        ([first, second], 1),
        ([second, first], 0),
        ([first], 1 / 2),
        ([], 0),
        ([first, second, first], 1),
    ):
        assert metric((predicted, [first, second])).scores()["giou"] == giou
    assert metric(([], [image(EMPTY)])).scores() == {"giou": 1, "ciou": 1}


def test_nothing_expected_gives_no_scores():
    nothing = MaskTrack("video", 20, 30, ())
    box_alone = MaskTrack("image", 20, 30, (FrameResult(0, None, (1, 1, 4, 4)),))
    found = metric(([video(EMPTY)], []), ([video(EMPTY)], [nothing]), ([], [box_alone]))
    assert found.scores() == {}
    assert found.constant() == {}


# ---- videos ----


def test_videos_have_the_numbers_of_the_referring_protocol():
    random = np.random.default_rng(0)
    calls = [random.random((2, frames, 20, 30)) > 0.6 for frames in (1, 4)]
    calls[1][1, 2:] = calls[1][0, 2] = False  # not visible, once seen where it is not
    found = metric(*(([video(*masks[0])], [video(*masks[1])]) for masks in calls)).scores()
    wanted = referring_video([mask_quality(*masks[:, None]) for masks in calls]).scores
    assert found == pytest.approx({"j": wanted.region, "f": wanted.boundary, "j&f": wanted.mean})


def test_images_and_videos_are_scored_side_by_side():
    found = metric(([image(EMPTY), video(EMPTY)], [image(square(1, 1)), video(EMPTY)]))
    assert found.scores() == {"giou": 0, "ciou": 0, "j": 1, "f": 1, "j&f": 1}


def test_only_expected_frames_count():
    masks = [square(k, 4) for k in range(9)]
    every_fourth = MaskTrack("video", 20, 30, video(*masks, step_s=0.1).frames[::4])
    wrong_between = [mask if k % 4 == 0 else ~mask for k, mask in enumerate(masks)]
    found = metric(([video(*wrong_between, step_s=0.1)], [every_fourth])).scores()
    assert found["j"] == 1


def test_a_prediction_stands_for_half_a_step_around_its_frames():
    right = square(3, 4)
    slow = video(right, right, step_s=1.0)  # frames at 0 and 1 s
    wanted = video(*[right] * 8, step_s=0.25)  # up to 1.75 s
    assert metric(([slow], [wanted])).scores()["j"] == 7 / 8  # up to 1.5 s
    fast = video(*[right] * 8, step_s=0.25, start_s=0.1)  # times that are a little off
    assert metric(([fast], [wanted])).scores()["j"] == 1


def test_one_frame_answers_for_its_own_time_only():
    right = square(3, 4)
    assert metric(([video(right, start_s=0.5)], [video(right, start_s=0.5)])).scores()["j"] == 1
    assert metric(([video(right, start_s=0.6)], [video(right, start_s=0.5)])).scores()["j"] == 0


def test_frames_without_a_prediction_are_right_where_nothing_is_to_be_seen():
    wanted = video(EMPTY, EMPTY, EMPTY, square(1, 1))
    assert metric(([], [wanted])).scores() == {"j": 0.75, "f": 0.75, "j&f": 0.75}
    hidden = MaskTrack("video", 20, 30, (*wanted.frames, FrameResult(2.0, None, None)))
    assert metric(([], [hidden])).scores()["j"] == 0.8


def test_a_frame_with_a_box_but_no_mask_does_not_count_beside_masks():
    known = video(square(1, 1))
    mixed = MaskTrack("video", 20, 30, (*known.frames, FrameResult(0.5, None, (1, 1, 4, 4))))
    assert metric(([known], [mixed])).scores()["j"] == 1


def test_masks_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"predicted masks are 8 x 8 pixels .* true ones 30 x 20"):
        metric(([image(np.ones((8, 8), dtype=bool))], [image(EMPTY)]))


# ---- tracks of boxes ----


def as_benchmark(predicted, true, visible=None):
    """Sequence from corners."""
    tracks = [np.array(rows, dtype=float) for rows in (predicted, true)]
    for rows in tracks:
        rows[:, 2:] -= rows[:, :2]
    return TrackedSequence("a", *tracks, visible, (30.0, 20.0))


def test_tracks_of_boxes_have_the_numbers_of_lasot_and_got10k():
    true = [(2, 2, 8, 8), (4, 2, 10, 8), None, (8, 2, 14, 8)]
    found = metric(
        ([video(square(2, 2, 6), square(5, 2, 6), EMPTY, square(20, 9, 6))], [boxes(*true)]),
        ([boxes((1, 1, 5, 5), (1, 1, 5, 6))], [boxes((1, 1, 5, 5), (2, 1, 6, 5))]),
    ).scores()
    last = (5, 2, 11, 8)  # an empty mask repeats the last box
    plain = [
        as_benchmark(
            [(2, 2, 8, 8), last, last, (20, 9, 26, 15)],
            [(2, 2, 8, 8), (4, 2, 10, 8), (0, 0, 0, 0), (8, 2, 14, 8)],
            np.array([True, True, False, True]),
        ),
        as_benchmark([(1, 1, 5, 5), (1, 1, 5, 6)], [(1, 1, 5, 5), (2, 1, 6, 5)]),
    ]
    lasot, got10k = lasot_scores(plain), got10k_scores(plain)
    assert found == {
        "auc": lasot.success_auc,
        "precision": lasot.precision_at_20_px,
        "norm_precision": lasot.normalised_precision_at_020,
        "ao": got10k.average_overlap,
        "sr@0.5": got10k.success_at_50,
        "sr@0.75": got10k.success_at_75,
    }
    assert 0.2 < found["ao"] < 0.6


def test_a_track_that_is_missing_meets_its_target_where_it_was_given():
    found = metric(([], [boxes(*[(2, 2, 8, 8)] * 4)])).scores()
    assert found["ao"] == 0
    assert found["auc"] == pytest.approx(20 / 21 / 4)  # the first box was given
    assert metric(([], [boxes(*[(2, 2, 8, 8)] * 4)])).constant() == {}


def test_a_track_that_shows_its_target_once_does_not_count():
    assert metric(([], [boxes((2, 2, 8, 8), None)])).scores() == {}


# ---- constants ----


def test_the_grid_keeps_the_place_of_a_mask_and_never_loses_it():
    half = np.zeros((480, 854), dtype=bool)
    half[:, :427] = True
    cells = np.unpackbits(grid_bits(half)).reshape(64, 64)
    assert cells[:, :32].all()
    assert not cells[:, 32:].any()
    dot = np.zeros((480, 854), dtype=bool)
    dot[100, 201] = True
    found = np.unpackbits(grid_bits(dot)).reshape(64, 64)
    assert np.argwhere(found).tolist() == [[100 * 64 // 480, 201 * 64 // 854]]
    assert not grid_bits(np.zeros((8, 8), dtype=bool)).any()


def test_the_best_constant_of_images_is_what_most_of_them_show():
    common, rare = square(2, 2, 8), square(20, 10, 5)
    found = metric(*(([], [image(mask)]) for mask in (common, common, common, rare)))
    iou = found.constant()
    assert iou["giou"] == pytest.approx(3 / 4, abs=0.01)
    assert iou["ciou"] == pytest.approx(3 * 64 / (3 * 64 + 64 + 25), abs=0.02)
    assert metric(([], [image(common)])).constant() == {"giou": 1, "ciou": 1}


def test_the_empty_mask_is_the_best_constant_where_objects_are_mostly_absent():
    calls = [video(EMPTY, EMPTY, EMPTY, square(9, 9)), video(square(1, 1), EMPTY)]
    found = metric(*(([], [call]) for call in calls)).constant()
    assert found == pytest.approx({"j": (3 / 4 + 1 / 2) / 2, "f": 0.625, "j&f": 0.625})


def test_the_full_mask_is_the_best_constant_where_objects_fill_the_frames():
    halves = [np.zeros((20, 30), dtype=bool) for _ in range(4)]
    for place, mask in enumerate(halves):
        mask[:] = True
        mask[10 * (place % 2) : 10 * (place % 2) + 2, :] = False
    assert metric(([], [video(*halves)])).constant()["j"] == pytest.approx(0.9, abs=0.02)


def test_constants_of_many_videos_are_what_the_definition_gives(monkeypatch):
    monkeypatch.setattr("tpokit_mask.constant_mask._AT_ONCE", 3)  # parts that do not come out even
    random = np.random.default_rng(1)
    corners = random.integers(10, 30, (4, 3, 2))
    masks = np.zeros((4, 3, 64, 64), dtype=bool)  # on the grid itself
    for (call, frame), (y, x) in zip(np.ndindex(4, 3), corners.reshape(-1, 2), strict=True):
        masks[call, frame, y : y + 20, x : x + 20] = True
    bits = [np.stack([grid_bits(mask) for mask in call]) for call in masks]
    mean = masks.mean((0, 1))
    tried = [np.zeros_like(masks[0, 0]), np.ones_like(masks[0, 0])]
    tried += [mean >= share / 10 * mean.max() for share in range(1, 10)]
    region = [region_similarity(np.broadcast_to(t, masks.shape), masks).mean() for t in tried]
    best = np.broadcast_to(tried[int(np.argmax(region))], masks.shape)
    found = constant_for_videos(bits)
    assert found.region == pytest.approx(max(region))
    assert found.boundary == pytest.approx(boundary_accuracy(best, masks).mean())
