"""From the detector's numbers to moments in seconds: golden numbers, and what the options do."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tpokit_temporal.windows import (
    ClipScores,
    Decoding,
    adjust,
    decode_moments,
    hull_overlap,
    suppress,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "cg_detr"
PIECES = json.loads((GOLDEN / "windows_and_nms.json").read_text())
RELEASED = {"inside": False, "half_saliency": True}
CASES = ("post_hl_seed1", "post_charadesSTA_seed2")


def rows(result):
    return [[moment.start_s, moment.end_s, moment.score] for moment in result.moments]


def golden(name, **options):
    """The stored case, and what ours makes of it with the released options and more."""
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    counts = tensors["src_vid_mask"].sum(1).int().tolist()
    clips = ClipScores(tensors["saliency_scores"], counts, [case["clip_length"]] * len(counts))
    how = Decoding(**RELEASED, **options)
    durations_s = case["durations"]
    return case, decode_moments(
        tensors["pred_logits"], tensors["pred_spans"], durations_s, clips, how
    )


def decoded(moments, scores=None, duration_s=100.0, **options):
    """Moments (centre, width) of one call with the given scores, best first unless said."""
    scores = torch.tensor(scores or [0.9] * len(moments))
    logits = torch.stack([scores.logit(), torch.zeros_like(scores)], dim=-1)
    made = decode_moments(
        logits[None], torch.tensor([moments]), [duration_s], how=Decoding(**options)
    )
    return [row[:2] for row in rows(made[0])]


# ---- golden ----


@pytest.mark.parametrize("name", CASES)
def test_moments_and_saliency_equal_the_released_ones(name):
    case, found = golden(name)
    for ours, theirs in zip(found, case["before_post_processor"], strict=True):
        np.testing.assert_allclose(rows(ours), theirs["pred_relevant_windows"], atol=1.1e-4)
        np.testing.assert_allclose(ours.saliency, theirs["pred_saliency_scores"], atol=2e-3)
        assert ours.clip_s == case["clip_length"]


@pytest.mark.parametrize("name", CASES)
def test_rounded_moments_equal_the_released_ones(name):
    clip_s = json.loads((GOLDEN / f"{name}.json").read_text())["clip_length"]
    case, found = golden(name, limits_s=(0, 150), multiple_s=clip_s)
    for ours, theirs in zip(found, case["after_post_processor"], strict=True):
        np.testing.assert_allclose(rows(ours), theirs["pred_relevant_windows"], atol=1.1e-4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("overlap", "before", "after"), [(0.7, 10, 10), (0.5, 10, 3), (0.0, 4, 10)]
)
def test_suppressed_moments_equal_the_released_ones(name, overlap, before, after):
    case, found = golden(
        name,
        limits_s=(0, 150),
        multiple_s=json.loads((GOLDEN / f"{name}.json").read_text())["clip_length"],
        overlap=overlap,
        most_before=before,
        most_after=after,
    )
    stored = case["after_nms"][f"thd={overlap},max_before={before},max_after={after}"]
    assert [rows(result) for result in found] == stored


@pytest.mark.parametrize("case", PIECES["window_functions"], ids=lambda case: str(len(case)))
def test_lengths_limits_and_multiples_equal_the_released_ones(case):
    config = case["config"]
    steps = config["process_func_names"]
    how = Decoding(
        lengths_s=(config["min_w_l"], config["max_w_l"]) if "clip_window_l" in steps else None,
        keep={"left": "start", "center": "centre", "right": "end"}[config["move_window_method"]],
        limits_s=(config["min_ts_val"], config["max_ts_val"]) if "clip_ts" in steps else None,
        multiple_s=config["clip_length"] if "round_multiple" in steps else None,
        inside=False,
    )
    found = adjust(np.array(case["windows"])[None].round(4), [1e9], how)[0]
    np.testing.assert_allclose(found, case["expected"], atol=1.1e-4)


def test_suppression_alone_equals_the_released_one():
    for case in PIECES["temporal_nms"]:
        how = Decoding(overlap=case["nms_thd"], most_before=1000, most_after=case["max_after_nms"])
        moments = np.array(case["predictions"], dtype=float).reshape(1, -1, 3)
        assert suppress(moments, how)[0].tolist() == case["expected"]


def test_overlap_equals_the_released_one():
    for case in PIECES["hull_iou"]:
        found = hull_overlap(np.array(case["a"], float), np.array(case["b"], float))
        assert found == pytest.approx(case["expected"])


# ---- behaviour ----


def test_moments_are_best_first_and_stay_inside_the_video():
    logits = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [1.0, 0.0]]])
    moments = torch.tensor([[[0.5, 0.2], [0.05, 0.4], [0.9, 0.4]]])
    found = decode_moments(logits, moments, [30.0])[0]
    assert rows(found) == pytest.approx(
        np.array([[0, 7.5, 0.8808], [21, 30, 0.7311], [12, 18, 0.5]])
    )
    assert found.saliency == ()
    assert found.clip_s == 0


def test_equal_scores_stay_in_the_order_of_the_queries():
    moments = [[0.1 * index, 0.1] for index in range(1, 9)]
    starts = [start for start, _ in decoded(moments)]
    assert starts == sorted(starts)
    mixed = [0.1, 0.8, 0.1, 0.8]
    assert decoded(moments[:4], mixed, best_first=False) == decoded(moments[:4])


def test_rounding_is_half_to_even_and_leads_beyond_the_video_only_if_wished():
    assert decoded([[0.05, 0.04]], multiple_s=2.0) == [[4, 8]]  # 3 s to 7 s: 1.5 and 3.5 clips
    assert decoded([[0.5, 1.0]], duration_s=149.5, multiple_s=2.0) == [[0, 149.5]]
    assert decoded([[0.5, 1.0]], duration_s=149.5, multiple_s=2.0, inside=False) == [[0, 150]]


def test_a_moment_of_another_length_keeps_the_chosen_point():
    short = [[0.5, 0.02]]
    assert decoded(short, lengths_s=(10, 50), keep="start") == [[49, 59]]
    assert decoded(short, lengths_s=(10, 50), keep="centre") == [[45, 55]]
    assert decoded(short, lengths_s=(10, 50), keep="end") == [[41, 51]]
    assert decoded([[0.5, 0.2]], lengths_s=(10, 50)) == [[40, 60]]


def test_suppression_keeps_the_better_of_two_and_what_only_a_dropped_one_overlaps():
    moments = [[0.2, 0.2], [0.3, 0.2], [0.4, 0.2]]  # 10-30, 20-40, 30-50
    assert decoded(moments, [0.9, 0.8, 0.7], overlap=0.3) == [[10, 30], [30, 50]]
    assert decoded(moments, [0.7, 0.8, 0.9], overlap=0.3) == [[30, 50], [10, 30]]
    assert decoded(moments, [0.9, 0.8, 0.7], overlap=0.34) == decoded(moments)  # 10 of 30 s
    assert decoded(moments, [0.9, 0.8, 0.7], overlap=0.3, most_after=1) == [[10, 30]]


def test_saliency_ends_with_the_clips_of_its_own_call():
    scores = torch.tensor([[0.1, 0.2, 0.3], [0.4, 9.0, 9.0]])
    clips = ClipScores(scores, [3, 1], [2.0, 0.5])
    made = decode_moments(torch.zeros(2, 1, 2), torch.full((2, 1, 2), 0.5), [6.0, 0.5], clips)
    assert made[0].saliency == pytest.approx((0.1, 0.2, 0.3))
    assert made[1].saliency == pytest.approx((0.4,))
    assert [found.clip_s for found in made] == [2.0, 0.5]


def test_a_call_is_decoded_the_same_alone_and_among_others():
    random = torch.Generator().manual_seed(3)
    logits = torch.randn(7, 10, 2, generator=random)
    moments = torch.rand(7, 10, 2, generator=random)
    saliency = torch.randn(7, 20, generator=random)
    durations_s = [10.0 + 7 * index for index in range(7)]
    counts = [20 - index for index in range(7)]
    how = Decoding(multiple_s=1.0, overlap=0.5)
    together = decode_moments(
        logits, moments, durations_s, ClipScores(saliency, counts, [1.0] * 7), how
    )
    for index, found in enumerate(together):
        one = slice(index, index + 1)
        clips = ClipScores(saliency[one], counts[one], [1.0])
        assert decode_moments(logits[one], moments[one], durations_s[one], clips, how) == [found]


@pytest.mark.parametrize("overlap", [None, 0.5])
def test_no_call_gives_no_result(overlap):
    how = Decoding(overlap=overlap)
    clips = ClipScores(torch.zeros(0, 0), [], [])
    assert decode_moments(torch.zeros(0, 10, 2), torch.zeros(0, 10, 2), [], clips, how) == []


def test_half_precision_decodes_close_to_full_precision():
    logits = torch.randn(2, 10, 2, generator=torch.Generator().manual_seed(1))
    moments = torch.rand(2, 10, 2, generator=torch.Generator().manual_seed(2))
    full = decode_moments(logits, moments, [10.0, 20.0], how=Decoding(best_first=False))
    half = decode_moments(
        logits.bfloat16(), moments.bfloat16(), [10.0, 20.0], how=Decoding(best_first=False)
    )
    for ours, theirs in zip(half, full, strict=True):
        np.testing.assert_allclose(rows(ours), rows(theirs), atol=0.15)
