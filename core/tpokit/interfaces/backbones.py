"""What a backbone subclasses: the model, and its processor, which has no weights.

Legend of all shapes: b samples of a batch, l positions, d width of the backbone, n calls of a task
in the whole batch in reading order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from tpokit.batch import Batch, SequenceIndex
from tpokit.errors import UsageError
from tpokit.interfaces.connectors import ConnectorChoice
from tpokit.options import NoOptions
from tpokit.options import Options as AnyOptions
from tpokit.types import MediaNeed, Turn, View


class Processor(ABC):
    """The part of a backbone that has no weights: template, tokenizer, pixels. Lives in data
    workers.

    Attributes:
        tokenizer: A transformers tokenizer.
        end_of_turn: What an answer ends with in the template and the model must learn to write.
        start_of_turn: What an answer begins with in the template, behind the words that open it,
            and the model must learn to write.
        max_length: Longest sequence of the model, in tokens.
        whole_text: The tokens of a turn depend on what stands before it: the text is tokenised as
            a whole. The tokenizer must say where its tokens stand (a fast one).
        reserved: Words whose place tokens of media take; no text may hold one.
    """

    tokenizer: Any
    end_of_turn: str
    start_of_turn: str = ""
    max_length: int
    whole_text: bool = False
    reserved: tuple[str, ...] = ()

    @abstractmethod
    def media_need(self) -> MediaNeed:
        """Which frames of a video the backbone sees."""

    @abstractmethod
    def render(self, messages: Sequence[Mapping[str, Any]], answer_next: bool) -> str:
        """Apply the model's own chat template.

        Args:
            messages: In transformers' form: ``{"role": ..., "content": [{"type": "image"}, {"type":
                "text", "text": ...}]}``.
            answer_next: End with the words that open an answer.

        Returns:
            Text with one placeholder for each medium. The characters U+E010 to U+E01F, which no
            message holds, may mark places for `expand`.
        """

    @abstractmethod
    def expand(self, text: str, views: Sequence[View]) -> str:
        """Repeat each placeholder as often as its medium gives tokens.

        Raises:
            DataError: The number of placeholders is not the number of media.
        """

    def pixels(self, views: Sequence[View]) -> int:
        """How many pixels of the media of one sample go through the vision tower, for budgets.

        Args:
            views: Of one sample.

        Returns:
            Default: those of all frames as they were decoded.
        """
        return sum(math.prod(view.frames.shape[:3]) for view in views)

    @abstractmethod
    def collate_media(self, views: Sequence[Sequence[View]]) -> dict[str, Any]:
        """Pixels of a batch, as the backbone's `Backbone.embed` wants them; ``views`` by sample."""

    def collate_instructions(
        self, turns: Sequence[Sequence[Turn]], views: Sequence[Sequence[View]]
    ) -> dict[str, Any]:
        """What a connector that reads an instruction is told, one row for each medium of a batch.

        Args:
            turns: By sample; only what stands before the first answer may be used, which is there
                in inference as well.
            views: By sample.

        Returns:
            Entries besides those of `collate_media`, for batches with media; default: none.
        """
        return {}

    def collate_frames(self, views: Sequence[View]) -> Any:
        """Pixels of all frames of some views, as `Backbone.encode_frames` wants them.

        Raises:
            UsageError: This backbone gives no features of single frames (the default).
        """
        raise UsageError(
            f"{type(self).__name__} gives no features of single frames; choose other features for "
            "the head"
        )


@dataclass(frozen=True)
class LayerStack:
    """Transformer layers of one kind, and how much goes through them.

    Attributes:
        part: That they belong to.
        layers: How many.
        width: Of the hidden states.
        keys: Width of the keys of all heads together, and of the values.
        inner: Width inside the feed-forward layers.
        gated: Whether two matrices lead there (one of them a gate), as in LLaMA.
        tokens: That go through each layer, of the whole batch.
    """

    part: str
    layers: int
    width: int
    keys: int
    inner: int
    gated: bool
    tokens: int

    @classmethod
    def of_config(
        cls, config: Any, *, part: str, layers: int, gated: bool, tokens: int
    ) -> LayerStack:
        """Sizes by the names that configurations of transformers have."""
        heads = config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
        keys = head_width * (getattr(config, "num_key_value_heads", None) or heads)
        width, inner = config.hidden_size, config.intermediate_size
        return cls(part, layers, width, keys, inner, gated, tokens)


def arguments_of_build(
    options: AnyOptions, folder: Path, connector: ConnectorChoice | None
) -> tuple[Any, ...]:
    """What `Backbone.build` is called with: a connector only if a recipe names one."""
    return (options, folder) if connector is None else (options, folder, connector)


