"""Sizes of a model of ours that is to be published, and what the published format cannot hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from tpokit.errors import UsageError
from tpokit.interfaces import Connector
from tpokit_videochat2.connectors.qformer import QFormerConnector
from tpokit_videochat2.weights.llm import linear_shapes, our_names
from tpokit_videochat2.weights.sizes import (
    ADAPTER,
    SCALE,
    LlmSizes,
    LoraSizes,
    ModelSizes,
    QFormerSizes,
    VisionSizes,
)

if TYPE_CHECKING:
    from tpokit_videochat2.backbone import VideoChat2Backbone

_FORMAT = "the format videochat_tpo"


def sizes_of_model(backbone: VideoChat2Backbone) -> ModelSizes:
    """Sizes of all parts.

    Raises:
        UsageError: The format cannot hold the model; says what is in the way.
    """
    tower = backbone.vision.sizes
    llm = _llm_sizes(backbone.llm)
    return ModelSizes(
        VisionSizes(tower.hidden_size, tower.layers, tower.patch_size, tower.intermediate_size),
        _connector_sizes(backbone.connector),
        llm,
        _lora_sizes(backbone.llm, llm),
    )


def _connector_sizes(connector: Connector) -> QFormerSizes:
    if not isinstance(connector, QFormerConnector):
        raise UsageError(
            f"{_FORMAT} holds the connector qformer, but this model has a "
            f"{type(connector).__name__} (backbone.connector)"
        )
    options = connector.options
    if options.vision_layers != (-1,):
        raise UsageError(
            f"{_FORMAT} holds a connector that sees the last layer of the vision tower; this one "
            f"has vision_layers: {list(options.vision_layers)}"
        )
    if options.vocabulary:
        raise UsageError(
            f"{_FORMAT} holds a connector without instructions; this one has vocabulary: "
            f"{options.vocabulary}, which would be left out when it is imported again"
        )
    return QFormerSizes(
        queries=options.queries,
        extra=options.extra_queries,
        width=options.width,
        layers=options.layers,
        inner=options.intermediate,
        vision=connector.host.vision,
        every=options.cross_attention_every,
        words=0,
        positions=0,
    )


def _llm_sizes(llm: nn.Module) -> LlmSizes:
    """Of an LLM in the form of Mistral and Llama."""
    config: Any = llm.config
    shapes = {
        name.replace(".base_layer.", "."): tuple(parameter.shape)
        for name, parameter in llm.named_parameters()
        if ".lora_" not in name
    }
    layers = config.num_hidden_layers
    missing = sorted(our_names(layers) - set(shapes))
    unknown = sorted(set(shapes) - our_names(layers))
    if missing or unknown:
        found = [f"lacks {name}" for name in missing[:1]] + [f"has {name}" for name in unknown[:1]]
        raise UsageError(
            f"{_FORMAT} holds an LLM in the form of Mistral, with an output layer of its own; this "
            f"{type(llm).__name__} {' and '.join(found)}"
        )
    block = "model.layers.0."
    words, width = shapes["model.embed_tokens.weight"]
    return LlmSizes(
        words,
        width,
        layers,
        shapes[f"{block}mlp.gate_proj.weight"][0],
        shapes[f"{block}self_attn.q_proj.weight"][0],
        shapes[f"{block}self_attn.k_proj.weight"][0],
    )


def _lora_sizes(llm: nn.Module, sizes: LlmSizes) -> LoraSizes | None:
    shapes = {name: tuple(parameter.shape) for name, parameter in llm.named_parameters()}
    lora = LoraSizes.of_names(shapes)
    if lora is None:
        return None
    held = {name.removesuffix(ADAPTER) for name in shapes if name.endswith(ADAPTER)}
    wanted = {
        f"model.layers.{layer}.{name}"
        for layer in range(sizes.layers)
        for name in linear_shapes(sizes)
    }
    if held - {"lm_head"} != wanted:
        other = sorted(held - {"lm_head"} ^ wanted)[0]
        raise UsageError(
            f"{_FORMAT} has adapters on every linear layer of the LLM's blocks, and on no other "
            f"than the output layer besides; this model differs in {other}"
        )
    scales = {float(llm.get_submodule(name).scaling["default"]) for name in held}
    if scales != {SCALE}:
        raise UsageError(
            f"{_FORMAT} has adapters with alpha = {SCALE:g} x rank; here alpha is "
            f"{', '.join(f'{scale:g}' for scale in sorted(scales))} x rank: merge them first, with "
            "`tpokit weights merge`"
        )
    return lora
