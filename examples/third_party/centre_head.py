"""A head of one file: a box from centre and size, for the same task as the shipped region head.

Use: tpokit train examples/quickstart.yaml --registry examples/third_party/registry.yaml
     --set "heads.region={plugin: centre}" --set "loss.region={smooth_l1: 1.0}"
"""

import torch
from torch import Tensor, nn

import tpokit


@tpokit.hookimpl
def tpokit_heads() -> list[tpokit.HeadSpec]:
    """Offer the head."""
    spec = {"name": "centre", "task": "region", "terms": ("smooth_l1",), "factory": ":CentreHead"}
    return [tpokit.HeadSpec(**spec, summary="a box as centre and size, through a sigmoid")]


class CentreHead(tpokit.TaskHead):
    """Boxes by one linear layer: centre and size, each in [0, 1]."""

    task = "region"
    tokens = tpokit.TaskTokens(trigger="<find>", slots=("<found>",))
    terms = ("smooth_l1",)

    def __init__(self, options: tpokit.Options, host: tpokit.Host) -> None:
        super().__init__(options, host)
        self.network = nn.Linear(host.hidden, 4)

    def read_target(self, annotation: list[float], seen: tpokit.Seen) -> list[float]:
        """Four fractions x0, y0, x1, y1 to centre and size."""
        x0, y0, x1, y1 = annotation
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise tpokit.DataError(f"{seen.where}: {annotation} is not x0 < x1, y0 < y1 in [0, 1]")
        return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]

    def forward(self, slots: Tensor, context: tpokit.Context) -> Tensor:
        """Slots ``[n, 1, d]`` to boxes ``[n, 4]``."""
        return self.network(slots[:, 0]).float().sigmoid()

    def loss(self, prediction: Tensor, targets: Tensor) -> dict[str, tpokit.LossTerm]:
        """Smooth L1, summed over calls."""
        value = nn.functional.smooth_l1_loss(prediction, targets, beta=0.1, reduction="sum")
        return {"smooth_l1": tpokit.LossTerm(value, float(len(targets)))}

    def decode(self, prediction: Tensor, media: list[tpokit.MediaInfo]) -> list[tpokit.Box]:
        """Boxes in pixels."""
        size = torch.tensor([[m.width, m.height] for m in media]).repeat(1, 2)
        centre, extent = prediction.cpu()[:, :2], prediction.cpu()[:, 2:]
        corners = torch.cat([centre - extent / 2, centre + extent / 2], 1) * size
        return [tpokit.Box(*row) for row in corners.tolist()]
