"""The Q-Former of VideoChat2: learnt queries look at all patches of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

import tpokit
from tpokit.interfaces import Connector, ConnectorHost, FeatureNeed, Instruction
from tpokit_videochat2.connectors.layers import Float32LayerNorm
from tpokit_videochat2.connectors.options import QFormerOptions

_START_STD = 0.02
"""Standard deviation of fresh queries, as of all weights of a BERT."""


class QFormerConnector(Connector):
    """As many tokens as there are queries, however many frames a clip has.

    Source: arXiv 2311.17005; OpenGVLab/Ask-Anything, video_chat2/models/blip2/Qformer.py and
    videochat_mistra/videochat2_it_mistral.py; built from transformers' Q-Former of InstructBLIP,
    which computes the same. We differ:

    - No drop path; the release drops whole branches of a layer in training, rising from none in the
      first layer to 0.2 in the last.
    - Extra queries start at random. The release starts them at zero, all alike.
    - Clips of a batch may have different lengths.
    - A connector with a vocabulary reads one masked word where there is no instruction, which no
      query sees: so every parameter takes part in every call, in one order on all ranks.

    Leading tokens of a frame are seen like its patches.
    """

    Options = QFormerOptions
    options: QFormerOptions

    def __init__(self, options: tpokit.Options, host: ConnectorHost) -> None:
        super().__init__(options, host)
        assert isinstance(options, QFormerOptions)
        vision = host.vision * len(options.vision_layers)
        self.norm = Float32LayerNorm(vision, eps=options.layer_norm_eps)
        self.queries = _fresh_queries(options.queries, options.width)
        self.extra_queries = (
            _fresh_queries(options.extra_queries, options.width) if options.extra_queries else None
        )
        self.qformer = make_qformer(options, vision)
        self.projection = nn.Linear(options.width, host.hidden)

    @classmethod
    def feature_need(cls, options: tpokit.Options) -> FeatureNeed:
        """The layers of the option."""
        return FeatureNeed(cast(QFormerOptions, options).vision_layers)

    @classmethod
    def reads_instruction(cls, options: tpokit.Options) -> bool:
        """With a vocabulary."""
        return cast(QFormerOptions, options).vocabulary > 0

    def without_gradient(self) -> tuple[str, ...]:
        """The bias of keys, which changes nothing behind a softmax; and the words, as there may be
        no instruction.
        """
        return (
            r"\.key\.bias$",
            r"^qformer\.embeddings\.",
            r"^qformer\.encoder\.layer\.\d+\.(intermediate|output)\.",
        )

    @classmethod
    def small_options(cls, options: tpokit.Options) -> QFormerOptions:
        """Few and narrow layers."""
        wide = cast(QFormerOptions, options)
        heads = min(wide.heads, 4)
        changes = {"layers": min(wide.layers, 2), "heads": heads}
        changes["width"] = min(wide.width, 16 * heads)
        changes["intermediate"] = min(wide.intermediate, 32 * heads)
        return wide.model_copy(update=changes)

    @classmethod
    def tokens(cls, options: tpokit.Options, host: ConnectorHost, frames: int) -> int:
        """One for each query."""
        assert isinstance(options, QFormerOptions)
        return options.queries + options.extra_queries

    def forward(
        self, features: Tensor, frames: Sequence[int], instruction: Instruction | None = None
    ) -> Tensor:
        """Tokens in the order of the queries; see `Connector.forward`.

        Args:
            features, frames: Of all clips.
            instruction: May be padded on either side; the release pads on the left. A row that is
                padding alone is a clip without instruction.

        Raises:
            UsageError: There is an instruction, but the connector was built without vocabulary.
            DataError: The instruction is too long.
        """
        tokens: Tensor = self.projection(self.query_states(features, frames, instruction))
        return tokens.flatten(0, 1)

    def query_states(
        self, features: Tensor, frames: Sequence[int], instruction: Instruction | None = None
    ) -> Tensor:
        """Last hidden states of the queries, ``[clips, queries, width]``; see `forward`."""
        clips = len(frames)
        words = self._words(instruction, clips, features.device)
        states, seen = pad_clips(self.norm(features), frames)
        queries: Tensor = self.queries
        if self.extra_queries is not None:
            queries = torch.cat([queries, self.extra_queries], dim=1)
        output = self.qformer(
            input_ids=None if words is None else words.ids,
            # its own table of positions is a buffer that no file has
            position_ids=None if words is None else _positions(words.ids),
            attention_mask=None if words is None else self._with_queries(words.mask),
            query_embeds=queries.expand(clips, -1, -1),
            encoder_hidden_states=states,
            encoder_attention_mask=None if seen is None else self._attention_mask(seen),
        )
        rows: Tensor = output.last_hidden_state[:, : queries.shape[1]]
        return rows

    def _words(
        self, instruction: Instruction | None, clips: int, device: torch.device
    ) -> Instruction | None:
        """What the text side reads; ``None`` if there is no text side."""
        if self.options.vocabulary == 0:
            if instruction is not None:
                raise tpokit.UsageError(
                    "qformer: it was built without words (vocabulary: 0) and cannot read an "
                    "instruction; set vocabulary to the size of its tokenizer, or give none"
                )
            return None
        if instruction is None or instruction.ids.shape[1] == 0:
            nothing = torch.zeros(clips, 1, dtype=torch.long, device=device)
            return Instruction(nothing, nothing.bool())
        if instruction.ids.shape[1] > self.options.positions:
            raise tpokit.DataError(
                f"qformer: an instruction has {instruction.ids.shape[1]} tokens, at most "
                f"{self.options.positions} fit (positions); shorten it"
            )
        return instruction

    def _with_queries(self, mask: Tensor) -> Tensor:
        """Mask of words ``[clips, w]`` to that of queries and words; every query is seen."""
        queries = self.options.queries + self.options.extra_queries
        return self._attention_mask(nn.functional.pad(mask.bool(), (queries, 0), value=True))

    def _attention_mask(self, seen: Tensor) -> Tensor:
        """``[clips, k]`` bool in the form of the attention implementation, ``[clips, 1, 1, k]``.

        transformers would make it as well, but looks whether all are true, and a GPU would have to
        be waited for.
        """
        seen = seen[:, None, None]
        if self.options.attention == "sdpa":
            return seen
        dtype = self.queries.dtype
        added = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return added.masked_fill(~seen, torch.finfo(dtype).min)


def make_qformer(options: QFormerOptions, vision: int) -> InstructBlipQFormerModel:
    """A Q-Former of transformers with fresh weights; no vocabulary, no text side.

    Args:
        options: Its sizes.
        vision: c, width of the features.
    """
    config = InstructBlipQFormerConfig(
        vocab_size=max(options.vocabulary, 1),
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.intermediate,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        max_position_embeddings=options.positions,
        layer_norm_eps=options.layer_norm_eps,
        cross_attention_frequency=options.cross_attention_every,
        encoder_hidden_size=vision,
        attn_implementation=options.attention,
    )
    model: Any = InstructBlipQFormerModel(config)
    if options.vocabulary == 0:
        model.embeddings.word_embeddings = None
        model.embeddings.position_embeddings = None
        for layer in model.encoder.layer:
            layer.intermediate = None
            layer.output = None
    return cast(InstructBlipQFormerModel, model)


def pad_clips(features: Tensor, frames: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Frames of all clips, one after another, as one row for each clip.

    Args:
        features: ``[f, p, c]``.
        frames: How many frames each clip has.

    Returns:
        ``[clips, most frames * p, c]``, zero behind the end of a clip; and ``[clips, most frames *
        p]`` bool, true before it, or ``None`` if no clip is shorter than another.
    """
    most, width = max(frames), features.shape[-1]
    if min(frames) == most:
        return features.reshape(len(frames), -1, width), None
    lengths = torch.tensor(frames)  # on the host, where they are known: no GPU is waited for
    present = torch.arange(most) < lengths[:, None]  # [clips, most]
    places = present.flatten().nonzero()[:, 0].to(features.device, non_blocking=True)
    rows = features.new_zeros(present.numel(), *features.shape[1:])
    padded = rows.index_copy(0, places, features).reshape(len(frames), -1, width)
    seen = present.to(features.device, non_blocking=True).repeat_interleave(
        features.shape[1], dim=1
    )
    return padded, seen


def _positions(ids: Tensor) -> Tensor:
    """0, 1, 2, ..., padding included, ``[1, w]``."""
    return torch.arange(ids.shape[1], device=ids.device)[None]


def _fresh_queries(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(1, count, width) * _START_STD)
