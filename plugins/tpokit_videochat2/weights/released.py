"""The format ``videochat_tpo``: VideoChat-TPO as published, a VideoChat2 over Mistral with adapters
on every linear layer of the LLM and seven words more.

Source: OpenGVLab/TPO, inference/model.safetensors.index.json and modeling_videochate.py. Adapters
may be missing, from all layers or from the output layer, so that a model without them can be
published, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, cast

from torch import nn

from tpokit import TokenTable
from tpokit.errors import CheckpointError
from tpokit.interfaces import (
    AddedProduct,
    BackboneWeightRules,
    Place,
    Published,
    Shapes,
)
from tpokit_videochat2.weights import tasks
from tpokit_videochat2.weights.description import (
    Description,
    find_tokenizer,
    mistral_config,
    stated_config,
    usual_config,
)
from tpokit_videochat2.weights.llm import BASE, OURS, block_tensors
from tpokit_videochat2.weights.names import connector_tensors, vision_tensors
from tpokit_videochat2.weights.of_model import sizes_of_model
from tpokit_videochat2.weights.sizes import (
    LlmSizes,
    LoraSizes,
    ModelSizes,
    QFormerSizes,
    VisionSizes,
    count_layers,
    shape_of,
)

_PROJECTION = "project_up"
_TABLE = f"{BASE}model.embed_tokens.weight"
_OUTPUT = f"{BASE}lm_head"
_ADAPTER = f"{_OUTPUT}.lora_{{}}.default.weight"
_NEVER_RUN = {
    "project_down": "no forward pass of the release uses it",
    "merge_proj": "only for a mode that joins clips, which the release never switches on",
    "temporal_embed": "of an earlier temporal head, which no forward pass uses",
    "action_embed": "of an earlier temporal head, which no forward pass uses",
}


class VideoChatTpoWeights(BackboneWeightRules):
    """Rules of the backbone, and of all rows of task tokens."""

    def __init__(self, sizes: ModelSizes, description: Description | None = None) -> None:
        """Make them; `from_published` and `from_model` are the usual ways.

        Args:
            sizes: Of the model.
            description: Of the model that is to be published.
        """
        self._sizes = sizes
        self._description = description

    @classmethod
    def from_published(cls, shapes: Shapes) -> Self | None:
        """See `WeightRules.from_published`."""
        if not any(name.startswith(BASE) for name in shapes):
            return None
        return cls(
            ModelSizes(
                VisionSizes.of_published(shapes),
                QFormerSizes.of_published(shapes),
                _llm_sizes(shapes),
                LoraSizes.of_names(shapes),
            )
        )

    @classmethod
    def from_model(cls, part: nn.Module) -> Self:
        """See `WeightRules.from_model`."""
        from tpokit_videochat2.backbone import VideoChat2Backbone

        backbone = cast(VideoChat2Backbone, part)
        return cls(sizes_of_model(backbone), Description.of_model(backbone))

    def options(self) -> dict[str, Any]:
        """Number format as published; adapters where they were."""
        lora = self._sizes.lora
        return {"dtype": "auto", "lora_output": lora is None or lora.output}

    def lora(self) -> dict[str, Any] | None:
        """See `BackboneWeightRules.lora`."""
        return None if self._sizes.lora is None else self._sizes.lora.recipe()

    def tensors(self, tokens: TokenTable) -> Iterable[Published]:
        """See `WeightRules.tensors`.

        Raises:
            UsageError: A token of the model has no place in the format.
        """
        tasks.check_tokens(tokens)
        sizes = self._sizes
        yield from vision_tensors(sizes.vision)
        yield from connector_tensors(sizes.connector, _PROJECTION, sizes.llm.width, text_side=False)
        yield from block_tensors(sizes.llm, sizes.lora)
        yield from self._tables(tokens)
        yield from tasks.slot_tensors(sizes.llm.width, tokens)
        yield from self._never_run()

    def added(self, tokens: TokenTable) -> Sequence[AddedProduct]:
        """The output layer's adapter at the rows of triggers."""
        lora = self._sizes.lora
        if lora is None or not lora.output:
            return ()
        words = self._sizes.llm.words
        return tuple(tasks.added(_ADAPTER.format("B"), _ADAPTER.format("A"), words, tokens))

    def prepare(self, source: Path, backbone: Path, llm: Path | None = None) -> None:
        """See `BackboneWeightRules.prepare`.

        Raises:
            CheckpointError: There is no tokenizer, it is of another vocabulary, or the number of
                attention heads cannot be known.
        """
        sizes = self._sizes
        config = stated_config(source) or usual_config(
            sizes.vision, sizes.connector, mistral_config(sizes.llm), words=0
        )
        description = Description(config, find_tokenizer(source, tasks.TOKENS))
        description.check_words(sizes.llm.words, source)
        description.write(backbone)

    def write_files(self, published: Path) -> None:
        """Our configuration, which holds what shapes do not tell, and the tokenizer."""
        assert self._description is not None, "made by from_model"
        self._description.write(published)

    def _tables(self, tokens: TokenTable) -> Iterator[Published]:
        llm, lora = self._sizes.llm, self._sizes.lora
        yield tasks.word_table(_TABLE, llm, tokens)
        yield tasks.output_table(f"{_OUTPUT}.base_layer.weight", llm, tokens)
        if lora is not None and lora.output:
            place = Place(f"{OURS}lm_head.lora_A.default.weight")
            yield Published(_ADAPTER.format("A"), (lora.rank, llm.width), (place,))
            yield tasks.output_adapter(_ADAPTER.format("B"), llm, lora)

    def _never_run(self) -> Iterator[Published]:
        width, queries = self._sizes.llm.width, self._sizes.connector.width
        layers = {
            "project_down": (queries, width),
            "merge_proj": (width, 4 * queries),
            "temporal_embed.layers.0": (width, width),
            "temporal_embed.layers.1": (2, width),
            "action_embed.layers.0": (width, width),
            "action_embed.layers.1": (1, width),
        }
        for name, shape in layers.items():
            why = _NEVER_RUN[name.partition(".")[0]]
            yield Published(f"{name}.weight", shape, unused=why, optional=True)
            yield Published(f"{name}.bias", shape[:1], unused=why, optional=True)


def _llm_sizes(shapes: Shapes) -> LlmSizes:
    """Sizes of the LLM.

    Raises:
        CheckpointError: Something is missing, or word table and output layer differ in length.
    """
    block = f"{BASE}model.layers.0."
    rows, width = shape_of(shapes, _TABLE, 2)
    output = shape_of(shapes, f"{_OUTPUT}.base_layer.weight", 2)[0]
    if rows != output or rows <= len(tasks.TOKENS):
        raise CheckpointError(
            f"{_TABLE} has {rows} rows and {_OUTPUT}.base_layer.weight {output}; both must have "
            f"the words of the LLM and {len(tasks.TOKENS)} task tokens behind them"
        )
    query, key, inner = (
        shape_of(shapes, f"{block}{name}.base_layer.weight", 2)[0]
        for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")
    )
    layers = count_layers(shapes, f"{BASE}model.layers.")
    return LlmSizes(rows - len(tasks.TOKENS), width, layers, inner, query, key)
