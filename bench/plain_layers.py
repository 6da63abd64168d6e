"""Layers of CG-DETR computed plainly, the way the released code does; see `plain_cg_detr.py`.

Written from a description of wjun0830/CGDETR (cg_detr/transformer.py, cg_detr/attention.py,
cg_detr/crossattention.py): sequence first, attention with its weights. Parameters have their
released names.

Legend of all shapes: b samples, i tokens, l clips, s dummies and words, d width, h heads, q
queries, y decoder layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class DropPath(nn.Module):
    """Leaves out a branch ``[i, b, d]`` for some samples."""

    def __init__(self, rate: float) -> None:
        """Keep the rate."""
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """``[i, b, d]``."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(1, x.shape[1], 1, device=x.device, dtype=x.dtype) + 1 - self.rate
        return x / (1 - self.rate) * kept.floor()


class Mlp(nn.Module):
    """Linear layers with ReLU in between."""

    def __init__(self, *widths: int) -> None:
        """Build the layers."""
        super().__init__()
        self.layers = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., widths[0]]``."""
        for index, layer in enumerate(self.layers):
            x = layer(x) if index == len(self.layers) - 1 else functional.relu(layer(x))
        return x


class InputBlock(nn.Module):
    """Norm, dropout, linear layer, and ReLU unless it is the last."""

    def __init__(self, width_in: int, width: int, rate: float, last: bool) -> None:
        """Build the block."""
        super().__init__()
        self.LayerNorm = nn.LayerNorm(width_in)
        self.net = nn.Sequential(nn.Dropout(rate), nn.Linear(width_in, width))
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """``[b, i, width_in]``."""
        x = self.net(self.LayerNorm(x))
        return x if self.last else functional.relu(x)


class FeedForwardPart(nn.Module):
    """What all layers have: the feed-forward, two norms, two drop-paths."""

    def __init__(self, width: int, inner: int, rate: float) -> None:
        """Build the parts."""
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.activation, self.dropout = nn.PReLU(), nn.Dropout(rate)
        self.norm2 = nn.LayerNorm(width)
        self.dropout1, self.dropout2 = DropPath(rate), DropPath(rate)

    def feed_forward(self, x: Tensor) -> Tensor:
        """``[i, b, d]``."""
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class EncoderLayer(FeedForwardPart):
    """Self-attention and feed-forward."""

    def __init__(self, width: int, heads: int, inner: int, rate: float) -> None:
        """Build the layer."""
        super().__init__(width, inner, rate)
        self.self_attn = nn.MultiheadAttention(width, heads, dropout=rate)
        self.norm1 = nn.LayerNorm(width)

    def forward(self, x: Tensor, hidden: Tensor, position: Tensor) -> Tensor:
        """``[i, b, d]``; ``hidden`` ``[b, i]``."""
        placed = x + position
        attended = self.self_attn(placed, placed, value=x, key_padding_mask=hidden)[0]
        x = self.norm1(x + self.dropout1(attended))
        return self.norm2(x + self.dropout2(self.feed_forward(x)))


class Encoder(nn.Module):
    """Layers, one after another."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        """Keep them."""
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, hidden: Tensor, position: Tensor) -> Tensor:
        """``[i, b, d]``."""
        for layer in self.layers:
            x = layer(x, hidden, position)
        return x


class HeadAttention(nn.Module):
    """Attention without input projections, written out; only an output projection."""

    def __init__(self, width: int, heads: int, rate: float) -> None:
        """Build the layer."""
        super().__init__()
        self.out_proj = nn.Linear(width, width)
        self.heads, self.rate = heads, rate

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, skipped: int = 0
    ) -> tuple[Tensor, Tensor]:
        """``[i, b, d]`` and mean weights ``[b, i, s]``; the first ``skipped`` keys have no value.

        ``hidden``: ``[b h, i, s]`` bool.
        """
        i, b, _ = query.shape

        def by_head(x: Tensor) -> Tensor:
            width = x.shape[-1] // self.heads
            return x.contiguous().view(len(x), b * self.heads, width).transpose(0, 1)

        scale = (query.shape[-1] // self.heads) ** -0.5
        scores = torch.bmm(by_head(query * scale), by_head(key).transpose(1, 2))
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        shares = scores.softmax(-1)
        taken = functional.dropout(shares, self.rate, self.training)[..., skipped:]
        out = torch.bmm(taken, by_head(value)[:, skipped:])
        out = self.out_proj(out.transpose(0, 1).contiguous().view(i, b, -1))
        return out, shares.view(b, self.heads, i, -1).mean(1)


class TextToClipsLayer(FeedForwardPart):
    """Adaptive cross-attention."""

    def __init__(self, width: int, heads: int, inner: int, rate: float) -> None:
        """Build the layer."""
        super().__init__(width, inner, rate)
        self.self_attn = HeadAttention(width, heads, rate)
        self.norm1 = nn.LayerNorm(width)
        self.heads = heads

    def forward(
        self, x: Tensor, hidden: Tensor, position: Tensor, clips: int, dummies: int
    ) -> tuple[Tensor, Tensor]:
        """``[l + s, b, d]``, of which only the l clips change; and ``[b, l, s]``."""
        placed = x + position
        padded = hidden[:, :clips, None] & hidden[:, None, clips:]
        mask = padded.repeat(self.heads, 1, 1)
        mask = mask | hidden[:, None, clips:].repeat_interleave(self.heads, 0)
        attended, shares = self.self_attn(
            placed[:clips], placed[clips:], x[clips:], mask, min(dummies, len(x) - clips)
        )
        taken = x[:clips] + self.dropout1(attended)
        taken = self.norm2(taken + self.dropout2(self.feed_forward(self.norm1(taken))))
        return torch.cat([taken, x[clips:]]), shares


class TextToClips(nn.Module):
    """Its layers."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        """Keep them."""
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, x: Tensor, hidden: Tensor, position: Tensor, clips: int, dummies: int
    ) -> tuple[Tensor, Tensor]:
        """``[l + s, b, d]`` and mean weights ``[b, l, s]``."""
        total: Tensor | None = None
        for layer in self.layers:
            x, shares = layer(x, hidden, position, clips, dummies)
            total = shares if total is None else total + shares
        assert total is not None
        return x, total / len(self.layers)


class DecoderLayer(FeedForwardPart):
    """Attention among queries and to clips."""

    def __init__(self, width: int, heads: int, inner: int, rate: float, first: bool) -> None:
        """Build the layer."""
        super().__init__(width, inner, rate)
        names = ["sa_qcontent", "sa_qpos", "sa_kcontent", "sa_kpos", "sa_v", "ca_qcontent"]
        names += ["ca_kcontent", "ca_kpos", "ca_v", "ca_qpos_sine"] + ["ca_qpos"] * first
        for name in names:
            setattr(self, f"{name}_proj", nn.Linear(width, width))
        self.self_attn = HeadAttention(width, heads, rate)
        self.cross_attn = HeadAttention(width, heads, rate)
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout3 = DropPath(rate)
        self.heads, self.first = heads, first

    def forward(
        self, x: Tensor, memory: Tensor, hidden: Tensor, places: Tensor, query: Sequence[Tensor]
    ) -> Tensor:
        """``[q, b, d]``; ``query``: position and scaled sines, ``[q, b, d]`` each."""
        position, sines = query
        asked = self.sa_qcontent_proj(x) + self.sa_qpos_proj(position)
        key = self.sa_kcontent_proj(x) + self.sa_kpos_proj(position)
        attended = self.self_attn(asked, key, self.sa_v_proj(x), None)[0]
        x = self.norm1(x + self.dropout1(attended))
        asked, key = self.ca_qcontent_proj(x), self.ca_kcontent_proj(memory)
        value, place = self.ca_v_proj(memory), self.ca_kpos_proj(places)
        if self.first:
            asked, key = asked + self.ca_qpos_proj(position), key + place
        mask = hidden[:, None].repeat_interleave(self.heads, 0)
        attended = self.cross_attn(
            self._side_by_side(asked, self.ca_qpos_sine_proj(sines)),
            self._side_by_side(key, place),
            value,
            mask,
        )[0]
        x = self.norm2(x + self.dropout2(attended))
        return self.norm3(x + self.dropout3(self.feed_forward(x)))

    def _side_by_side(self, content: Tensor, place: Tensor) -> Tensor:
        split = [x.unflatten(-1, (self.heads, -1)) for x in (content, place)]
        return torch.cat(split, -1).flatten(2)


class Decoder(nn.Module):
    """Layers with anchors."""

    def __init__(self, layers: Sequence[nn.Module], width: int) -> None:
        """Keep the layers."""
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)
        self.query_scale, self.ref_point_head = Mlp(width, width, width), Mlp(width, width, width)
        self.bbox_embed, self.ref_anchor_head = Mlp(width, width, width, 2), Mlp(width, width, 1)

    def forward(
        self, start: Tensor, memory: Tensor, hidden: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``[y, b, q, d]`` and anchors ``[y, b, q, 2]``."""
        anchors = start.unsqueeze(1).repeat(1, memory.shape[1], 1).sigmoid()
        x = memory.new_zeros(*anchors.shape[:2], memory.shape[-1])
        contents, references = [], [anchors]
        for index, layer in enumerate(self.layers):
            sines = torch.cat([sine(anchors[..., part], x.shape[-1] // 2) for part in (0, 1)], -1)
            position = self.ref_point_head(sines)
            sines = sines * (self.query_scale(x) if index else 1)
            sines = sines * (self.ref_anchor_head(x).sigmoid() / anchors[..., 1:])
            x = layer(x, memory, hidden, places, (position, sines))
            contents.append(self.norm(x))
            anchors = (self.bbox_embed(x) + inverse_sigmoid(anchors)).sigmoid()
            references.append(anchors)
            anchors = anchors.detach()
        return torch.stack(contents).transpose(1, 2), torch.stack(references[:-1]).transpose(1, 2)


def sine(place: Tensor, width: int) -> Tensor:
    """Sine embedding of numbers in [0, 1]: ``[...]`` to ``[..., width]``."""
    index = torch.arange(width, dtype=torch.float32, device=place.device)
    angles = place[..., None] * (2 * math.pi) / 10000 ** (2 * (index // 2) / width)
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), -1).flatten(-2)


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Logit, cut at 0.001 from both ends."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=1e-3) / (1 - x).clamp(min=1e-3))
