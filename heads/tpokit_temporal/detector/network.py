"""The detector: features of clips and words in, moments and highlight scores out.

Source: wjun0830/CGDETR, cg_detr/model.py; OpenGVLab/TPO, inference/third_party/cgdetr, for the task
token. It computes the same numbers at less cost:

- clips with their own query and with the query of the next sample (negatives) go through the
  network side by side, and the decoder runs for the former only;
- clips inside and outside of moments are encoded as two groups of one sequence that do not see each
  other, and so are words and dummies; the released code encodes clips twice;
- what no loss reaches gets no gradient, what nobody reads is not computed;
- nothing waits for a GPU: no shape depends on a value.

Legend of all shapes: b samples of a batch, l clips, v and w widths of features of clips and words,
t words (the task token included), n dummies, s = n + t, d width, q queries, y decoder layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpokit_temporal.detector.alignment import Aligner
from tpokit_temporal.detector.cross_attention import TextSide, TextToClips, released_hidden
from tpokit_temporal.detector.decoder import Decoder
from tpokit_temporal.detector.global_token import GlobalToken
from tpokit_temporal.detector.layers import Encoder, Projection, mlp
from tpokit_temporal.detector.outputs import DetectorOutput, Negative
from tpokit_temporal.detector.positions import clip_positions, inverse_sigmoid
from tpokit_temporal.detector.precision import float32_where_bfloat16_is_emulated
from tpokit_temporal.options import TemporalOptions

_RELEASED_HEADS, _RELEASED_DROPOUT = 8, 0.1
"""Of the encoders of dummies and sentences, whatever the released options say."""


class Detector(nn.Module):
    """Moments and highlight scores of a video for a query.

    Attributes:
        options: Its sizes.
    """

    def __init__(self, options: TemporalOptions, clip_width: int, word_width: int) -> None:
        """Build the network with fresh weights.

        Args:
            options: Its sizes.
            clip_width: v, the two end-point channels included.
            word_width: w, also that of the task token.
        """
        super().__init__()
        d, inner, heads, rate = (
            options.width,
            options.feed_forward,
            options.heads,
            options.dropout,
        )
        quirks = options.released_quirks
        text_sizes = d, inner, *((_RELEASED_HEADS, _RELEASED_DROPOUT) if quirks else (heads, rate))
        depth, input_rate = options.projection_layers, options.input_dropout
        self.options = options
        self.clip_projection = Projection(clip_width, d, depth, input_rate)
        self.word_projection = Projection(word_width, d, depth, input_rate)
        self.token_types = nn.Parameter(torch.randn(2, d) * 0.02)  # of words, of clips
        self.dummies = nn.Parameter(torch.randn(options.dummies, d))
        self.dummy_positions = nn.Parameter(torch.randn(options.dummies, d))
        self.dummy_encoder = Encoder(options.dummy_layers, *text_sizes)
        self.aligner = Aligner(
            Encoder(options.moment_layers, d, inner, heads, rate),
            Encoder(options.sentence_layers, *text_sizes),
            d,
        )
        self.text_to_clips = TextToClips(options.text_to_clips_layers, d, inner, heads, rate)
        self.global_token = GlobalToken(d, options.global_tokens, options.global_tokens_used)
        self.encoder = Encoder(options.encoder_layers, d, inner, heads, rate)
        self.moment_queries = nn.Parameter(torch.randn(options.queries, 2))
        self.decoder = Decoder(options.decoder_layers, d, inner, heads, rate)
        self.saliency_clips = nn.Linear(d, d)
        self.saliency_video = nn.Linear(d, d)
        self.moment_output = mlp((d, d, d, 2))
        self.class_output = nn.Linear(d, 2)
        self._draw_weights()

    def _draw_weights(self) -> None:
        """As released, but for the last layer of the decoder's correction (see the options)."""
        for part in (self.aligner.moment_encoder, self.text_to_clips, self.encoder, self.decoder):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        self.decoder.start_without_correction(keep_weight=self.options.released_quirks)

    def forward(
        self,
        clips: Tensor,
        clip_mask: Tensor,
        words: Tensor,
        word_mask: Tensor,
        task_token: Tensor | None = None,
        relevant: Tensor | None = None,
        negatives: Tensor | None = None,
    ) -> DetectorOutput:
        """Detect.

        Args:
            clips: ``[b, l, v]`` features, the last two channels from `endpoint_channels`.
            clip_mask: ``[b, l]`` bool, clips first; false: padding. Every video has a clip.
            words: ``[b, t, w]`` features; t may be 0 beside a task token.
            word_mask: ``[b, t]`` bool, words first; false: padding.
            task_token: ``[b, w]``, enters as one more word behind the last one.
            relevant: ``[b, l]``, true or above 0 inside a moment: gives `DetectorOutput.alignment`.
            negatives: ``[b]`` bool, as `Negative.is_real`: gives `DetectorOutput.negative`, unless
                b is 1, where there is no other sample.
        """
        with float32_where_bfloat16_is_emulated(clips.device):
            return self._detect(
                (clips, clip_mask), (words, word_mask, task_token), relevant, negatives
            )

    def _detect(
        self,
        video: tuple[Tensor, Tensor],
        query: tuple[Tensor, Tensor, Tensor | None],
        relevant: Tensor | None,
        negatives: Tensor | None,
    ) -> DetectorOutput:
        clips, clip_mask = self._projected_clips(video[0]), video[1]
        places = clip_positions(clip_mask, clips.shape[-1]).to(clips.dtype)
        text, text_mask = self._text(*self._words(*query))
        alignment = None
        if relevant is not None:
            alignment = self.aligner((clips, places, clip_mask), text, text_mask, relevant > 0)
        if len(clips) == 1:
            negatives = None
        memory, summary, text_attention = self._read(
            (clips, places, clip_mask), text, self._hidden(clip_mask, text_mask, negatives)
        )
        saliency = self._saliency(memory, summary)
        attention = text_attention[..., len(self.dummies) :].sum(-1).clamp(0, 1).float()
        content, references = self.decoder(
            self.moment_queries, memory[: len(clips)], places, clip_mask
        )
        moments = self.moment_output(content).float() + inverse_sigmoid(references)
        return DetectorOutput(
            logits=self.class_output(content).float(),
            moments=moments.sigmoid(),
            saliency=saliency[: len(clips)],
            attention=attention[: len(clips)],
            text_attention=text_attention[: len(clips)],
            clip_mask=clip_mask,
            text_mask=text_mask,
            dummies=text.tokens[:, : text.dummies],
            global_tokens=self.global_token.pool,
            negative=(
                None
                if negatives is None
                else Negative(saliency[len(clips) :], attention[len(clips) :], negatives)
            ),
            alignment=alignment,
        )

    def _projected_clips(self, clips: Tensor) -> Tensor:
        return self.clip_projection(clips.to(self.token_types.dtype)) + self.token_types[1]

    def _words(
        self, words: Tensor, mask: Tensor, task_token: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Projected words ``[b, t, d]``, with the task token among them, and their mask."""
        dtype = self.token_types.dtype
        words = self.word_projection(words.to(dtype))
        if task_token is not None:
            last = self.word_projection(task_token.to(dtype).unsqueeze(1))
            words, mask = _end_with(words, mask, last)
        return words + self.token_types[0], mask

    def _text(self, words: Tensor, mask: Tensor) -> tuple[TextSide, Tensor]:
        """Conditioned dummies and words; and the mask ``[b, s]``, true for dummies."""
        dummies = self.dummies.to(words.dtype).expand(len(words), -1, -1)
        positions = functional.pad(self.dummy_positions, (0, 0, 0, words.shape[1])).unsqueeze(0)
        mask = functional.pad(mask, (len(self.dummies), 0), value=True)
        tokens = torch.cat((dummies, words), 1)
        dummies = self.dummy_encoder(tokens, positions, ~mask[:, None, None], len(self.dummies))
        tokens = torch.cat((dummies.to(words.dtype), words), 1)
        return TextSide(tokens, positions, len(self.dummies)), mask

    def _hidden(self, clip_mask: Tensor, text_mask: Tensor, negatives: Tensor | None) -> Tensor:
        """Which text is hidden from which clip, for own queries and then for those of the next
        sample; broadcasts to ``[(2) b, h, l, s]``.
        """
        asked = [(text_mask, torch.ones_like(text_mask[:, 0]))]
        if negatives is not None:
            asked.append((text_mask.roll(-1, 0), negatives))
        if not self.options.released_quirks:
            return torch.cat([~mask[:, None, None] for mask, _ in asked])
        heads = self.options.heads
        return torch.cat([released_hidden(clip_mask, mask, heads, part) for mask, part in asked])

    def _read(
        self, video: tuple[Tensor, Tensor, Tensor], text: TextSide, hidden: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Clips that have seen the text, ``[b, l, d]``, the summary of the video ``[b, d]``, and
        the attention ``[b, l, s]``; with negatives, 2 b of them.
        """
        clips, places, mask = video
        asked = len(hidden) // len(clips)
        if asked > 1:
            text = text.with_next()
            places, mask = places.repeat(asked, 1, 1), mask.repeat(asked, 1)
        queries = clips.repeat(asked, 1, 1) if asked > 1 else clips
        queries, attention = self.text_to_clips(queries, places, text, hidden)
        share = attention[..., text.dummies :].sum(-1).unflatten(0, (asked, -1))
        summary = self.global_token(clips, video[2], share).flatten(0, 1).unsqueeze(1)
        summary = self.text_to_clips.without_text(summary)
        position = self.global_token.position.to(places.dtype).expand(len(places), -1, -1)
        encoded = self.encoder(
            torch.cat((summary.to(queries.dtype), queries), 1),
            torch.cat((position, places), 1),
            functional.pad(~mask, (1, 0))[:, None, None],
        )
        summary = encoded[:, :1]
        return encoded[:, 1:] + summary, summary.squeeze(1), attention

    def _saliency(self, clips: Tensor, summary: Tensor) -> Tensor:
        """Scores ``[b, l]``: scaled dot products of projected clips with the projected summary."""
        video = self.saliency_video(summary)
        # the projection of clips is applied to the one summary instead, from the other side
        direction = functional.linear(video, self.saliency_clips.weight.t())
        scores = (clips @ direction.unsqueeze(-1)).squeeze(-1) + (
            video * self.saliency_clips.bias
        ).sum(-1, keepdim=True)
        return scores.float() / clips.shape[-1] ** 0.5


def _end_with(words: Tensor, mask: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Put one more token ``[b, 1, d]`` behind the last word of each sample, before its padding.

    Args:
        words: ``[b, t, d]``.
        mask: ``[b, t]`` bool, words first.
        last: The token.

    Returns:
        ``[b, t + 1, d]`` and its mask.
    """
    count = mask.sum(1, keepdim=True)
    place = torch.arange(words.shape[1] + 1, device=words.device).expand(len(words), -1)
    kept, moved = torch.cat((words, last), 1), torch.cat((last, words), 1)
    before, here = (place < count).unsqueeze(-1), (place == count).unsqueeze(-1)
    return torch.where(before, kept, torch.where(here, last, moved)), place <= count
