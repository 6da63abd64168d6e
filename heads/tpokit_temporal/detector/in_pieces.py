"""Parts of a layer for a CPU, with their backward passes written out.

`layers_in_pieces` runs whole layers on a few samples at a time with them, so that what lies between
two matrix products stays in the cache, and autograd need not keep and move every intermediate
result. The numbers are those of torch's own operations, but: the slope of a PReLU gets its gradient
from one dot product, where torch spends more time than on a matrix product; and dropout compares 16
random bits with the rate, where torch draws a float for each element.

Legend of all shapes: n rows, d width, f width inside, b samples of a piece, i tokens that ask, s
tokens that are seen, t of them (the last ones) with values, h heads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_HALF = 2**15


class Dropout:
    """Which elements of a tensor stay.

    Attributes:
        scale: What is to be multiplied with what stays.
    """

    def __init__(self, shape: torch.Size, rate: float) -> None:
        """Draw 16 bits an element from torch's generator, none if the rate is 0."""
        self.scale = 1 / (1 - rate)
        self._below = min(round(2 * _HALF * (1 - rate)) - _HALF, _HALF - 1)
        self._bits: Tensor | None = None
        if rate:
            count = shape.numel()
            words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
            self._bits = words.view(torch.int16)[:count].view(shape)

    def kept(self, dtype: torch.dtype) -> Tensor | None:
        """1 for what stays and 0 for what is dropped; ``None`` if nothing is."""
        if self._bits is None:
            return None
        return torch.lt(self._bits, self._below, out=torch.empty(self._bits.shape, dtype=dtype))


def dropout_mask(x: Tensor, rate: float) -> Tensor:
    """What ``x`` is to be multiplied with, of its shape and type; ``rate`` above 0."""
    dropout = Dropout(x.shape, rate)
    kept = dropout.kept(x.dtype)
    assert kept is not None
    return kept.mul_(dropout.scale)


