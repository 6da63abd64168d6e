"""The anchor decoder: queries, each with a moment that it corrects layer by layer.

Source: wjun0830/CGDETR, cg_detr/transformer.py (after DAB-DETR, arXiv 2201.12329).

Legend of all shapes: b samples, q queries, l clips, d width, h heads, y layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tpokit_temporal.detector.layers import (
    FeedForward,
    add_branch,
    attend,
    dropout,
    hiding,
    join_heads,
    kept_branches,
    mlp,
    split_heads,
)
from tpokit_temporal.detector.positions import inverse_sigmoid, moment_positions


class SelfAttention(nn.Module):
    """Queries look at each other."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Build the projections."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_content = nn.Linear(width, width)
        self.query_position = nn.Linear(width, width)
        self.key_content = nn.Linear(width, width)
        self.key_position = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.bias)

    def forward(self, content: Tensor, position: Tensor) -> Tensor:
        """``[b, q, d]`` each, to ``[b, q, d]``."""
        queries = self.query_content(content) + self.query_position(position)
        keys = self.key_content(content) + self.key_position(position)
        tokens = queries, keys, self.value(content)
        return self.output(attend(tokens, None, self.heads, self.dropout if self.training else 0.0))


class ClipAttention(nn.Module):
    """Queries look at clips, by content and, beside it in each head, by place.

    A key is a linear function of a clip, so its product with a query is that of the clip itself
    with what the same function, from the other side, makes of the query. There are fewer queries
    than clips: that way clips need not be projected at all; the same for values.
    """

    def __init__(self, width: int, heads: int, dropout: float, first: bool) -> None:
        """Build the projections; only in the first layer are places added to the content too."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_content = nn.Linear(width, width)
        self.query_position = nn.Linear(width, width) if first else None
        self.query_place = nn.Linear(width, width)
        self.key_content = nn.Linear(width, width)
        self.key_place = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        queries: tuple[Tensor, Tensor, Tensor],
        clips: Tensor,
        places: Tensor,
        bias: Tensor,
    ) -> Tensor:
        """Attend.

        Args:
            queries: Content, position and scaled sine embedding of the moments, ``[b, q, d]`` each.
            clips: ``[b, l, d]``.
            places: ``[b, l, d]`` sine embedding of the clips.
            bias: From `hiding`, ``[b, 1, l]``.

        Returns:
            ``[b, q, d]``.
        """
        content, position, sines = queries
        asked = self.query_content(content)
        place = self.query_place(sines)
        if self.query_position is not None:
            asked = asked + self.query_position(position)
            place = place + asked
        by_content, offset = self._from_other_side(asked, self.key_content)
        by_place, place_offset = self._from_other_side(place, self.key_place)
        scores = torch.baddbmm(offset + place_offset + bias, by_content, clips.transpose(1, 2))
        scores = torch.baddbmm(scores, by_place, places.transpose(1, 2))
        shares = dropout(scores.softmax(-1), self.dropout if self.training else 0.0)
        return self.output(self._values(shares, shares.to(clips.dtype) @ clips))

    def _from_other_side(self, queries: Tensor, key: nn.Linear) -> tuple[Tensor, Tensor]:
        """What clips are to be multiplied with ``[b, h q, d]``, and what is added, ``[b, h q, 1]``.

        The latter changes nothing behind a softmax, but bias is a parameter of the release.
        """
        split = split_heads(queries, self.heads) * (2 * queries.shape[-1] / self.heads) ** -0.5
        weight = key.weight.unflatten(0, (self.heads, -1))
        added = split @ key.bias.unflatten(0, (self.heads, -1)).unsqueeze(-1)
        return (split @ weight).flatten(1, 2), added.flatten(1, 2)

    def _values(self, shares: Tensor, clips: Tensor) -> Tensor:
        """``[b, q, d]`` of ``[b, h q, l]`` and the mean clips ``[b, h q, d]`` that they give."""
        mean = clips.unflatten(1, (self.heads, -1))
        weight = self.value.weight.unflatten(0, (self.heads, -1))
        sums = shares.sum(-1, keepdim=True).unflatten(1, (self.heads, -1))  # not 1: dropout
        bias = self.value.bias.unflatten(0, (self.heads, 1, -1))
        return join_heads(mean @ weight.transpose(1, 2) + sums * bias)


class DecoderLayer(nn.Module):
    """Self-attention, attention to clips, feed-forward; each added and normalised after."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float, first: bool) -> None:
        """Build the layer."""
        super().__init__()
        self.self_attention = SelfAttention(width, heads, dropout)
        self.self_attention_norm = nn.LayerNorm(width)
        self.clip_attention = ClipAttention(width, heads, dropout, first)
        self.clip_attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(
        self,
        queries: tuple[Tensor, Tensor, Tensor],
        clips: Tensor,
        places: Tensor,
        bias: Tensor,
    ) -> Tensor:
        """New content ``[b, q, d]``; arguments as of `ClipAttention.forward`."""
        content, position, sines = queries
        kept = kept_branches(3, content, self.dropout if self.training else 0.0)
        attended = self.self_attention(content, position)
        content = self.self_attention_norm(add_branch(content, attended, kept, 0))
        attended = self.clip_attention((content, position, sines), clips, places, bias)
        content = self.clip_attention_norm(add_branch(content, attended, kept, 1))
        inner = self.feed_forward(content)
        return self.feed_forward_norm(add_branch(content, inner, kept, 2))


class Decoder(nn.Module):
    """Layers that share how a moment is embedded and corrected."""

    def __init__(self, depth: int, width: int, hidden: int, heads: int, dropout: float) -> None:
        """Build the layers."""
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(width, hidden, heads, dropout, first=not index) for index in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.moment_to_position = mlp((width, width, width))
        self.content_to_width = mlp((width, width, 1))
        if depth > 1:  # they act between layers
            self.content_to_scale = mlp((width, width, width))
            self.correction = mlp((width, width, width, 2))

    def start_without_correction(self, keep_weight: bool) -> None:
        """Let the last layer of the correction give 0, or small numbers if its weight is kept."""
        if len(self.layers) > 1:
            nn.init.zeros_(self.correction[-1].bias)
            if not keep_weight:
                nn.init.zeros_(self.correction[-1].weight)

    def forward(
        self, start: Tensor, clips: Tensor, places: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            start: ``[q, 2]`` logits of centre and width of the moments to begin with.
            clips: ``[b, l, d]``.
            places: ``[b, l, d]`` sine embedding of the clips.
            mask: ``[b, l]`` bool; false: padding.

        Returns:
            Content ``[y, b, q, d]`` after each layer, and the moments ``[y, b, q, 2]`` (centre,
            width; float32) that entered it.
        """
        moments = start.float().sigmoid().expand(len(clips), -1, -1)
        content = clips.new_zeros(*moments.shape[:2], clips.shape[-1])
        bias = hiding(~mask, clips).unsqueeze(1)
        contents, references = [], [moments]
        for index, layer in enumerate(self.layers):
            embedded = moment_positions(moments, clips.shape[-1])
            sines = embedded * (self.content_to_width(content).sigmoid() / moments[..., 1:])
            if index:
                sines = sines * self.content_to_scale(content)
            position = self.moment_to_position(embedded.to(clips.dtype))
            queries = content, position, sines.to(clips.dtype)
            content = layer(queries, clips, places, bias)
            contents.append(self.norm(content))
            if index + 1 < len(self.layers):
                corrected = self.correction(content).float() + inverse_sigmoid(moments)
                references.append(corrected.sigmoid())
                moments = references[-1].detach()  # a layer is judged by its own correction only
        return torch.stack(contents), torch.stack(references)
