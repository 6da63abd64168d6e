"""VideoChat2: the backbone, connectors, the data source VideoChat2-IT, and published weights."""

from __future__ import annotations

from collections.abc import Sequence

import tpokit

_INSTALL = "pip install tpokit"


@tpokit.hookimpl
def tpokit_backbones() -> Sequence[tpokit.BackboneSpec]:
    """Offer VideoChat2."""
    return [
        tpokit.BackboneSpec(
            name="videochat2",
            factory="tpokit_videochat2.backbone:VideoChat2Backbone",
            options="tpokit_videochat2.options:VideoChat2Options",
            summary="VideoChat2 with any causal LM: images and videos, 96 tokens each",
            requires=("transformers>=5.17,<5.24", "torchvision>=0.26", "accelerate>=1.5"),
            install=_INSTALL,
            connectors=True,
        )
    ]


@tpokit.hookimpl
def tpokit_connectors() -> Sequence[tpokit.ConnectorSpec]:
    """Offer the connectors."""
    return [
        tpokit.ConnectorSpec(
            name="mlp",
            factory="tpokit_videochat2.connectors.mlp:MlpConnector",
            options="tpokit_videochat2.connectors.options:MlpOptions",
            summary="one token for each patch, by an MLP (LLaVA)",
        ),
        tpokit.ConnectorSpec(
            name="pool_adapter",
            factory="tpokit_videochat2.connectors.pool_adapter:PoolAdapter",
            options="tpokit_videochat2.connectors.options:PoolAdapterOptions",
            summary="patches averaged to a grid, then an MLP (InfMLLM)",
        ),
        tpokit.ConnectorSpec(
            name="qformer",
            factory="tpokit_videochat2.connectors.qformer:QFormerConnector",
            options="tpokit_videochat2.connectors.options:QFormerOptions",
            summary="learnt queries look at all patches of a clip (VideoChat2)",
            requires=("transformers>=5.17,<5.24",),
            install=_INSTALL,
        ),
    ]


@tpokit.hookimpl
def tpokit_sources() -> Sequence[tpokit.SourceSpec]:
    """Offer the data source."""
    return [
        tpokit.SourceSpec(
            name="videochat2_it",
            factory="tpokit_videochat2.instruction_source:VideoChat2Instructions",
            options="tpokit_videochat2.instruction_options:InstructionOptions",
            summary="VideoChat2-IT as published: instructions about images and videos",
        )
    ]


@tpokit.hookimpl
def tpokit_weights() -> Sequence[tpokit.WeightsSpec]:
    """Offer rules for published weights of the family."""
    return [
        tpokit.WeightsSpec(
            name="videochat_tpo",
            format="videochat_tpo",
            of="backbone",
            plugin="videochat2",
            factory="tpokit_videochat2.weights.released:VideoChatTpoWeights",
            summary="VideoChat-TPO as published",
        ),
        tpokit.WeightsSpec(
            name="videochat2",
            format="videochat2",
            of="backbone",
            plugin="videochat2",
            factory="tpokit_videochat2.weights.stages:VideoChat2Weights",
            summary="VideoChat2's own files of stages 2 and 3",
        ),
    ]
