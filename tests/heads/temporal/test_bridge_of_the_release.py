"""The hidden state of a temporal slot as one more word of CG-DETR, and the loss that flows back.

Vectors of the released code at a tiny width: tests/golden/videochat2, bridge_temporal.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.heads.temporal.released_runs import options_of
from tpokit_temporal.detector.network import Detector, _end_with
from tpokit_temporal.detector.outputs import DetectorOutput
from tpokit_temporal.losses.terms import LossSettings, temporal_terms
from tpokit_temporal.losses.weights import RELEASED_WEIGHTS
from tpokit_temporal.released_names import from_released
from tpokit_temporal.targets import TemporalTargets

GOLDEN = Path(__file__).parents[2] / "golden" / "videochat2"
FACTS = json.loads((GOLDEN / "bridge_temporal.json").read_text())
STORED = load_file(GOLDEN / "bridge_temporal.safetensors")
TOLERANCE = FACTS["tolerance"]
TERM_OF = {  # released name to ours, whose sum it is
    "loss_span": ["moment_l1"],
    "loss_giou": ["moment_giou"],
    "loss_label": ["label"],
    "loss_span_0": ["aux_moment_l1"],
    "loss_giou_0": ["aux_moment_giou"],
    "loss_label_0": ["aux_label"],
    "loss_distill": ["distill"],
    "loss_orthogonal_dummy": ["orthogonal_dummy"],
    "loss_ms_align": ["align_sentence", "align_dummy", "align_clips"],
}


@pytest.fixture(scope="module")
def detector() -> Detector:
    config = FACTS["config"]
    options = options_of(config)
    detector = Detector(options, config["video_dim_with_tef"], config["text_dim"]).eval()
    weights = {
        name.removeprefix("weights."): tensor
        for name, tensor in STORED.items()
        if name.startswith("weights.cg_model.")
    }
    detector.load_state_dict(from_released(weights, options))  # strict
    return detector


def detect(detector, token, **training) -> DetectorOutput:
    return detector(
        STORED["src_vid"],
        STORED["src_vid_mask"] > 0,
        STORED["src_txt"],
        STORED["src_txt_mask"] > 0,
        task_token=token[:, 0],
        **training,
    )


def targets_of(real: bool) -> TemporalTargets:
    clip_mask = STORED["src_vid_mask"] > 0
    relevant = STORED["target.relevant_clips"]
    count = len(relevant)
    return TemporalTargets(
        moments=STORED["target.spans_cxw"][:, None],
        moment_mask=torch.ones(count, 1, dtype=torch.bool),
        saliency=relevant,
        clip_mask=clip_mask,
        pairs=torch.stack([STORED["target.saliency_pos"], STORED["target.saliency_neg"]], -1),
        is_real=torch.full((count,), real),
        moment_counts=(1,) * count,
        clip_count=int(clip_mask.sum()),
        relevant_count=int(relevant.sum()),
        real_count=count * real,
    )


def test_the_hidden_state_stands_right_behind_the_last_word():
    words, mask = _end_with(STORED["src_txt"], STORED["src_txt_mask"] > 0, STORED["prompt_token"])
    expected = STORED["text_mask_after_insertion"] > 0
    assert torch.equal(mask, expected)
    assert torch.equal(words[mask], STORED["text_after_insertion"][expected])


def test_moments_and_saliency_are_those_of_the_release(detector):
    with torch.no_grad():
        output = detect(detector, STORED["prompt_token"])
    for found, name in (
        (output.logits[-1], "pred_logits"),
        (output.moments[-1], "pred_spans"),
        (output.saliency, "saliency_scores"),
    ):
        torch.testing.assert_close(found, STORED[f"infer.{name}"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", ["no_pairs", "pairs"])
def test_losses_and_the_gradient_of_the_hidden_state_are_those_of_the_release(detector, case):
    targets = targets_of(real=case == "pairs")
    token = STORED["prompt_token"].clone().requires_grad_()
    output = detect(
        detector, token, relevant=STORED["target.relevant_clips"], negatives=targets.is_real
    )
    found = temporal_terms(output, targets, LossSettings(released_quirks=True))
    terms = {name: term.sum / max(term.count, 1) for name, term in found.items()}
    for released, ours in TERM_OF.items():
        expected = STORED[f"{case}.{released}"].item()
        assert sum(terms[name].item() for name in ours) == pytest.approx(expected, rel=1e-4)
    weights = RELEASED_WEIGHTS["videochat_tpo"]
    total = 0.05 * sum(weights[name] * term for name, term in terms.items())
    assert total.item() == pytest.approx(STORED[f"{case}.loss_weighted_x0.05"].item(), rel=1e-4)
    total.backward()
    expected = STORED[f"{case}.grad.prompt_token"]
    assert (token.grad - expected).abs().max() <= 1e-3 * expected.abs().max()
