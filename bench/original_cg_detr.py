"""The released CG-DETR itself, from a checkout of wjun0830/CGDETR, for `temporal_head.py`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tpokit_temporal.options import TemporalOptions
from tpokit_temporal.targets import TemporalTargets


def _settings(options: TemporalOptions, clip_width: int, word_width: int, device: str) -> Any:
    """What the released functions read from their command line."""
    return SimpleNamespace(
        dset_name="charadesSTA",
        device=device,
        a_feat_dir=None,
        a_feat_dim=None,
        max_q_l=-1,
        max_v_l=-1,
        v_feat_dim=clip_width,
        t_feat_dim=word_width,
        position_embedding="sine",
        enc_layers=options.encoder_layers,
        dec_layers=options.decoder_layers,
        t2v_layers=options.text_to_clips_layers,
        sent_layers=options.sentence_layers,
        moment_layers=options.moment_layers,
        dummy_layers=options.dummy_layers,
        dim_feedforward=options.feed_forward,
        hidden_dim=options.width,
        input_dropout=options.input_dropout,
        dropout=options.dropout,
        use_txt_pos=False,
        nheads=options.heads,
        num_queries=options.queries,
        num_dummies=options.dummies,
        total_prompts=options.global_tokens,
        num_prompts=options.global_tokens_used,
        pre_norm=False,
        n_input_proj=options.projection_layers,
        contrastive_hdim=64,
        temperature=0.07,
        saliency_margin=0.2,
        aux_loss=True,
        span_loss_type="l1",
        contrastive_align_loss=False,
        set_cost_span=10,
        set_cost_giou=1,
        set_cost_class=4,
        lw_saliency=4,
        lw_wattn=1.0,
        lw_ms_align=1.0,
        lw_distill=1.0,
        span_loss_coef=10,
        giou_loss_coef=1,
        label_loss_coef=4,
        eos_coef=0.1,
        contrastive_align_loss_coef=0.02,
    )


class OriginalCgDetr(nn.Module):
    """Network and losses of the release.

    Attributes:
        network: ``CGDETR``.
    """

    def __init__(
        self,
        checkout: Path,
        options: TemporalOptions,
        widths: tuple[int, int],
        device: str,
    ) -> None:
        """Import and build it; on a CPU the release needs ``Tensor.cuda`` to do nothing."""
        super().__init__()
        sys.path.insert(0, str(checkout))
        from cg_detr.model import build_model

        if device == "cpu":
            torch.Tensor.cuda = lambda tensor, *_, **__: tensor
        self.network, self.criterion = build_model(_settings(options, *widths, device))
        self.to(device)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Parameters by released name; those that nothing depends on stay as they are."""
        self.network.load_state_dict(tensors, strict=False)

    def forward(
        self, *inputs: Tensor, relevant: Tensor | None, videos: list[str] | None
    ) -> dict[str, Any]:
        """Detect."""
        clips, clip_mask, words, word_mask = inputs
        targets = None if relevant is None else {"relevant_clips": relevant}
        return self.network(
            words, word_mask.float(), clips, clip_mask.float(), videos, None, targets=targets
        )

    def loss(self, found: dict[str, Any], wanted: TemporalTargets) -> Tensor:
        """The weighted sum of all losses."""
        spans = [{"spans": wanted.moments[row, :n]} for row, n in enumerate(wanted.moment_counts)]
        targets = {
            "span_labels": spans,
            "saliency_all_labels": wanted.saliency,
            "relevant_clips": wanted.saliency,
            "saliency_pos_labels": wanted.pairs[:, :, 0],
            "saliency_neg_labels": wanted.pairs[:, :, 1],
        }
        losses, weights = self.criterion(found, targets), self.criterion.weight_dict
        return sum(losses[name] * weights[name] for name in losses if name in weights)
