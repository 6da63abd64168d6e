"""Sizes of a model of ours that is to be published, and what a published format cannot hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpokit.errors import UsageError
from tpokit.interfaces import Connector
from tpokit_videochat2.connectors.options import QFormerOptions
from tpokit_videochat2.weights.sizes import (
    SCALE,
    LlmSizes,
    LoraSizes,
    QFormerSizes,
    VisionSizes,
)

if TYPE_CHECKING:
    from tpokit_videochat2.backbone import VideoChat2Backbone

_WHAT = "the format videochat_tpo"
_BLOCK_LAYERS = 7


@dataclass(frozen=True)
class ModelSizes:
    """Of all parts; ``lora``: ``None`` without adapters."""

    vision: VisionSizes
    connector: QFormerSizes
    llm: LlmSizes
    lora: LoraSizes | None = None
