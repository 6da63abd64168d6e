"""The detector of the temporal head: parity with the release."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.heads.temporal.released_runs import options_of
from tpokit_temporal.detector.network import Detector
from tpokit_temporal.detector.outputs import DetectorOutput
from tpokit_temporal.detector.positions import clip_positions, endpoint_channels
from tpokit_temporal.released_names import from_released

GOLDEN = Path(__file__).parents[2] / "golden" / "cg_detr"
LARGE_GOLDEN = Path(__file__).parents[4] / "shared" / "golden" / "cg_detr"
RUNS = (
    "tpo_train_b3",
    "tpo_train_b3_full_text",
    "original_hl_b4_one_false_negative",
    "original_charades_b2",
    "original_train_b1",
    "tpo_infer_b2",
    "tpo_infer_b1_bf16",
)
OUTPUTS = {
    "saliency": "saliency_scores",
    "attention": "t2vattnvalues",
    "text_attention": "cate_attn_weights",
    "clip_mask": "video_mask",
    "text_mask": "txt_mask",
    "dummies": "dummy_tokens",
    "global_tokens": "global_rep_tokens",
}
ALIGNMENT = {
    "moment": "memory_moment",
    "other": "nmmemory_moment",
    "sentence": "sentence_txt",
    "dummy_sentence": "sentence_dummy",
    "relevant": "moment_mask",
    "clips": "src_vid",
}


def stored(name: str, folder: Path = GOLDEN) -> tuple[dict[str, Tensor], dict]:
    facts = json.loads((folder / f"{name}.json").read_text())
    return load_file(folder / f"{name}.safetensors"), facts


def run(tensors: dict[str, Tensor], facts: dict, **changes) -> DetectorOutput:
    """What our detector gives with the stored weights and inputs."""
    config = facts["config"]
    options = options_of(config, **changes)
    weights = {name[6:]: value for name, value in tensors.items() if name.startswith("param.")}
    detector = Detector(options, config["v_feat_dim"], config["t_feat_dim"]).eval()
    detector.load_state_dict(from_released(weights or by_recipe(facts), options))
    token = tensors.get("input.prompt_token")
    real = tensors.get("output.real_neg_mask")
    with torch.no_grad():
        return detector.to(tensors["input.src_vid"].dtype)(
            tensors["input.src_vid"],
            tensors["input.src_vid_mask"] > 0,
            tensors["input.src_txt"],
            tensors["input.src_txt_mask"] > 0,
            task_token=None if token is None else token[:, 0],
            relevant=tensors.get("target.relevant_clips"),
            negatives=real,
        )


def by_recipe(facts: dict) -> dict[str, Tensor]:
    """Weights that are too large to be kept: each number is a hash of its place."""
    weights = {}
    for index, (name, shape) in enumerate(facts["parameter_order"]):
        place = np.arange(np.prod(shape), dtype=np.uint64)
        weights[name] = torch.from_numpy(
            (_numbers(name, len(shape), shape[-1], _hash(place, index))).astype(np.float32)
        ).reshape(shape)
    return weights


def _hash(place: np.ndarray, index: int) -> np.ndarray:
    mask = np.uint64(0xFFFFFFFF)
    value = place * np.uint64(2654435761) + np.uint64((index + 1) * 2246822519 % 2**32) & mask
    value ^= value >> np.uint64(15)
    value = value * np.uint64(2246822519) & mask
    value ^= value >> np.uint64(13)
    value = value * np.uint64(3266489917) & mask
    value ^= value >> np.uint64(16)
    return value.astype(np.float64) / 2**32 - 0.5


def _numbers(name: str, rank: int, width: int, random: np.ndarray) -> np.ndarray:
    if name.endswith("activation.weight"):
        return 0.25 + 0.1 * random
    if rank == 2 and name.endswith("weight"):
        return random * np.sqrt(12 / width)
    if rank == 1 and name.endswith((".weight", "bias")):
        numbers = 1 + 0.2 * random if name.endswith(".weight") else 0.2 * random
        return numbers * (0.2 if "mcls_encoder" in name and "norm2" in name else 1)
    return 2 * random


def assert_met(found: DetectorOutput, tensors: dict[str, Tensor], facts: dict) -> None:
    """Every stored output, at the stated tolerance."""
    limits = facts["tolerances"]["outputs"]

    def check(ours: Tensor, name: str) -> None:
        theirs = tensors[f"output.{name}"]
        torch.testing.assert_close(ours.float(), theirs.float(), **limits, msg=lambda m: name + m)

    for ours, theirs in OUTPUTS.items():
        check(getattr(found, ours), theirs)
    layers = [f"aux_outputs.{layer}." for layer in range(len(found.logits) - 1)] + [""]
    for layer, prefix in enumerate(layers):
        check(found.logits[layer], f"{prefix}pred_logits")
        check(found.moments[layer], f"{prefix}pred_spans")
    if found.negative is not None:
        check(found.negative.saliency[found.negative.is_real], "saliency_scores_neg")
        check(found.negative.attention[found.negative.is_real], "t2vattnvalues_neg")
    if found.alignment is not None:
        for ours, theirs in ALIGNMENT.items():
            check(getattr(found.alignment, ours), theirs)
        inside = found.alignment.relevant.unsqueeze(-1)
        tensors["output.similarity"] = tensors["output.moment2txt_similarity"].where(
            inside, tensors["output.nmoment2txt_similarity"]
        )
        check(found.alignment.moment_similarity, "similarity")


@pytest.mark.parametrize("name", RUNS)
def test_every_output_of_the_release_is_met(name):
    tensors, facts = stored(name)
    found = run(tensors, facts)
    assert_met(found, tensors, facts)
    left_out = {"aux_outputs", "src_txt_mask_neg", "real_neg_mask", "similarity"}
    compared = {*OUTPUTS.values(), *ALIGNMENT.values(), "pred_logits", "pred_spans"}
    compared |= {"moment2txt_similarity", "nmoment2txt_similarity"}
    compared |= {"saliency_scores_neg", "t2vattnvalues_neg"}
    names = {key.split(".")[1] for key in tensors if key.startswith("output.")}
    assert names <= compared | left_out


@pytest.mark.skipif(
    not (LARGE_GOLDEN / "tpo_fullsize_infer_b2.safetensors").exists(),
    reason="the stored run of released size is too large for the repository",
)
def test_every_output_of_the_release_is_met_at_its_size():
    tensors, facts = stored("tpo_fullsize_infer_b2", LARGE_GOLDEN)
    assert_met(run(tensors, facts), tensors, facts)


def test_only_where_lengths_differ_does_the_tiled_mask_matter():
    for name, differs in (("tpo_train_b3", True), ("tpo_train_b3_full_text", False)):
        tensors, facts = stored(name)
        ours = run(tensors, facts, released_quirks=False).saliency
        apart = (ours - tensors["output.saliency_scores"]).abs().max().item()
        assert (apart > 0.01) == differs


def test_places_of_clips_are_those_of_the_release():
    tensors, facts = stored("tpo_train_b3")
    found = clip_positions(tensors["input.src_vid_mask"] > 0, facts["config"]["hidden_dim"])
    torch.testing.assert_close(found, tensors["inter.position_embed.0"], rtol=0, atol=1e-5)


def test_endpoint_channels_are_the_last_two_of_the_stored_clips():
    tensors, _ = stored("tpo_train_b3")
    found = endpoint_channels(tensors["input.src_vid_mask"] > 0)
    torch.testing.assert_close(found, tensors["input.src_vid"][..., -2:], rtol=0, atol=1e-6)
