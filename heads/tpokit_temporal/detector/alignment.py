"""Encoders that only training runs: of moments (clips inside and outside) and of sentences.

Source: wjun0830/CGDETR, cg_detr/model.py (moment and sentence representation tokens). Both encode
two groups that do not see each other; here they are two groups of one sequence.

Legend of all shapes: b samples, l clips, n dummies, t words, s = n + t, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tpokit_temporal.detector.cross_attention import TextSide
from tpokit_temporal.detector.layers import Encoder
from tpokit_temporal.detector.outputs import Alignment


class SummaryToken(nn.Module):
    """A learnt token, put in front of a sequence once for each of its two groups.

    Attributes:
        token: ``[d]``.
        position: ``[d]``.
    """

    def __init__(self, width: int) -> None:
        """Draw both."""
        super().__init__()
        self.token = nn.Parameter(torch.randn(width))
        self.position = nn.Parameter(torch.randn(width))

    def lead(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Sequence ``[b, k, d]`` and positions ``[..., k, d]`` with two more at the front."""
        tokens = self.token.to(x.dtype).expand(len(x), 2, -1)
        places = self.position.to(positions.dtype).expand(*positions.shape[:-2], 2, -1)
        return torch.cat((tokens, x), 1), torch.cat((places, positions), -2)


def _groups(first: Tensor, mask: Tensor) -> Tensor:
    """Who is hidden from whom, ``[b, 1, 2 + k, 2 + k]`` bool.

    Args:
        first: ``[b, k]`` bool: of the first group, which is summed up by the first token.
        mask: ``[b, k]`` bool: may be seen.
    """
    leading = torch.arange(2, device=mask.device).expand(len(mask), -1) < 1
    member = torch.cat((leading, first), 1)
    seen = torch.cat((torch.ones_like(leading), mask), 1)
    return ((member[:, :, None] != member[:, None, :]) | ~seen[:, None, :]).unsqueeze(1)


class Aligner(nn.Module):
    """Moment and sentence encoder with their tokens."""

    def __init__(self, moment_encoder: Encoder, sentence_encoder: Encoder, width: int) -> None:
        """Keep the encoders."""
        super().__init__()
        self.moment = SummaryToken(width)
        self.moment_encoder = moment_encoder
        self.sentence = SummaryToken(width)
        self.sentence_encoder = sentence_encoder

    def forward(
        self,
        clips: tuple[Tensor, Tensor, Tensor],
        text: TextSide,
        text_mask: Tensor,
        relevant: Tensor,
    ) -> Alignment:
        """Encode.

        Args:
            clips: ``[b, l, d]`` projected clips, their positions, and their mask ``[b, l]``.
            text: Dummies and words.
            text_mask: ``[b, s]`` bool; false: padding.
            relevant: ``[b, l]`` bool, inside a moment.
        """
        x, positions, mask = clips
        encoded = self.moment_encoder(*self.moment.lead(x, positions), _groups(relevant, mask))
        moment, other, encoded_clips = encoded[:, 0], encoded[:, 1], encoded[:, 2:]
        place = torch.arange(text_mask.shape[1], device=text_mask.device)
        is_word = (place >= text.dummies).expand_as(text_mask)
        read = self.sentence_encoder(
            *self.sentence.lead(text.tokens, text.positions), _groups(is_word, text_mask), taught=2
        )
        return Alignment(
            moment=moment,
            other=other,
            sentence=read[:, 0],
            dummy_sentence=read[:, 1],
            moment_similarity=encoded_clips.detach() @ read.detach()[:, 2:].transpose(1, 2),
            clips=encoded_clips,
            relevant=relevant,
        )
