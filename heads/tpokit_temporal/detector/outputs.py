"""What the detector gives; the losses and the decoding of results are written against it.

Legend of all shapes: b samples of a batch, l clips (padded), t words (padded; the task token is one
of them), n dummies, s = n + t, d width of the detector, q queries, y decoder layers, g global
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Negative:
    """Each video with the query of the next sample of the batch (the last with that of the first).

    It is there for every row, so that shapes do not depend on values; losses ignore the rows in
    which ``is_real`` is false. A dataclass, as ranks differ in whether there is one: ZeRO-3 counts
    the tensors in a tuple.

    Attributes:
        saliency: ``[b, l]``, as `DetectorOutput.saliency`.
        attention: ``[b, l]``, as `DetectorOutput.attention`.
        is_real: ``[b]`` bool; false where the next sample is about the same video, or is the sample
            itself.
    """

    saliency: Tensor
    attention: Tensor
    is_real: Tensor


class Alignment(NamedTuple):
    """What the moment and sentence encoders give; only in training.

    Attributes:
        moment: ``[b, d]`` summary of the clips inside the moments; released: ``memory_moment``.
        other: ``[b, d]`` summary of the clips outside; released: ``nmmemory_moment``.
        sentence: ``[b, d]`` summary of the words; released: ``sentence_txt``.
        dummy_sentence: ``[b, d]`` summary of the dummies; released: ``sentence_dummy``.
        moment_similarity: ``[b, l, s]`` dot products of ``clips`` with encoded dummies and words;
            carries no gradient (the only loss that reads it teaches by it). Released:
            ``moment2txt_similarity`` at clips inside a moment, ``nmoment2txt_similarity`` at the
            others.
        clips: ``[b, l, d]``, a clip inside a moment encoded among the clips inside, one outside
            among those outside; released: ``src_vid``.
        relevant: ``[b, l]`` bool, inside a moment; released: ``moment_mask``.
    """

    moment: Tensor
    other: Tensor
    sentence: Tensor
    dummy_sentence: Tensor
    moment_similarity: Tensor
    clips: Tensor
    relevant: Tensor


class DetectorOutput(NamedTuple):
    """Predictions of one forward pass, at padded clips and words too.

    Attributes:
        logits: ``[y, b, q, 2]``; class 0 is foreground. The last layer is the result, the others
            are for auxiliary losses; released: ``pred_logits``, ``aux_outputs``.
        moments: ``[y, b, q, 2]`` centre and width as fractions of the video's clips, in (0, 1);
            start and end may lie outside. Released: ``pred_spans``.
        saliency: ``[b, l]`` highlight scores, unbounded.
        attention: ``[b, l]`` share of its attention that a clip pays to words, not to dummies, in
            [0, 1]; released: ``t2vattnvalues``.
        text_attention: ``[b, l, s]`` attention of clips to dummies and words, mean over heads and
            layers; released: ``cate_attn_weights``.
        clip_mask: ``[b, l]`` bool; false: padding.
        text_mask: ``[b, s]`` bool; true for all dummies, false: padding; released: ``txt_mask``.
        dummies: ``[b, n, d]``, conditioned on the words; released: ``dummy_tokens``.
        global_tokens: ``[g, d]`` the learnt pool; released: ``global_rep_tokens``.
        negative: Only where asked for, and in a batch of more than one sample.
        alignment: Only where the relevant clips are known.
    """

    logits: Tensor
    moments: Tensor
    saliency: Tensor
    attention: Tensor
    text_attention: Tensor
    clip_mask: Tensor
    text_mask: Tensor
    dummies: Tensor
    global_tokens: Tensor
    negative: Negative | None = None
    alignment: Alignment | None = None
