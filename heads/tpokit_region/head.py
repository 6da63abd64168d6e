"""The region head: one box from the hidden state of each region slot.

Paper: arXiv 2412.19326 section 3 (region head: a 2-layer MLP, MSE). Code: OpenGVLab/TPO (December
2024), modeling_videochate.py: ``loc_decoder``, ``loc_encoder``, ``box_loss``. We differ:

- by default a box with swapped corners costs 0 in GIoU and counts; the release leaves it out of the
  mean and adds a constant 2 when none is left (option ``giou_over``);
- fresh weights start from a box in the middle of the image, so that GIoU has a gradient at once;
- coordinates are computed in float32 also with bf16 weights, whose steps are 2 pixels of 640.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpokit.answers import Box
from tpokit.data.boxes import Corners, read_box
from tpokit.errors import TpokitError
from tpokit.geometry import aligned_giou, centre_to_corners, is_proper, order_corners, to_pixels
from tpokit.interfaces import Host, TaskHead
from tpokit.layers import Float32Linear
from tpokit.tokens import TaskTokens
from tpokit.types import Context, LossTerm, MediaInfo, Seen
from tpokit_region.options import RegionOptions

_FIRST_BOX = (0.25, 0.25, 0.75, 0.75)


class RegionHead(TaskHead):
    """One box for each call.

    A target or given value is four fractions x0, y0, x1, y1 of the image, upper left and lower
    right corner (see `tpokit.data.boxes.read_box`).

    Attributes:
        box_decoder: Hidden state to box, d -> hidden -> 4; the release's ``loc_decoder``.
        box_encoder: Given box to embedding, 4 -> hidden -> d; the release's ``loc_encoder``. Not
            there without the option ``given``.
    """

    task = "region"
    tokens = TaskTokens(trigger="<box_begin>", slots=("<boxes>",), given="<region_box>")
    terms = ("l1", "mse", "giou")
    Options = RegionOptions
    options: RegionOptions

    def __init__(self, options: RegionOptions, host: Host) -> None:
        """Build the two MLPs; see `TaskHead`."""
        super().__init__(options, host)
        width = host.hidden
        hidden = options.hidden or max(width // 2, 1)
        last = Float32Linear(hidden, 4)
        first_box = _FIRST_BOX if options.format == "corners" else (0.0, 0.0, 0.0, 0.0)
        with torch.no_grad():
            last.bias.copy_(torch.tensor(first_box))  # 0 is a half behind a sigmoid: the same box
        self.box_decoder = nn.Sequential(Float32Linear(width, hidden), nn.ReLU(), last)
        if options.given:
            self.box_encoder = nn.Sequential(
                Float32Linear(4, hidden), nn.ReLU(), Float32Linear(hidden, width)
            )
        else:
            self.tokens = TaskTokens(self.tokens.trigger, self.tokens.slots)

    def read_target(self, annotation: Any, seen: Seen) -> Corners:
        """Four fractions in [0, 1]; see `tpokit.data.boxes.read_box`."""
        return read_box(annotation, seen.where)

    def read_given(self, annotation: Any, seen: Seen) -> Corners:
        """The same for a box in a question."""
        return (
            read_box(annotation, seen.where)
            if self.options.given
            else super().read_given(annotation, seen)
        )

    def encode_given(self, given: Tensor) -> Tensor:
        """Boxes ``[m, 4]`` to embeddings ``[m, d]``, float32."""
        embeddings: Tensor = self.box_encoder(given)
        return embeddings

    def forward(self, slots: Tensor, context: Context | None = None) -> Tensor:
        """Predict boxes: ``[n, 1, d]`` to ``[n, 4]``.

        n: region calls of the whole batch, in reading order; d: width of the backbone. A box is two
        corners (x0, y0, x1, y1), float32, as fractions of the image. In the format ``corners`` they
        may leave the image and may be swapped.
        """
        boxes = self.box_decoder(slots.flatten(1))
        return boxes if self.options.format == "corners" else centre_to_corners(boxes.sigmoid())

    def loss(self, prediction: Tensor, targets: Tensor) -> dict[str, LossTerm]:
        """Unweighted terms over n boxes; prediction and targets are ``[n, 4]`` as in `forward`.

        ``l1`` and ``mse``: mean over the four numbers of a box. ``giou``: 1 - GIoU.
        """
        count = float(len(targets))
        error = prediction - targets
        return {
            "l1": LossTerm(error.abs().mean(-1).sum(), count),
            "mse": LossTerm(error.square().mean(-1).sum(), count),
            "giou": LossTerm(self._giou_sum(prediction, targets), count),
        }

    def _giou_sum(self, prediction: Tensor, targets: Tensor) -> Tensor:
        proper = is_proper(prediction)
        cost = torch.where(proper, 1 - aligned_giou(prediction, targets), 0.0)
        if self.options.giou_over == "all":
            return cost.sum()
        proper_count = proper.sum()  # stays on its device: no branch on it, so no waiting
        mean = cost.sum() / proper_count.clamp(min=1)
        return len(targets) * torch.where(proper_count > 0, mean, mean + 2.0)

    def decode(self, prediction: Tensor, media: Sequence[MediaInfo]) -> list[Box]:
        """Boxes ``[n, 4]`` in pixels of their media, corners put in order and clamped to the image.

        Raises:
            TpokitError: A box is not finite.
        """
        boxes = prediction.detach().float().cpu()
        if not bool(boxes.isfinite().all()):
            raise TpokitError(
                "the region head gave a box that is not finite: its weights or its input are broken"
            )
        sizes_px = torch.tensor([(info.width, info.height) for info in media]).reshape(-1, 2)
        boxes_px = to_pixels(order_corners(boxes).clamp(0.0, 1.0), sizes_px)
        return [Box(*corners) for corners in boxes_px.tolist()]
