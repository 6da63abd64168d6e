"""CG-DETR computed plainly, the way the released code does: what `temporal_head.py` compares with.

Written from a description of wjun0830/CGDETR (cg_detr/model.py): what is needed twice is computed
twice (both groups of the moment encoder, both sequences of the sentence encoder, the whole second
pass for negatives with its decoder, whose result nobody reads), and there are loops over samples.
Parameters have their released names.

Legend of all shapes: b samples, l clips, v and w widths of features, t words, n dummies, s = n + t,
d width, q queries, y decoder layers.
"""

from __future__ import annotations

from typing import Any

import torch
from plain_layers import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    InputBlock,
    Mlp,
    TextToClips,
    TextToClipsLayer,
    inverse_sigmoid,
)
from torch import Tensor, nn
from torch.nn import functional

from tpokit_temporal.options import TemporalOptions


class PlainTransformer(nn.Module):
    """Everything behind the projections."""

    def __init__(self, options: TemporalOptions) -> None:
        """Build the encoders and the decoder."""
        super().__init__()
        d, heads, inner, rate = (
            options.width,
            options.heads,
            options.feed_forward,
            options.dropout,
        )
        args = d, heads, inner, rate
        self.used = options.global_tokens_used
        self.dummies = options.dummies
        self.mcls_encoder = Encoder([EncoderLayer(*args) for _ in range(options.moment_layers)])
        self.t2v_encoder = TextToClips(
            [TextToClipsLayer(*args) for _ in range(options.text_to_clips_layers)]
        )
        self.encoder = Encoder([EncoderLayer(*args) for _ in range(options.encoder_layers)])
        self.decoder = Decoder(
            [DecoderLayer(*args, first=not index) for index in range(options.decoder_layers)], d
        )

    def forward(
        self, sequence: Tensor, mask: Tensor, positions: Tensor, clips: int, video: dict[str, Any]
    ) -> dict[str, Tensor]:
        """``[b, l + s, d]``; ``video`` has the context, the pool, its position and the queries."""
        x, placed, hidden = sequence.transpose(0, 1), positions.transpose(0, 1), ~mask
        read, shares = self.t2v_encoder(x, hidden, placed, clips, self.dummies)
        summary = self._global_token(sequence[:, :clips], shares, video)
        position = video["position"].unsqueeze(1).repeat(1, len(sequence), 1)
        none = torch.zeros(len(sequence), 1, dtype=torch.bool, device=mask.device)
        summary, _ = self.t2v_encoder(summary, none, position, clips, 0)
        x = torch.cat([summary, read[:clips]])
        hidden = torch.cat([none, hidden[:, :clips]], 1)
        encoded = self.encoder(x, hidden, torch.cat([position, placed[:clips]]))
        memory = encoded[1:] + encoded[:1]
        contents, anchors = self.decoder(video["queries"], memory, hidden[:, 1:], placed[:clips])
        return {
            "contents": contents,
            "anchors": anchors,
            "memory": memory.transpose(0, 1),
            "summary": encoded[0],
            "shares": shares,
        }

    def _global_token(self, clips: Tensor, shares: Tensor, video: dict[str, Any]) -> Tensor:
        context, pool = video["context"], video["pool"]
        likeness = functional.normalize(clips - context, dim=2) @ functional.normalize(pool).T
        importance = shares[:, :, self.dummies :].sum(2).clone().detach()
        for row, length in enumerate(video["lengths"]):
            importance[row, length:] *= 0
        importance = importance / importance.sum(1, keepdim=True) * importance.shape[1]
        scores = (likeness.softmax(-1) * importance.unsqueeze(2)).mean(1)
        best, indices = scores.topk(self.used, dim=1)
        token = torch.zeros(len(clips), clips.shape[-1], device=clips.device)
        for row in range(len(clips)):
            token[row] = (best[row].unsqueeze(1) * pool[indices[row]]).sum(0)
        return token.unsqueeze(0) + context.transpose(0, 1)


