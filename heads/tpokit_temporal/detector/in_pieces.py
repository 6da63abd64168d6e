"""Feed-forward and attention on a CPU, in pieces that stay in its cache.

The same numbers as torch's own operations, but: what lies between two matrix products never leaves
the cache; the slope of a PReLU gets its gradient from one dot product, where torch spends more time
than on a matrix product; and dropout compares 16 random bits with the rate, where torch draws a
float for each element. Forward and backward are written out, because autograd would keep and move
every intermediate result.

Legend of all shapes: n rows, d width, f width inside, b samples, i tokens that ask, s tokens that
are seen, t of them (the last ones) with values, h heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_ROWS = 256
"""Rows of a piece of a feed-forward; 1 MB for each buffer at f = 1024."""
_HALF = 2**15


def works_on(x: Tensor) -> bool:
    """Whether the functions here are for such a tensor: on a CPU, and not being compiled."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class _Dropout:
    """Which elements of a tensor stay.

    Attributes:
        scale: What is to be multiplied with what stays.
    """

    def __init__(self, shape: tuple[int, ...], rate: float) -> None:
        """Draw 16 bits an element from torch's generator, none if the rate is 0."""
        self.scale = 1 / (1 - rate)
        self._below = min(round(2 * _HALF * (1 - rate)) - _HALF, _HALF - 1)
        self._bits: Tensor | None = None
        if rate:
            count = torch.Size(shape).numel()
            words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
            self._bits = words.view(torch.int16)[:count].view(shape)

    def kept(self, index: slice | int, like: Tensor) -> Tensor:
        """1 for what stays and 0 for what is dropped, at an index of the first dimension."""
        bits = self._bits[index] if self._bits is not None else None
        if bits is None:
            return torch.ones_like(like)
        return torch.lt(bits, self._below, out=torch.empty(bits.shape, dtype=like.dtype))

    def apply_(self, index: slice | int, *tensors: Tensor) -> None:
        """Set what is dropped to 0, in place and without scaling, if anything is.

        Args:
            index: Of the first dimension of the whole.
            tensors: Elements there, of one type.
        """
        if self._bits is not None:
            kept = self.kept(index, tensors[0])
            for tensor in tensors:
                tensor.mul_(kept)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rate: float, keep: bool, *weights: Tensor
    ) -> Tensor:
        first, first_bias, slope, second, second_bias = weights
        n, f = len(x), len(first)
        dropout = _Dropout((n, f), rate)
        out = x.new_empty(n, len(second))
        hidden = x.new_empty(n if keep else min(n, _ROWS), f)
        for start in range(0, n, _ROWS):
            part = slice(start, min(start + _ROWS, n))
            inside = hidden[part] if keep else hidden[: part.stop - start]
            torch.addmm(first_bias, x[part], first.t(), out=inside)
            active = torch._prelu_kernel(inside, slope)
            dropout.apply_(part, active)
            torch.addmm(second_bias, active, second.t(), alpha=dropout.scale, out=out[part])
        ctx.save_for_backward(x, hidden, first, slope, second)
        ctx.dropout = dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, first, slope, second = ctx.saved_tensors
        dropout, steepness = ctx.dropout, float(slope)
        grad = grad.contiguous()
        scaled = grad * dropout.scale
        grad_x = torch.empty_like(x)
        grad_first, grad_second = torch.zeros_like(first), torch.zeros_like(second)
        grad_first_bias, grad_slope = first.new_zeros(len(first)), slope.new_zeros(())
        for start in range(0, len(x), _ROWS):
            part = slice(start, min(start + _ROWS, len(x)))
            inside = hidden[part]
            active = torch._prelu_kernel(inside, slope)
            grad_inside = scaled[part] @ second
            dropout.apply_(part, active, grad_inside)
            grad_second.addmm_(scaled[part].t(), active)
            below = torch.clamp_max(inside, 0, out=active)
            grad_slope += torch.dot(grad_inside.view(-1), below.view(-1))
            grad_inside = torch.ops.aten.leaky_relu_backward(grad_inside, inside, steepness, False)
            grad_first.addmm_(grad_inside.t(), x[part])
            grad_first_bias += grad_inside.sum(0)
            torch.mm(grad_inside, first, out=grad_x[part])
        grads = grad_first, grad_first_bias, grad_slope.view_as(slope), grad_second, grad.sum(0)
        return grad_x, None, None, *grads


def feed_forward(x: Tensor, weights: tuple[Tensor, ...], dropout: float) -> Tensor:
    """Linear layer, PReLU, dropout, linear layer: ``[..., d]`` to ``[..., d]``.

    Args:
        x: On a CPU.
        weights: First weight ``[f, d]`` and bias ``[f]``, slope ``[1]``, second weight ``[d, f]``
            and bias ``[d]``.
        dropout: Share that is dropped; 0 outside training.
    """
    x, *rest = _in_one_type(x, *weights)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *rest))
    return _FeedForward.apply(x.flatten(0, -2), dropout, keep, *rest).view(x.shape)


