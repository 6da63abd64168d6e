"""The MLP of LLaVA: every patch becomes a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

import tpokit
from tpokit.interfaces import Connector, ConnectorHost, FeatureNeed, Instruction
from tpokit_videochat2.connectors.layers import Float32LayerNorm, projector
from tpokit_videochat2.connectors.options import MlpOptions


class MlpConnector(Connector):
    """One or two linear layers, each patch by itself.

    Source: arXiv 2310.03744, section 3.2; haotian-liu/LLaVA, multimodal_projector/builder.py
    (``linear``, ``mlp2x_gelu``; our ``mlp.0`` and ``mlp.2`` are its ``0`` and ``2``). We differ: a
    LayerNorm may stand in front, and leading tokens may be kept.
    """

    Options = MlpOptions

    def __init__(self, options: tpokit.Options, host: ConnectorHost) -> None:
        super().__init__(options, host)
        assert isinstance(options, MlpOptions)
        width = host.vision * len(options.vision_layers)
        self._first = 0 if options.leading else host.leading
        self.norm: nn.Module = Float32LayerNorm(width) if options.norm else nn.Identity()
        if options.layers == 2:
            self.mlp = projector(width, options.hidden, host.hidden)
        else:
            self.mlp = nn.Sequential(nn.Linear(width, host.hidden))

    @classmethod
    def feature_need(cls, options: tpokit.Options) -> FeatureNeed:
        """The layers of the option."""
        return FeatureNeed(cast(MlpOptions, options).vision_layers)

    @classmethod
    def small_options(cls, options: tpokit.Options) -> MlpOptions:
        """As wide as the LLM."""
        return cast(MlpOptions, options).model_copy(update={"hidden": None})

    @classmethod
    def tokens(cls, options: tpokit.Options, host: ConnectorHost, frames: int) -> int:
        """One for each patch, and for each leading token if they are kept."""
        rows, columns = host.grid
        leading = host.leading if cast(MlpOptions, options).leading else 0
        return frames * (leading + rows * columns)

    def forward(
        self, features: Tensor, frames: Sequence[int], instruction: Instruction | None = None
    ) -> Tensor:
        """Tokens in the order frame, row, column; see `Connector.forward`."""
        patches = features[:, self._first :].flatten(0, 1)  # [tokens, c]
        tokens: Tensor = self.mlp(self.norm(patches))
        return tokens