class PlainCgDetr(nn.Module):
    """The network; ``state_dict`` has the released names without the unused ones."""

    def __init__(self, options: TemporalOptions, clip_width: int, word_width: int) -> None:
        """Build it."""
        super().__init__()
        d, count, rate = options.width, options.projection_layers, options.input_dropout

        def projection(width: int) -> nn.Sequential:
            last = count - 1
            blocks = [InputBlock(d if i else width, d, rate, i == last) for i in range(count)]
            return nn.Sequential(*blocks)

        def text_encoder(depth: int) -> Encoder:
            layers = [EncoderLayer(d, 8, options.feed_forward, 0.1) for _ in range(depth)]
            return Encoder(layers)

        self.options = options
        self.transformer = PlainTransformer(options)
        self.input_vid_proj, self.input_txt_proj = projection(clip_width), projection(word_width)
        self.txtproj_encoder = text_encoder(options.dummy_layers)
        self.scls_encoder = text_encoder(options.sentence_layers)
        self.token_type_embeddings = nn.Embedding(2, d)
        self.query_embed = nn.Embedding(options.queries, 2)
        self.span_embed, self.class_embed = Mlp(d, d, d, 2), nn.Linear(d, 2)
        self.saliency_proj1, self.saliency_proj2 = nn.Linear(d, d), nn.Linear(d, d)
        self.global_rep_token = nn.Parameter(torch.randn(options.global_tokens, d))
        self.global_rep_pos = nn.Parameter(torch.randn(1, d))
        self.dummy_rep_token = nn.Parameter(torch.randn(options.dummies, d))
        self.dummy_rep_pos = nn.Parameter(torch.randn(options.dummies, d))
        for name in ("moment", "sent"):
            setattr(self, f"{name}_rep_token", nn.Parameter(torch.randn(d)))
            setattr(self, f"{name}_rep_pos", nn.Parameter(torch.randn(d)))

    def forward(
        self,
        clips: Tensor,
        clip_mask: Tensor,
        words: Tensor,
        word_mask: Tensor,
        relevant: Tensor | None = None,
        videos: list[str] | None = None,
    ) -> dict[str, Any]:
        """Detect.

        Args:
            clips: ``[b, l, v]``.
            clip_mask: ``[b, l]`` bool.
            words: ``[b, t, w]``.
            word_mask: ``[b, t]`` bool.
            relevant: ``[b, l]``, for training.
            videos: Name of the video of each sample, for negatives.
        """
        b, length = clip_mask.shape
        types = self.token_type_embeddings
        clips = self.input_vid_proj(clips) + types(torch.ones_like(clip_mask, dtype=torch.long))
        words = self.input_txt_proj(words) + types(torch.zeros_like(word_mask, dtype=torch.long))
        places = self._places(clip_mask, clips.shape[-1])
        n = self.options.dummies
        dummies = self.dummy_rep_token.unsqueeze(0).repeat(b, 1, 1)
        text_places = torch.cat(
            [self.dummy_rep_pos.unsqueeze(0).repeat(b, 1, 1), torch.zeros_like(words)], 1
        )
        always = torch.ones(b, n, dtype=torch.bool, device=clip_mask.device)
        text_mask = torch.cat([always, word_mask], 1)
        text = torch.cat([dummies, words], 1)
        encoded = self._encode(self.txtproj_encoder, text, text_mask, text_places)
        dummies = encoded[:, :n]
        text = torch.cat([dummies, words], 1)
        context = torch.zeros(b, 1, clips.shape[-1], device=clips.device)
        for row in range(b):
            context[row] = clips[row, : int(clip_mask[row].sum())].mean(0).clone().detach()
        video = {
            "context": context,
            "pool": self.global_rep_token,
            "position": self.global_rep_pos,
            "queries": self.query_embed.weight,
            "lengths": clip_mask.sum(1).long(),
        }
        found: dict[str, Any] = {"dummies": dummies, "pool": self.global_rep_token}
        if relevant is not None:
            side = (clips, clip_mask, places)
            found |= self._alignment(side, (text, text_mask, text_places), relevant)
        positions = torch.cat([places, text_places], 1)
        mask = torch.cat([clip_mask, text_mask], 1)
        read = self.transformer(torch.cat([clips, text], 1), mask, positions, length, video)
        found["logits"] = self.class_embed(read["contents"])
        spans = self.span_embed(read["contents"]) + inverse_sigmoid(read["anchors"])
        found |= {"moments": spans.sigmoid(), "text_attention": read["shares"]}
        found |= self._curves(read, text_mask)
        if videos is not None:
            following = videos[1:] + videos[:1]
            real = [video != other for video, other in zip(videos, following, strict=True)]
            found["real"] = torch.tensor(real, device=clips.device)
            if found["real"].sum() != 0:
                side = (clips, clip_mask, positions)
                found |= self._negatives(found["real"], side, (text, text_mask), video)
        return found

    def _negatives(
        self,
        real: Tensor,
        side: tuple[Tensor, ...],
        text: tuple[Tensor, Tensor],
        video: dict[str, Any],
    ) -> dict[str, Tensor]:
        """The whole network once more, on videos and the text of the next sample."""
        clips, clip_mask, positions = side
        following, following_mask = (torch.cat([part[1:], part[:1]]) for part in text)
        following_mask = following_mask[real]
        video = video | {
            "context": video["context"][real],
            "lengths": clip_mask[real].sum(1).long(),
        }
        sequence = torch.cat([clips, following], 1)[real]
        mask = torch.cat([clip_mask[real], following_mask], 1)
        read = self.transformer(sequence, mask, positions[real], clips.shape[1], video)
        curves = self._curves(read, following_mask)
        return {f"{name}_negative": curve for name, curve in curves.items()}

    def _curves(self, read: dict[str, Tensor], text_mask: Tensor) -> dict[str, Tensor]:
        n, memory = self.options.dummies, read["memory"]
        products = self.saliency_proj1(memory) * self.saliency_proj2(read["summary"]).unsqueeze(1)
        attention = (read["shares"] * text_mask.unsqueeze(1))[:, :, n:].sum(2).clamp(0, 1)
        return {"saliency": products.sum(-1) / memory.shape[-1] ** 0.5, "attention": attention}

    def _alignment(
        self, video: tuple[Tensor, ...], text: tuple[Tensor, ...], relevant: Tensor
    ) -> dict[str, Tensor]:
        n, inside = self.options.dummies, relevant.clamp(0, 1).bool()
        tokens, mask, places = text
        sentence, dummy_sentence = (
            self._summed_up(self.scls_encoder, "sent", tokens[:, p], mask[:, p], places[:, p])
            for p in (slice(n, None), slice(n))
        )
        clips, mask, places = video
        moment, other = (
            self._summed_up(self.transformer.mcls_encoder, "moment", clips, mask & group, places)
            for group in (inside, ~inside)
        )
        words = torch.cat([dummy_sentence[:, 1:], sentence[:, 1:]], 1).transpose(1, 2)
        group = inside.unsqueeze(2).float()
        return {
            "moment": moment[:, 0],
            "other": other[:, 0],
            "sentence": sentence[:, 0],
            "dummy_sentence": dummy_sentence[:, 0],
            "similarity": moment[:, 1:] @ words,
            "other_similarity": other[:, 1:] @ words,
            "clips": moment[:, 1:] * group + other[:, 1:] * (1 - group),
            "inside": inside,
        }

    def _summed_up(self, encoder: Encoder, name: str, *sequence: Tensor) -> Tensor:
        x, mask, places = sequence
        token, place = getattr(self, f"{name}_rep_token"), getattr(self, f"{name}_rep_pos")
        x = torch.cat([token.expand(len(x), 1, -1), x], 1)
        places = torch.cat([place.expand(len(x), 1, -1), places], 1)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
        return self._encode(encoder, x, mask, places)

    def _encode(self, encoder: Encoder, x: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        return encoder(x.transpose(0, 1), ~mask, places.transpose(0, 1)).transpose(0, 1)

    def _places(self, mask: Tensor, width: int) -> Tensor:
        place = mask.cumsum(1, dtype=torch.float32)
        place = place / (place[:, -1:] + 1e-6) * 2 * torch.pi
        index = torch.arange(width, dtype=torch.float32, device=mask.device)
        angles = place[:, :, None] / 10000 ** (2 * (index // 2) / width)
        return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), -1).flatten(2)
