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

from tpokit_temporal.detector import in_pieces, layers_in_pieces

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
    if layers_in_pieces.works_on(x):
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
    queries, keys, values = (split_heads(x, heads) for x in tokens)
    bias = None if bias is None else bias.to(queries.dtype)
    return join_heads(
        functional.scaled_dot_product_attention(queries, keys, values, bias, dropout_p=rate)
    )


def kept_branches(count: int, x: Tensor, rate: float) -> Tensor | None:
    """Stochastic depth: which samples keep which branch.

    Args:
        count: Number of branches.
        x: ``[b, i, d]`` tokens that the branches are added to.
        rate: Share of samples that go without, for each branch; 0 outside training.

    Returns:
        ``[count, b, 1, 1]`` what a branch is to be multiplied with, 0 or a bit more than 1;
        ``None`` for 1.
    """
    if not rate:
        return None
    return (
        torch.empty(count, len(x), 1, 1, dtype=x.dtype, device=x.device)
        .bernoulli_(1 - rate)
        .div_(1 - rate)
    )


def add_branch(x: Tensor, branch: Tensor, kept: Tensor | None, index: int) -> Tensor:
    """``x + branch``, with branch ``index`` of `kept_branches`."""
    return x + branch if kept is None else torch.addcmul(x, branch, kept[index].to(branch.dtype))


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU in between, the first from ``widths[0]`` to ``widths[1]``."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


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
        hidden = functional.prelu(self.first(x), self.slope)
        return self.second(dropout(hidden, self.dropout if self.training else 0.0))


def weights_of(*modules: nn.Linear | nn.LayerNorm | FeedForward) -> tuple[Tensor, ...]:
    """In the order that `layers_in_pieces` wants: weight and bias of each."""
    found: list[Tensor] = []
    for module in modules:
        if isinstance(module, FeedForward):
            first, second = module.first, module.second
            found += [first.weight, first.bias, module.slope, second.weight, second.bias]
        else:
            found += [module.weight, module.bias]
    return tuple(found)


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
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        nn.init.zeros_(self.output.bias)

    def forward(
        self, x: Tensor, positions: Tensor, bias: Tensor, asking: int, taught: int
    ) -> Tensor:
        """Tokens after the layer.

        Args:
            x: ``[b, s, d]``.
            positions: ``[1 or b, s, d]``.
            bias: From `hiding`, ``[1 or b, 1, 1 or s, s]``.
            asking: How many tokens are wanted.
            taught: How many of them, from the first, have a gradient; the others cost no backward
                pass and must not be taken for more than values.

        Returns:
            ``[b, asking, d]``.
        """
        rate = self.dropout if self.training else 0.0
        kept = kept_branches(2, x, rate)
        if layers_in_pieces.works_on(x):
            settings = layers_in_pieces.Settings(self.heads, rate, asking, taught)
            weights = weights_of(
                self.projection,
                self.output,
                self.attention_norm,
                self.feed_forward,
                self.feed_forward_norm,
            )
            return layers_in_pieces.encoder_layer(x, positions, bias, kept, settings, weights)
        placed = x + positions
        sides = zip(self.projection.weight.chunk(3), self.projection.bias.chunk(3), strict=True)
        inputs = placed[:, :asking], placed, x
        seen = [functional.linear(y, *side) for y, side in zip(inputs, sides, strict=True)]
        x = x[:, :asking]
        if taught == asking:
            return self._update(x, seen, bias, kept)
        parts = []
        for rows, learning in ((slice(taught), True), (slice(taught, asking), False)):
            part_bias = bias[:, :, rows] if bias.shape[2] > 1 else bias
            with torch.set_grad_enabled(learning and torch.is_grad_enabled()):
                part = [seen[0][:, rows], *seen[1:]]
                parts.append(self._update(x[:, rows], part, part_bias, kept))
        return torch.cat(parts, 1)

    def _update(
        self, x: Tensor, seen: Sequence[Tensor], bias: Tensor, kept: Tensor | None
    ) -> Tensor:
        queries, keys, values = seen
        rate = self.dropout if self.training else 0.0
        attended = attend((queries, keys, values), bias, self.heads, rate)
        x = self.attention_norm(add_branch(x, self.output(attended), kept, 0))
        return self.feed_forward_norm(add_branch(x, self.feed_forward(x), kept, 1))


class Encoder(nn.ModuleList):
    """Encoder layers, one after another."""

    def __init__(self, depth: int, width: int, hidden: int, heads: int, dropout: float) -> None:
        """Build the layers."""
        super().__init__(EncoderLayer(width, hidden, heads, dropout) for _ in range(depth))

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        hidden: Tensor,
        asking: int | None = None,
        taught: int | None = None,
    ) -> Tensor:
        """Encode tokens.

        Args:
            x: ``[b, s, d]``.
            positions: ``[1 or b, s, d]``.
            hidden: ``[1 or b, 1, 1 or s, s]`` bool: which token (last dimension) is hidden from
                which.
            asking: How many tokens are wanted, default all; the others are left out of the last
                layer.
            taught: How many of these have a gradient, default all; see `EncoderLayer.forward`.

        Returns:
            ``[b, asking, d]``.
        """
        bias = hiding(hidden, x)
        count = x.shape[1]
        *before, last = self
        for layer in before:
            x = layer(x, positions, bias, count, count)
        asking = count if asking is None else asking
        return last(x, positions, bias, asking, asking if taught is None else taught)


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