class Backbone(nn.Module, ABC):
    """A multimodal LLM with its vision encoder and connector.

    Attributes:
        processor: Its template, tokenizer and pixels.
        width: d of its hidden states.
        rows: Rows of its input embedding (and of its logits).
        vision_width: Width of the features of `encode_frames`; 0 if it has none.
        packs: Whether `decode` takes rows that hold several samples one after another.
    """

    Options: ClassVar[type[AnyOptions]] = NoOptions

    processor: Processor
    width: int
    rows: int
    vision_width: int = 0
    packs: bool = False

    @classmethod
    @abstractmethod
    def build(
        cls, options: AnyOptions, folder: Path, connector: ConnectorChoice | None = None
    ) -> Backbone:
        """Load or make the model that the options name.

        Args:
            options: An instance of ``Options``.
            folder: Relative paths in the options are relative to it.
            connector: Takes the place of the backbone's own. It is handed over only if a recipe
                names one, which it can only if the spec says ``connectors=True``; other backbones
                need no such argument.
        """

    @classmethod
    def build_empty(
        cls, options: AnyOptions, folder: Path, connector: ConnectorChoice | None = None
    ) -> Backbone:
        """The same model without numbers, which is looked at and never run: its parameters on the
        meta device, no file of weights read; default: as `build`.

        Its processor is that of the real model.
        """
        return cls.build(*arguments_of_build(options, folder, connector))

    @classmethod
    def build_small(
        cls, options: AnyOptions, folder: Path, connector: ConnectorChoice | None = None
    ) -> Backbone:
        """A model of the same kind that runs on a laptop: few and narrow layers, random weights
        from torch's generator, no file of weights read; default: as `build`.

        Its processor gives the same tokens and pixels as that of the real model.
        """
        return cls.build(*arguments_of_build(options, folder, connector))

    def layer_stacks(self, tokens: int, pixels: int) -> list[LayerStack]:
        """The transformers that a batch goes through, for an estimate of what they keep in memory;
        default: none, and no estimate. The model may be empty.

        Args:
            tokens: Of the batch, padding included.
            pixels: Of its media, as `Processor.pixels` counts them.
        """
        return []

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """Every parameter in exactly one of the parts ``vision``, ``connector`` and ``llm``."""

    @abstractmethod
    def lora_targets(self) -> str:
        """One regular expression for the full names (``re.fullmatch``, seen from the backbone) of
        the LLM's linear layers.
        """

    @abstractmethod
    def embed(self, batch: Batch, idle_vision: bool) -> Tensor:
        """Input embeddings ``[b, l, d]`` with the vision features in place.

        Ids at or beyond ``rows`` are task tokens: any embedding will do there, the bridge writes
        over it. Images and videos of a batch go through the vision tower in one call.

        Args:
            batch: With its media.
            idle_vision: Without media, run the tower and connector on the smallest input and add it
                times zero, so that all ranks call the same modules.
        """

    @abstractmethod
    def embed_ids(self, ids: Tensor) -> Tensor:
        """Table lookup ``[b, q]`` to ``[b, q, d]``, without media; ids at or beyond ``rows`` give
        anything.
        """

    @abstractmethod
    def decode(
        self,
        embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: Any = None,
        use_cache: bool = False,
        sequences: SequenceIndex | None = None,
    ) -> tuple[Tensor, Any]:
        """Run the LLM.

        Args:
            embeds: ``[b, q, d]``; q: new positions.
            mask: ``[b, p + q]`` bool over cached and new positions; false: padding.
            positions: ``[b, q]`` position of each new token in its own sample, from 0.
            cache: What an earlier call returned, holding p positions.
            use_cache: Return a cache for the next call.
            sequences: In training, and only if the backbone ``packs`` (others need no such
                argument): a token sees those before it in its own sample. That says all, so the
                mask may be left out.

        Returns:
            Last hidden states ``[b, q, d]`` after the final norm, and the cache or ``None``.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., rows]`` of the given hidden states ``[..., d]``; called only where they
        are needed.
        """

    def encode_frames(self, pixels: Any, grid: int) -> Tensor:
        """Features of single frames from the vision tower, before the connector.

        Args:
            pixels: From `Processor.collate_frames`; ``None``: the smallest input there is, so that
                all ranks call the tower (the result is multiplied by zero).
            grid: Cells in each direction into which the patches of a frame are averaged.

        Returns:
            ``[frames, grid * grid * vision_width]``, cells row by row.

        Raises:
            UsageError: This backbone gives none (the default).
        """
        raise UsageError(f"{type(self).__name__} gives no features of single frames")

    def without_gradient(self) -> tuple[str, ...]:
        """Regular expressions for names of parameters, seen from the backbone, that may be trained
        and yet get a gradient of zero, such as a norm behind the last layer that is used; default:
        none.

        Training stops at any other parameter that gets none.
        """
        return ()

    def gradient_checkpointing_enable(self) -> None:
        """Compute activations again in the backward pass instead of keeping them.

        Raises:
            UsageError: This backbone cannot (the default).
        """
        raise UsageError(
            f"run.gradient_checkpointing: {type(self).__name__} cannot do it; leave it out"
        )

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What this base model is: ``name`` as the recipe has it, ``hash`` of its weights, and
        ``revision`` if it is one of the hub; kept with what is trained.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the whole model, loadable by `build` from that folder."""
