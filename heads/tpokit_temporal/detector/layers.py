"""What the networks of the detector are made of.

Source: wjun0830/CGDETR, cg_detr/transformer.py and cg_detr/model.py. Tensors are batch first here;
the released code has the sequence first.

Legend of all shapes: b samples of a batch, i tokens that ask, s tokens that are seen, d width, h
heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpokit_temporal.detector import in_pieces

_FIRST_SLOPE = 0.25


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[b, i, d]`` to ``[b, h, i, d / h]``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """``[b, h, i, d / h]`` to ``[b, i, d]``."""
    return x.transpose(1, 2).flatten(2)


def hiding(hidden: Tensor, like: Tensor) -> Tensor:
    """What is added to scores to hide tokens: minus infinity where ``hidden`` is true, else 0."""
    return torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, float("-inf"))


def dropout(x: Tensor, rate: float) -> Tensor:
    """Dropout, for training; see `in_pieces` for why not torch's own on a CPU."""
    if not rate:
        return x
    if in_pieces.works_on(x):
        return x * in_pieces.dropout_mask(x, rate)
    return functional.dropout(x, rate)


def attend(
    tokens: tuple[Tensor, Tensor, Tensor], bias: Tensor | None, heads: int, rate: float
) -> Tensor:
    """Scaled dot-product attention of several heads.

    Args:
        tokens: Queries ``[b, i, d]``, keys ``[b, s, d]``, values ``[b, s, e]``.
        bias: From `hiding`, ``[b, 1, 1 or i, s]``; ``None``: nothing is hidden.
        heads: h.
        rate: Share of the weights that is dropped.

    Returns:
        ``[b, i, e]``.
    """
    if in_pieces.works_on(tokens[0]):
        return in_pieces.attention(tokens, bias, heads, rate)[0]
    queries, keys, values = (split_heads(x, heads) for x in tokens)
    bias = None if bias is None else bias.to(queries.dtype)
    return join_heads(
        functional.scaled_dot_product_attention(queries, keys, values, bias, dropout_p=rate)
    )


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU in between, the first from ``widths[0]`` to ``widths[1]``."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class AddSometimes(nn.Module):
    """Adds a branch to its input, in training for a random part of the samples only.

    Stochastic depth, drawn for each sample; what is added is scaled so that the mean stays.
    """

    def __init__(self, rate: float) -> None:
        """Keep the share of samples that are left out."""
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """``x + branch``; both ``[b, i, d]``, or ``branch`` ``[d]``."""
        if not self.training or self.rate == 0:
            return x + branch
        kept = torch.full((len(x), 1, 1), 1 - self.rate, device=x.device)
        kept = kept.bernoulli_() / (1 - self.rate)
        return torch.addcmul(x, branch, kept.to(branch.dtype))


class FeedForward(nn.Module):
    """Two linear layers with a PReLU of one learnt slope and a dropout in between."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        """Build the layers."""
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.slope = nn.Parameter(torch.tensor([_FIRST_SLOPE]))
        self.second = nn.Linear(hidden, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """``[..., d]`` to ``[..., d]``."""
        rate = self.dropout if self.training else 0.0
        if in_pieces.works_on(x):
            first, second = self.first, self.second
            weights = first.weight, first.bias, self.slope, second.weight, second.bias
            return in_pieces.feed_forward(x, weights, rate)
        hidden = functional.prelu(self.first(x), self.slope)
        return self.second(functional.dropout(hidden, rate))


class EncoderLayer(nn.Module):
    """Self-attention, then a feed-forward, each added and normalised after.

    Positions are added to queries and keys, not to values.
    """

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        """Build the layer."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.projection = nn.Linear(width, 3 * width)  # to queries, keys and values
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.add = AddSometimes(dropout)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        nn.init.zeros_(self.output.bias)

    def project(
        self, x: Tensor, positions: Tensor, asking: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the first ``asking`` tokens; keys and values of all, ``[b, s, d]``."""
        placed = x + positions
        weights, biases = self.projection.weight.chunk(3), self.projection.bias.chunk(3)
        sides = zip((placed[:, :asking], placed, x), weights, biases, strict=True)
        queries, keys, values = (functional.linear(*side) for side in sides)
        return queries, keys, values

    def update(self, x: Tensor, seen: tuple[Tensor, Tensor, Tensor], bias: Tensor) -> Tensor:
        """Tokens after the layer.

        Args:
            x: ``[b, i, d]`` tokens.
            seen: Their queries, and keys and values.
            bias: From `hiding`, ``[b, 1, 1 or i, s]``.
        """
        attended = attend(seen, bias, self.heads, self.dropout if self.training else 0.0)
        x = self.attention_norm(self.add(x, self.output(attended)))
        return self.feed_forward_norm(self.add(x, self.feed_forward(x)))


class Encoder(nn.ModuleList):
    """Encoder layers, one after another."""

    def __init__(self, depth: int, width: int, hidden: int, heads: int, dropout: float) -> None:
        """Build the layers."""
        super().__init__(EncoderLayer(width, hidden, heads, dropout) for _ in range(depth))

    def forward(
        self, x: Tensor, positions: Tensor, hidden: Tensor, asking: int | None = None
    ) -> Tensor:
        """Encode tokens.

        Args:
            x: ``[b, s, d]``.
            positions: Broadcasts to ``[b, s, d]``.
            hidden: ``[b, 1, 1 or s, s]`` bool: which token (last dimension) is hidden from which.
            asking: How many tokens are wanted; the others are left out of the last layer.

        Returns:
            ``[b, asking, d]``.
        """
        bias = hiding(hidden, x)
        for layer in self:
            wanted = asking if asking is not None and layer is self[-1] else x.shape[1]
            x = layer.update(
                x[:, :wanted], layer.project(x, positions, wanted), _of_first(bias, wanted)
            )
        return x

    def summaries(
        self, x: Tensor, positions: Tensor, hidden: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        """The first ``count`` tokens encoded, and the others, which in the last layer cost no
        backward pass: they carry no gradient. Arguments as of `forward`.
        """
        bias = hiding(hidden, x)
        *before, last = self
        for layer in before:
            x = layer.update(x, layer.project(x, positions, x.shape[1]), bias)
        queries, keys, values = last.project(x, positions, x.shape[1])
        summary = last.update(
            x[:, :count], (queries[:, :count], keys, values), bias[:, :, :count]
        )
        with torch.no_grad():
            seen = queries.detach()[:, count:], keys.detach(), values.detach()
            others = last.update(x.detach()[:, count:], seen, bias[:, :, count:])
        return summary, others


def _of_first(bias: Tensor, asking: int) -> Tensor:
    """``[b, 1, 1 or s, s]`` for the first tokens only."""
    return bias[:, :, :asking] if bias.shape[2] > 1 else bias


class Projection(nn.ModuleList):
    """Features of any width to the width of the detector: blocks of norm, dropout and linear layer,
    with ReLU between blocks.
    """

    def __init__(self, feature_width: int, width: int, depth: int, dropout: float) -> None:
        """Build the blocks."""
        widths = [feature_width] + [width] * depth
        super().__init__(
            nn.ModuleDict({"norm": nn.LayerNorm(before), "linear": nn.Linear(before, after)})
            for before, after in pairwise(widths)
        )
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """``[..., feature_width]`` to ``[..., d]``."""
        rate = self.dropout if self.training else 0.0
        for index, block in enumerate(self):
            x = functional.relu(x) if index else x
            x = block["linear"](dropout(block["norm"](x), rate))
        return x