def _parts(x: Tensor, heads: int) -> list[Tensor]:
    """Views of ``[b, i, h c]`` that a batched product takes without a copy: ``[b, i, c]`` for each
    head; for a single sample one of ``[h, i, c]``.
    """
    split = x.unflatten(-1, (heads, -1))
    return [split[0].transpose(0, 1)] if len(x) == 1 else list(split.unbind(2))


def _bias_parts(bias: Tensor, heads: int, samples: int) -> list[Tensor]:
    """The same of ``[b, 1 or h, 1 or i, s]``."""
    return [bias[0]] if samples == 1 else list(bias.expand(-1, heads, -1, -1).unbind(1))


class _Settings(NamedTuple):
    """Of an attention: number of heads, dropout, whether the mean over heads is asked for, whether
    there will be a backward pass.
    """

    heads: int
    rate: float
    averaged: bool
    keep: bool


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, settings: _Settings
    ) -> tuple[Tensor, Tensor | None]:
        (b, i, d), s, t = queries.shape, keys.shape[1], values.shape[1]
        heads, rate, averaged, keep = settings
        out = values.new_empty(b, i, values.shape[-1])
        mean = queries.new_zeros(b, i, s) if averaged else None
        parts = [_parts(x, heads) for x in (queries, keys, values, out)]
        count, each = (1, heads) if b == 1 else (heads, b)
        shares = queries.new_empty(count if keep else 1, each, i, s)
        dropout = _Dropout((count, each, i, t), rate)
        biases = _bias_parts(bias, heads, b)
        for part, (query, key, value, result) in enumerate(zip(*parts, strict=True)):
            share = shares[part if keep else 0]
            scores = torch.baddbmm(
                biases[part], query, key.transpose(1, 2), alpha=(d // heads) ** -0.5
            )
            torch.softmax(scores, -1, out=share)
            if mean is not None:
                mean.add_(share.sum(0) if b == 1 else share, alpha=1 / heads)
            taken = share[..., s - t :]
            if rate:
                taken = taken.clone(memory_format=torch.contiguous_format)
                dropout.apply_(part, taken)
            torch.mul(torch.bmm(taken, value), dropout.scale, out=result)
        ctx.save_for_backward(queries, keys, values, shares)
        ctx.settings, ctx.dropout = settings, dropout
        ctx.set_materialize_grads(False)
        return out, mean

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, grad_mean: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        queries, keys, values, shares = ctx.saved_tensors
        heads, rate = ctx.settings.heads, ctx.settings.rate
        b, d, s, t = len(queries), queries.shape[-1], keys.shape[1], values.shape[1]
        grad = values.new_zeros(*queries.shape[:2], values.shape[-1]) if grad is None else grad
        grad = grad * ctx.dropout.scale
        grads = [torch.empty_like(x) for x in (queries, keys, values)]
        parts = [_parts(x, heads) for x in (queries, keys, values, grad, *grads)]
        for part, (query, key, value, above, *results) in enumerate(zip(*parts, strict=True)):
            share = shares[part]
            taken = share[..., s - t :]
            grad_taken = torch.bmm(above, value.transpose(1, 2))
            if rate:
                taken = taken.clone(memory_format=torch.contiguous_format)
                ctx.dropout.apply_(part, taken, grad_taken)
            results[2].copy_(torch.bmm(taken.transpose(1, 2), above))
            grad_share = grad_taken if t == s else functional.pad(grad_taken, (s - t, 0))
            if grad_mean is not None:
                grad_share.add_(grad_mean, alpha=1 / heads)
            grad_scores = torch._softmax_backward_data(grad_share, share, -1, share.dtype)
            grad_scores.mul_((d // heads) ** -0.5)
            results[0].copy_(torch.bmm(grad_scores, key))
            results[1].copy_(torch.bmm(grad_scores.transpose(1, 2), query))
        return *grads, None, None


def attention(
    tokens: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None,
    heads: int,
    dropout: float,
    averaged: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention of several heads.

    Args:
        tokens: Queries ``[b, i, d]``, keys ``[b, s, d]`` and values ``[b, t, e]`` on a CPU; the
            tokens without a value are the first s - t.
        bias: ``[b, 1 or h, 1 or i, s]``, added to the scores: minus infinity where a token is
            hidden; ``None``: nothing is.
        heads: h.
        dropout: Share of the weights that is dropped; 0 outside training.
        averaged: Give the weights, too.

    Returns:
        ``[b, i, e]``, and the mean over heads of the weights before dropout ``[b, i, s]``.
    """
    queries, keys, values = _in_one_type(*tokens)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (queries, keys, values))
    bias = queries.new_zeros(1, 1, 1, 1) if bias is None else bias.to(queries.dtype)
    settings = _Settings(heads, dropout, averaged, keep)
    out, mean = _Attention.apply(queries, keys, values, bias, settings)
    return out, mean


def dropout_mask(x: Tensor, rate: float) -> Tensor:
    """What ``x`` is to be multiplied with, of its shape and type: 0, or a bit more than 1."""
    dropout = _Dropout(x.shape, rate)
    return dropout.kept(slice(None), x).mul_(dropout.scale)


def _in_one_type(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As autocast would for a matrix product; what is in the right type stays as it is."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors)
