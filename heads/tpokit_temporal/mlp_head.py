"""A plain temporal head: one moment from the hidden state of the slot, nothing else.

Paper: arXiv 2412.19326, ablation "simple temporal head instead of CG-DETR". It is here to compare
with: it sees of the video only what the LLM has put into the slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpokit.interfaces import Host, TaskHead
from tpokit.types import Context, LossTerm, MediaInfo, Seen
from tpokit_temporal.annotations import TemporalTarget, read_annotation, require_video
from tpokit_temporal.head import TOKENS
from tpokit_temporal.matching import moment_giou
from tpokit_temporal.options import MlpOptions
from tpokit_temporal.results import Moments, expected_moments
from tpokit_temporal.windows import decode_moments


class TemporalMlpHead(TaskHead):
    """One moment for each call; of several annotated ones the first is learnt.

    Attributes:
        network: Hidden state to centre and width, d -> hidden -> 2, through a sigmoid.
    """

    task = "temporal"
    tokens = TOKENS
    terms = ("moment_l1", "moment_giou")
    Options = MlpOptions
    options: MlpOptions

    def __init__(self, options: MlpOptions, host: Host) -> None:
        """Build the MLP; see `TaskHead`."""
        super().__init__(options, host)
        hidden = options.hidden or host.hidden
        self.network = nn.Sequential(
            nn.Linear(host.hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
        )

    def read_target(self, annotation: Any, seen: Seen) -> TemporalTarget:
        """As of the temporal head."""
        duration_s = require_video(seen)
        return read_annotation(annotation, None, duration_s, seen.where)

    def collate(self, targets: Sequence[TemporalTarget]) -> Tensor:
        """First moment of each call, ``[n, 2]`` centre and width as fractions of the video."""
        return torch.tensor([target.moments[0] for target in targets]).reshape(-1, 2)

    def forward(self, slots: Tensor, context: Context | None = None) -> Tensor:
        """``[n, 1, d]`` to ``[n, 2]``: centre and width in (0, 1), float32.

        n: calls of the whole batch, d: width of the backbone.
        """
        found: Tensor = self.network(slots.flatten(1).to(self.network[0].weight.dtype))
        return found.float().sigmoid()

    def loss(self, prediction: Tensor, targets: Tensor) -> dict[str, LossTerm]:
        """Mean difference of centre and width, and 1 - GIoU, over n calls."""
        count = float(len(targets))
        return {
            "moment_l1": LossTerm((prediction - targets).abs().mean(-1).sum(), count),
            "moment_giou": LossTerm((1 - moment_giou(prediction, targets)).sum(), count),
        }

    def decode(self, prediction: Tensor, media: Sequence[MediaInfo]) -> list[Moments]:
        """The moment in seconds; no saliency."""
        moments = prediction.detach()[:, None]
        certain = torch.tensor([40.0, -40.0], device=moments.device).expand(len(moments), 1, 2)
        return decode_moments(certain, moments, [info.duration_s for info in media])

    def result_of(self, target: TemporalTarget, media: MediaInfo) -> Moments:
        """The annotated moments and saliency."""
        return expected_moments(target, media)
