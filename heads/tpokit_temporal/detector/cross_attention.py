"""Adaptive cross-attention: what a clip does not find in the words, it may put on dummies.

Source: wjun0830/CGDETR, cg_detr/crossattention.py and the t2v encoder of cg_detr/transformer.py.
There are no projections of queries, keys and values. One softmax goes over dummies and words, but
only words have values, so that the weight on dummies is what a clip refuses to take.

Legend of all shapes: b samples, l clips, s = n + t dummies and words, d width, h heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpokit_temporal.detector import layers_in_pieces
from tpokit_temporal.detector.layers import (
    FeedForward,
    add_branch,
    hiding,
    join_heads,
    kept_branches,
    split_heads,
    weights_of,
)


class TextSide(NamedTuple):
    """What clips look at.

    Attributes:
        tokens: ``[b, s, d]`` conditioned dummies, then words.
        positions: ``[s, d]``, 0 for words.
        dummies: n.
    """

    tokens: Tensor
    positions: Tensor
    dummies: int

    def with_next(self) -> TextSide:
        """The same for 2 b samples: each with its own text, then each with that of the next."""
        return self._replace(tokens=torch.cat((self.tokens, self.tokens.roll(-1, 0))))


class TextToClipsLayer(nn.Module):
    """Clips take from words; the feed-forward is added to the sum before its norm, as released."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        """Build the layer."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        nn.init.zeros_(self.output.bias)

    def forward(
        self, clips: Tensor, positions: Tensor, text: tuple[Tensor, Tensor], bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Clips after the layer and their attention.

        Args:
            clips: ``[b, l, d]``.
            positions: ``[b, l, d]``.
            text: Keys ``[b, s, d]`` and values of words ``[b, t, d]``.
            bias: From `hiding`, ``[b, 1 or h, 1 or l, s]``.

        Returns:
            ``[b, l, d]`` and ``[b, l, s]``, mean over heads.
        """
        rate = self.dropout if self.training else 0.0
        kept = kept_branches(2, clips, rate)
        if layers_in_pieces.works_on(clips):
            settings = layers_in_pieces.Settings(self.heads, rate, *clips.shape[1:2] * 2)
            weights = weights_of(
                self.output, self.attention_norm, self.feed_forward, self.feed_forward_norm
            )
            return layers_in_pieces.text_to_clips_layer(
                (clips, positions), text, bias, kept, settings, weights
            )
        queries, keys, words = (split_heads(x, self.heads) for x in (clips + positions, *text))
        scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        shares = (scores + bias).softmax(-1)
        taken = functional.dropout(shares[..., -words.shape[2] :], rate).to(words.dtype)
        attended = self.output(join_heads(taken @ words))
        return self._update(clips, attended, kept), shares.mean(1)

    def without_text(self, tokens: Tensor) -> Tensor:
        """Tokens ``[b, i, d]`` after the layer when there is no text: only the bias comes in."""
        kept = kept_branches(2, tokens, self.dropout if self.training else 0.0)
        return self._update(tokens, self.output.bias.expand_as(tokens), kept)

    def _update(self, x: Tensor, attended: Tensor, kept: Tensor | None) -> Tensor:
        x = add_branch(x, attended, kept, 0)
        inner = self.feed_forward(self.attention_norm(x))
        return self.feed_forward_norm(add_branch(x, inner, kept, 1))


class TextToClips(nn.ModuleList):
    """Layers of adaptive cross-attention; the text side stays the same in all of them."""

    def __init__(self, depth: int, width: int, hidden: int, heads: int, dropout: float) -> None:
        """Build the layers."""
        super().__init__(TextToClipsLayer(width, hidden, heads, dropout) for _ in range(depth))

    def forward(
        self, clips: Tensor, positions: Tensor, text: TextSide, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Read the text.

        Args:
            clips: ``[b, l, d]``.
            positions: ``[b, l, d]``.
            text: What they look at.
            hidden: ``[b, 1 or h, 1 or l, s]`` bool: which token is hidden from which clip.

        Returns:
            ``[b, l, d]`` after all layers, and attention ``[b, l, s]``, mean over heads and layers.
        """
        read = text.tokens + text.positions, text.tokens[:, text.dummies :]
        bias = hiding(hidden, clips)
        maps: list[Tensor] = []
        for layer in self:
            clips, shares = layer(clips, positions, read, bias)
            maps.append(shares)
        return clips, sum(maps[1:], start=maps[0]) / len(maps)

    def without_text(self, tokens: Tensor) -> Tensor:
        """Tokens ``[b, i, d]`` after all layers when there is no text."""
        for layer in self:
            tokens = layer.without_text(tokens)
        return tokens


def released_hidden(
    clip_mask: Tensor, text_mask: Tensor, heads: int, taking_part: Tensor
) -> Tensor:
    """What the released code hides: padding, and words of one sample from clips of another.

    It lays out a mask of (padded clip, padded word) with heads outermost, where scores have samples
    outermost: head h of sample i takes the mask of sample (i heads + h) mod b.

    Args:
        clip_mask: ``[b, l]`` bool.
        text_mask: ``[b, s]`` bool.
        heads: Number of heads.
        taking_part: ``[b]`` bool, samples that are in the released batch; the others get anything.

    Returns:
        ``[b, h, l, s]`` bool.
    """
    both = ~clip_mask[:, :, None] & ~text_mask[:, None, :]
    members = torch.argsort((~taking_part).to(torch.int8), stable=True)
    rank = taking_part.cumsum(0) - 1
    row = rank.clamp(min=0)[:, None] * heads + torch.arange(heads, device=rank.device)
    other = members[row % taking_part.sum().clamp(min=1)]
    return both[other] | ~text_mask[:, None, None]