class Linear:
    """``x W^T + b``; sums up the gradients of both over pieces.

    Attributes:
        grads: Gradients of weight and bias so far, empty before the first.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Take ``[out, in]`` and ``[out]``."""
        self.weight, self.bias = weight, bias
        self.grads: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """``[n, in]`` to ``[n, out]``, in the type of the weight."""
        return torch.addmm(self.bias, x.to(self.weight.dtype), self.weight.t())

    def backward(self, grad: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        """Gradient ``[n, in]`` from that of ``scale`` times the product, ``[n, out]``."""
        self.add_grads(grad, x, scale)
        back = grad.to(self.weight.dtype) @ self.weight
        return back if scale == 1 else back.mul_(scale)

    def add_grads(self, grad: Tensor, x: Tensor, scale: float = 1.0) -> None:
        """Those of weight and bias alone; only the product was scaled."""
        grad, x = grad.to(self.weight.dtype), x.to(self.weight.dtype)
        if self.grads:
            kept = self.grads[0]  # not addmm_: the counter of operations of torch does not see it
            torch.addmm(kept, grad.t(), x, alpha=scale, out=kept)
            self.grads[1].add_(grad.sum(0))
        else:
            weight = grad.t() @ x
            self.grads = (weight if scale == 1 else weight.mul_(scale)), grad.sum(0)


class Norm:
    """Layer norm; sums up the gradients of weight and bias over pieces."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Take ``[d]`` each."""
        self.weight, self.bias = weight, bias
        self.grads: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``[..., d]``, and what the backward pass needs."""
        out, mean, scale = torch.native_layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-5)
        return out, (x, mean, scale)

    def backward(self, grad: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
        """Gradient ``[..., d]``."""
        x, mean, scale = kept
        back, weight, bias = torch.ops.aten.native_layer_norm_backward(
            grad, x, x.shape[-1:], mean, scale, self.weight, self.bias, [True, True, True]
        )
        if self.grads:
            self.grads[0].add_(weight)
            self.grads[1].add_(bias)
        else:
            self.grads = weight, bias
        return back


class FeedForward:
    """Linear layer, PReLU, dropout, linear layer."""

    def __init__(self, weights: tuple[Tensor, ...], rate: float) -> None:
        """Take first weight ``[f, d]`` and bias, slope ``[1]``, second weight ``[d, f]`` and bias.

        Args:
            weights: These five.
            rate: Of the dropout.
        """
        first, first_bias, self.slope, second, second_bias = weights
        self.first, self.second = Linear(first, first_bias), Linear(second, second_bias)
        self.rate = rate
        self._grad_slope: Tensor | float = 0.0

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Dropout]]:
        """``[n, d]``, and what the backward pass needs."""
        hidden = self.first.forward(x)
        dropout = Dropout(hidden.shape, self.rate)
        out = torch.addmm(
            self.second.bias,
            self._active(hidden, dropout.kept(hidden.dtype)),
            self.second.weight.t(),
            alpha=dropout.scale,
        )
        return out, (x, hidden, dropout)

    def _active(self, hidden: Tensor, kept: Tensor | None) -> Tensor:
        active = torch._prelu_kernel(hidden, self.slope)
        return active if kept is None else active.mul_(kept)

    def backward(self, grad: Tensor, state: tuple[Tensor, Tensor, Dropout]) -> Tensor:
        """Gradient ``[n, d]``."""
        x, hidden, dropout = state
        kept = dropout.kept(hidden.dtype)
        active = self._active(hidden, kept)
        inside = self.second.backward(grad, active, dropout.scale)
        if kept is not None:
            inside.mul_(kept)
        below = torch.clamp_max(hidden, 0, out=active)
        self._grad_slope = self._grad_slope + torch.dot(inside.view(-1), below.view(-1))
        inside = torch.ops.aten.leaky_relu_backward(inside, hidden, self.slope.item(), False)
        return self.first.backward(inside, x)

    def grads(self) -> tuple[Tensor, ...]:
        """Of the five weights."""
        assert isinstance(self._grad_slope, Tensor)
        return *self.first.grads, self._grad_slope.view(1), *self.second.grads


class Attention:
    """Scaled dot-product attention of several heads on one piece.

    Attributes:
        shares: ``[b h, i, s]`` weights before dropout.
    """

    def __init__(self, heads: int, rate: float) -> None:
        """Number of heads and rate of the dropout of weights."""
        self.heads, self.rate = heads, rate

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Attend.

        Args:
            queries: ``[b, i, d]``.
            keys: ``[b, s, d]``.
            values: ``[b, t, e]``; the tokens without a value are the first s - t.
            bias: ``[b, 1 or h, 1 or i, s]``, added to the scores: minus infinity where a token is
                hidden.

        Returns:
            ``[b i, e]``.
        """
        self._inputs = [self._split(x) for x in (queries, keys, values)]
        query, key, value = self._inputs
        self._factor = query.shape[-1] ** -0.5
        bias = bias.expand(-1, self.heads, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=self._factor)
        self.shares = scores.softmax(-1)
        self._dropout = Dropout(self.shares[..., -value.shape[1] :].shape, self.rate)
        out = torch.bmm(self._taken(self._dropout.kept(value.dtype)), value)
        return self._join(out if not self.rate else out.mul_(self._dropout.scale)).flatten(0, 1)

    def mean_shares(self) -> Tensor:
        """``[b, i, s]``, over heads."""
        return self.shares.unflatten(0, (-1, self.heads)).mean(1)

    def backward(self, grad: Tensor, grad_mean: Tensor | None = None) -> list[Tensor]:
        """Gradients of queries, keys and values, shaped as they are.

        Args:
            grad: ``[b i, e]``, of the result.
            grad_mean: ``[b, i, s]``, of `mean_shares`.
        """
        query, key, value = self._inputs
        above = self._split(grad.unflatten(0, (-1, query.shape[1])))
        if self.rate:
            above = above * self._dropout.scale
        kept = self._dropout.kept(value.dtype)
        grad_value = torch.bmm(self._taken(kept).transpose(1, 2), above)
        grad_shares = torch.bmm(above, value.transpose(1, 2))
        if kept is not None:
            grad_shares.mul_(kept)
        without = key.shape[1] - value.shape[1]
        if without:
            grad_shares = functional.pad(grad_shares, (without, 0))
        if grad_mean is not None:
            by_head = grad_shares.unflatten(0, (-1, self.heads))
            by_head.add_(grad_mean.unsqueeze(1), alpha=1 / self.heads)
        grad_scores = torch._softmax_backward_data(grad_shares, self.shares, -1, value.dtype)
        grad_scores.mul_(self._factor)
        grads = torch.bmm(grad_scores, key), torch.bmm(grad_scores.transpose(1, 2), query)
        return [self._join(x) for x in (*grads, grad_value)]

    def _taken(self, kept: Tensor | None) -> Tensor:
        shares = self.shares[..., -self._inputs[2].shape[1] :]
        return shares if kept is None else shares * kept

    def _split(self, x: Tensor) -> Tensor:
        """``[b, i, d]`` to ``[b h, i, d / h]``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)

    def _join(self, x: Tensor) -> Tensor:
        """``[b h, i, d / h]`` to ``[b, i, d]``."""
        return x.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)
