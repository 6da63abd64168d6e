"""Whole layers on a CPU, a few samples at a time; see `in_pieces` for why and for the parts.

Legend of all shapes: b samples, i tokens that ask, s tokens that are seen, t words, l clips, d
width, h heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tpokit_temporal.detector.in_pieces import Attention, FeedForward, Linear, Norm

_ROWS = 1280
"""Tokens of a piece, about: small enough for the cache, large enough for products of matrices."""


def works_on(x: Tensor) -> bool:
    """Whether the functions here are for such a tensor: on a CPU, with a backward pass to come (for
    inference torch's own attention is quicker), and not being compiled.
    """
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class Settings(NamedTuple):
    """Of a layer.

    Attributes:
        heads: h.
        rate: Of dropout; 0 outside training.
        asking: How many tokens, from the first, are wanted.
        taught: How many of these, from the first, get a gradient.
    """

    heads: int
    rate: float
    asking: int
    taught: int


class _Seen(NamedTuple):
    """Queries ``[b, i, d]``, keys ``[b, s, d]``, values ``[b, t, d]`` and bias of a piece."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor


class _Body:
    """Attention, output projection, norm, feed-forward, norm, with what is added in between."""

    def __init__(self, weights: tuple[Tensor, ...], settings: Settings, adds_normed: bool) -> None:
        """Take the weights.

        Args:
            weights: Of the output projection (2), first norm (2), feed-forward (5), last norm (2).
            settings: Of the layer.
            adds_normed: The feed-forward is added to what the first norm gives, else to what it
                takes.
        """
        self.output, self.norm = Linear(*weights[:2]), Norm(*weights[2:4])
        self.feed_forward = FeedForward(weights[4:9], settings.rate)
        self.last_norm = Norm(*weights[9:])
        self._settings, self._adds_normed = settings, adds_normed

    def forward(
        self, x: Tensor, seen: _Seen, kept: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Any]:
        """``[b, i, d]`` after the layer, and what the backward pass needs, the attention first.

        Args:
            x: ``[b, i, d]``.
            seen: What is attended to.
            kept: For each branch what it is multiplied with, ``[b, 1, 1]``.
        """
        attention = Attention(self._settings.heads, self._settings.rate)
        attended = attention.forward(*(part.to(self.output.weight.dtype) for part in seen))
        x = _add(x, self.output.forward(attended), kept, 0)
        normed, of_norm = self.norm.forward(x)
        inner, of_inner = self.feed_forward.forward(normed.flatten(0, 1))
        out, of_last = self.last_norm.forward(
            _add(normed if self._adds_normed else x, inner, kept, 1)
        )
        return out, (attention, attended, of_norm, of_inner, of_last, kept)

    def backward(
        self, grad: Tensor, state: Any, grad_mean: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Gradient of ``x``, and those of queries, keys and values.

        Args:
            grad: ``[b, i, d]``.
            state: From `forward`.
            grad_mean: ``[b, i, s]``, of the mean weights of the attention.
        """
        attention, attended, of_norm, of_inner, of_last, kept = state
        grad = self.last_norm.backward(grad, of_last)
        inner = self.feed_forward.backward(_branch(grad, kept, 1), of_inner).view_as(grad)
        if self._adds_normed:
            grad = self.norm.backward(inner.to(grad.dtype) + grad, of_norm)
        else:
            grad = self.norm.backward(inner.to(grad.dtype), of_norm).add_(grad)
        above = self.output.backward(_branch(grad, kept, 0), attended)
        return grad, attention.backward(above, grad_mean)

    def grads(self) -> tuple[Tensor, ...]:
        """Of the weights."""
        inner = self.feed_forward.grads()
        return *self.output.grads, *self.norm.grads, *inner, *self.last_norm.grads


def _add(x: Tensor, branch: Tensor, kept: tuple[Tensor, Tensor] | None, index: int) -> Tensor:
    branch = branch.view_as(x).to(x.dtype)
    return x + branch if kept is None else torch.addcmul(x, branch, kept[index])


def _branch(grad: Tensor, kept: tuple[Tensor, Tensor] | None, index: int) -> Tensor:
    return (grad if kept is None else grad * kept[index]).flatten(0, 1)


def _pieces(samples: int, tokens: int) -> Iterator[slice]:
    step = max(1, _ROWS // tokens)
    return (slice(start, min(start + step, samples)) for start in range(0, samples, step))


def _of(x: Tensor, piece: slice) -> Tensor:
    """The part of a tensor that belongs to a piece; one of a single sample belongs to all."""
    return x if len(x) == 1 else x[piece]


def _of_branches(kept: Tensor | None, piece: slice) -> tuple[Tensor, Tensor] | None:
    return None if kept is None else (kept[0, piece], kept[1, piece])


class _EncoderLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        positions: Tensor,
        bias: Tensor,
        kept: Tensor | None,
        plan: tuple[Settings, bool],
        *weights: Tensor,
    ) -> Tensor:
        settings, backward = plan
        asking, taught = settings.asking, settings.taught
        body = _Body(weights[2:], settings, adds_normed=True)
        query, key, value = _projections(weights)
        out = x.new_empty(len(x), asking, x.shape[-1])
        states = []
        for piece in _pieces(len(x), x.shape[1]):
            tokens = x[piece]
            placed = tokens + _of(positions, piece)
            shape = len(tokens), -1, x.shape[-1]
            asked = placed[:, :asking].flatten(0, 1)
            queries = query.forward(asked).view(shape)
            keys = key.forward(placed.flatten(0, 1)).view(shape)
            values = value.forward(tokens.flatten(0, 1)).view(shape)
            part_bias = _of(bias, piece)
            part_kept = _of_branches(kept, piece)
            for rows in (slice(taught), slice(taught, asking)):
                if rows.start == asking:
                    continue
                rows_bias = part_bias[:, :, rows] if bias.shape[2] > 1 else part_bias
                seen = _Seen(queries[:, rows], keys, values, rows_bias)
                out[piece, rows], state = body.forward(tokens[:, rows], seen, part_kept)
                if backward and rows.start is None:
                    states.append((piece, tokens, placed, state))
        ctx.save_for_backward(*weights)
        ctx.states, ctx.settings, ctx.shapes = states, settings, (x.shape, positions.shape)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, taught = ctx.saved_tensors, ctx.settings.taught
        body = _Body(weights[2:], ctx.settings, adds_normed=True)
        query, key, value = _projections(weights)
        shape, positions_shape = ctx.shapes
        back = grad.new_empty(shape)
        back_positions = grad.new_zeros(positions_shape) if ctx.needs_input_grad[1] else None
        for piece, tokens, placed, state in ctx.states:
            above, grads = body.backward(grad[piece, :taught].contiguous(), state)
            asked, seen, taken = (part.flatten(0, 1) for part in grads)
            of_placed = key.backward(seen, placed.flatten(0, 1)).view_as(tokens)
            of_asked = query.backward(asked, placed[:, :taught].flatten(0, 1))
            of_placed[:, :taught] += of_asked.view_as(above)
            part = back[piece]
            of_tokens = value.backward(taken, tokens.flatten(0, 1)).view_as(tokens)
            torch.add(of_tokens, of_placed, out=part)
            part[:, :taught] += above
            if back_positions is not None and len(back_positions) == 1:
                back_positions += of_placed.sum(0, keepdim=True)
            elif back_positions is not None:
                back_positions[piece] = of_placed
        sides = zip(query.grads, key.grads, value.grads, strict=True)
        projection = [torch.cat(side) for side in sides]
        return back, back_positions, None, None, None, *projection, *body.grads()


def _projections(weights: tuple[Tensor, ...]) -> list[Linear]:
    """To queries, keys and values."""
    return [Linear(*both) for both in zip(weights[0].chunk(3), weights[1].chunk(3), strict=True)]


def encoder_layer(
    x: Tensor,
    positions: Tensor,
    bias: Tensor,
    kept: Tensor | None,
    settings: Settings,
    weights: tuple[Tensor, ...],
) -> Tensor:
    """Self-attention and feed-forward.

    Args:
        x: ``[b, s, d]``.
        positions: ``[1 or b, s, d]``.
        bias: ``[1 or b, 1, 1 or s, s]``, minus infinity where a token is hidden.
        kept: ``[2, b, 1, 1]``, what each of the two branches is multiplied with; ``None``: 1.
        settings: Of the layer.
        weights: Projection to queries, keys and values (2), output projection (2), norm (2),
            feed-forward (5), norm (2).

    Returns:
        ``[b, asking, d]``.
    """
    weights = _in_one_type(weights, matrices=(0, 1, 2, 3, 6, 7, 8, 9, 10))
    plan = settings, torch.is_grad_enabled() and any(w.requires_grad for w in (x, *weights))
    return _EncoderLayer.apply(x, positions, bias, kept, plan, *weights)


class _TextToClips(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, clips: Tensor, positions: Tensor, keys: Tensor, words: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        bias, kept, (settings, backward), *weights = rest
        body = _Body(tuple(weights), settings, adds_normed=False)
        out = torch.empty_like(clips)
        mean = keys.new_empty(*clips.shape[:2], keys.shape[1])
        states = []
        for piece in _pieces(*clips.shape[:2]):
            tokens = clips[piece]
            seen = _Seen(tokens + positions[piece], keys[piece], words[piece], _of(bias, piece))
            out[piece], state = body.forward(tokens, seen, _of_branches(kept, piece))
            mean[piece] = state[0].mean_shares()
            if backward:
                states.append((piece, state))
        ctx.save_for_backward(*weights)
        ctx.states, ctx.settings = states, settings
        ctx.shapes = [clips.shape, keys.shape, words.shape]
        ctx.set_materialize_grads(False)
        return out, mean

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, grad_mean: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        weights = ctx.saved_tensors
        body = _Body(weights, ctx.settings, adds_normed=False)
        if grad is None:
            grad = weights[2].new_zeros(ctx.shapes[0])
        backs = [grad.new_empty(shape) for shape in ctx.shapes]
        back_positions = grad.new_empty(grad.shape) if ctx.needs_input_grad[1] else None
        for piece, state in ctx.states:
            part_mean = None if grad_mean is None else grad_mean[piece]
            above, (asked, seen, taken) = body.backward(grad[piece], state, part_mean)
            torch.add(above, asked, out=backs[0][piece])
            backs[1][piece], backs[2][piece] = seen, taken
            if back_positions is not None:
                back_positions[piece] = asked
        return backs[0], back_positions, backs[1], backs[2], None, None, None, *body.grads()


def text_to_clips_layer(
    clips: tuple[Tensor, Tensor],
    text: tuple[Tensor, Tensor],
    bias: Tensor,
    kept: Tensor | None,
    settings: Settings,
    weights: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """Adaptive cross-attention and feed-forward.

    Args:
        clips: ``[b, l, d]`` and their positions.
        text: Keys ``[b, s, d]``, and values ``[b, t, d]`` of the last t of them.
        bias: ``[1 or b, 1 or h, 1 or l, s]``, minus infinity where a token is hidden.
        kept: ``[2, b, 1, 1]``, what each of the two branches is multiplied with; ``None``: 1.
        settings: Of the layer.
        weights: Output projection (2), norm (2), feed-forward (5), norm (2).

    Returns:
        ``[b, l, d]`` and ``[b, l, s]``, the weights before dropout, mean over heads.
    """
    weights = _in_one_type(weights, matrices=(0, 1, 4, 5, 6, 7, 8))
    inputs = *clips, *text
    backward = any(tensor.requires_grad for tensor in (*inputs, *weights))
    plan = settings, torch.is_grad_enabled() and backward
    out, mean = _TextToClips.apply(*inputs, bias, kept, plan, *weights)
    return out, mean


def _in_one_type(weights: tuple[Tensor, ...], matrices: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Weights of matrix products as autocast wants them, the others as they are."""
    if not torch.is_autocast_enabled("cpu"):
        return weights
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(w.to(dtype) if place in matrices else w for place, w in enumerate(weights))
