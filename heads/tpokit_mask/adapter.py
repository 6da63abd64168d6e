"""The mask adapter: hidden states of slots to prompt tokens of SAM 2.

Sources: arXiv 2412.19326 (one linear layer); OpenGVLab/TPO, modeling_videochate.py: track_embed
(two layers, three tokens from one slot: two corners of a box and one that ends the prompt).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tpokit.layers import Float32Linear

AdapterKind = Literal["linear", "mlp"]


class MaskAdapter(nn.Module):
    """Prompt tokens from the slots of each object.

    Legend: b objects, k slots of each, c width of the LLM, n prompt tokens, d width of SAM 2.

    Attributes:
        tokens: n; k with ``linear``, 3 k with ``mlp`` by default.
        width: d.
    """

    def __init__(
        self, hidden: int, width: int, slots: int, kind: AdapterKind, tokens_per_slot: int = 3
    ) -> None:
        """Build the layers.

        Args:
            hidden: c.
            width: d.
            slots: k.
            kind: ``linear``: one token of each slot, by a linear layer of its own. ``mlp``:
                ``tokens_per_slot`` tokens of each slot, c -> c -> ReLU -> tokens, the same layers
                for all slots.
            tokens_per_slot: With ``mlp``; released: 3.
        """
        super().__init__()
        self.width = width
        self.tokens = slots if kind == "linear" else slots * tokens_per_slot
        layers: list[nn.Module]
        if kind == "linear":
            layers = [Float32Linear(hidden, width) for _ in range(slots)]
        else:
            last = Float32Linear(hidden, tokens_per_slot * width)
            layers = [nn.Sequential(Float32Linear(hidden, hidden), nn.ReLU(), last)]
        self.layers = nn.ModuleList(layers)

    def forward(self, slots: Tensor) -> Tensor:
        """``[b, k, c]`` to ``[b, n, d]`` float32; ``b = 0`` is legal.

        Computed in float32, also under autocast: prompt tokens hold places. The tokens of a slot
        follow each other.
        """
        if len(self.layers) == 1:
            found: Tensor = self.layers[0](slots)
        else:
            each = zip(self.layers, slots.unbind(1), strict=True)
            found = torch.stack([layer(slot) for layer, slot in each], 1)
        return found.reshape(len(slots), self.tokens, self.width)
