"""Stored training runs of the released CG-DETR, as our types; see tests/golden/cg_detr."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tpokit_temporal.detector.outputs import Alignment, DetectorOutput, Negative
from tpokit_temporal.options import TemporalOptions
from tpokit_temporal.targets import TemporalTargets

GOLDEN = Path(__file__).parents[2] / "golden" / "cg_detr"
TRAINING_RUNS = (
    "tpo_train_b3",
    "tpo_train_b3_full_text",
    "original_hl_b4_one_false_negative",
    "original_charades_b2",
    "original_train_b1",
)


@dataclass(frozen=True)
class Run:
    """A stored run.

    Attributes:
        tensors: By stored name.
        facts: The JSON beside them.
        output: What the detector gave.
        targets: What was right.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    output: DetectorOutput
    targets: TemporalTargets

    def stored_loss(self, name: str) -> float:
        """A loss by its released name."""
        return self.tensors[f"loss.{name}"].item()

    def saliency_part(self, name: str) -> float:
        """A part of the saliency loss by its stored name."""
        return self.tensors[f"loss_term.saliency.{name}"].item()


def load_run(name: str) -> Run:
    """A stored training run."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    return Run(tensors, facts, _output(tensors), _targets(tensors))


def _output(tensors: dict[str, Tensor]) -> DetectorOutput:
    layers = sum(name.endswith("pred_logits") for name in tensors)
    before = [f"output.aux_outputs.{layer}." for layer in range(layers - 1)] + ["output."]
    real = tensors["output.real_neg_mask"]
    return DetectorOutput(
        logits=torch.stack([tensors[f"{layer}pred_logits"] for layer in before]),
        moments=torch.stack([tensors[f"{layer}pred_spans"] for layer in before]),
        saliency=tensors["output.saliency_scores"],
        attention=tensors["output.t2vattnvalues"],
        text_attention=tensors["output.cate_attn_weights"],
        clip_mask=tensors["output.video_mask"].bool(),
        text_mask=tensors["output.txt_mask"].bool(),
        dummies=tensors["output.dummy_tokens"],
        global_tokens=tensors["output.global_rep_tokens"],
        negative=Negative(
            _all_rows(tensors["output.saliency_scores_neg"], real),
            _all_rows(tensors["output.t2vattnvalues_neg"], real),
            real,
        )
        if real.any()
        else None,
        alignment=Alignment(
            moment=tensors["output.memory_moment"],
            other=tensors["output.nmmemory_moment"],
            sentence=tensors["output.sentence_txt"],
            dummy_sentence=tensors["output.sentence_dummy"],
            moment_similarity=tensors["output.moment2txt_similarity"],
            clips=tensors["output.src_vid"],
            relevant=tensors["output.moment_mask"],
        ),
    )


def _all_rows(stored: Tensor, real: Tensor) -> Tensor:
    """The release has rows for real negatives only; in ours the others hold anything."""
    rows = torch.full((len(real), stored.shape[1]), 0.5)
    rows[real] = stored
    return rows


def _targets(tensors: dict[str, Tensor]) -> TemporalTargets:
    saliency = tensors["target.saliency_all_labels"]
    moments = [tensors[f"target.span_labels.{row}.spans"] for row in range(len(saliency))]
    there = [torch.ones(len(of_sample), dtype=torch.bool) for of_sample in moments]
    clip_mask, is_real = tensors["input.src_vid_mask"].bool(), tensors["output.real_neg_mask"]
    better, worse = tensors["target.saliency_pos_labels"], tensors["target.saliency_neg_labels"]
    return TemporalTargets(
        moments=pad_sequence(moments, batch_first=True),
        moment_mask=pad_sequence(there, batch_first=True),
        saliency=saliency,
        clip_mask=clip_mask,
        pairs=torch.stack([better, worse], -1),
        is_real=is_real,
        moment_counts=tuple(map(len, moments)),
        clip_count=int(clip_mask.sum()),
        relevant_count=int((saliency > 0).sum()),
        real_count=int(is_real.sum()),
    )


def options_of(config: dict, **changes) -> TemporalOptions:
    """Our options from the settings stored beside a run."""
    return TemporalOptions(
        width=config["hidden_dim"],
        feed_forward=config["dim_feedforward"],
        heads=config["nheads"],
        encoder_layers=config["enc_layers"],
        decoder_layers=config["dec_layers"],
        text_to_clips_layers=config["t2v_layers"],
        dummy_layers=config["dummy_layers"],
        sentence_layers=config["sent_layers"],
        moment_layers=config["moment_layers"],
        projection_layers=config["n_input_proj"],
        queries=config["num_queries"],
        dummies=config["num_dummies"],
        global_tokens=config["total_prompts"],
        global_tokens_used=config["num_prompts"],
        **{"released_quirks": True, **changes},
    )
