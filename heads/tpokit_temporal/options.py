"""What a recipe may set on the temporal head; does not import torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from tpokit.options import Options
from tpokit_temporal.features.options import BackboneFeatures, FeatureOptions

PRESETS: dict[str, dict[str, Any]] = {
    "qvhighlights": {"dummies": 45, "global_tokens_used": 1},
    "charades_sta": {"dummies": 45, "global_tokens_used": 2},
    "tacos": {"dummies": 50, "global_tokens_used": 2},
    "videochat_tpo": {"dummies": 45, "global_tokens_used": 1},
}
"""Settings of published runs, as far as they differ among each other.

Sources: wjun0830/CGDETR, cg_detr/scripts; OpenGVLab/TPO, modeling_videochate.py.
"""


class DecodeOptions(Options):
    """How moments are read from what the detector gives; see `tpokit_temporal.windows.Decoding`.

    Attributes:
        multiple_s: Start and end are rounded to multiples of so many seconds (released: the length
            of a clip); default: not.
        overlap: Moments that overlap with a better one by more than this are dropped (non-maximum
            suppression; released: off).
        most: Moments that are kept at most, best first.
    """

    multiple_s: float | None = Field(default=None, gt=0)
    overlap: float | None = Field(default=None, ge=0, le=1)
    most: int = Field(default=10, ge=1)


class MlpOptions(Options):
    """Options of the plain temporal head.

    Attributes:
        hidden: Width of the hidden layer; default that of the backbone.
    """

    hidden: int | None = Field(default=None, ge=1)


class TemporalOptions(Options):
    """Options of the temporal head.

    Attributes:
        preset: Start from the settings of a published run: ``qvhighlights``, ``charades_sta``,
            ``tacos`` or ``videochat_tpo`` (the released model). What is given beside it wins.
        width: d, the width of the detector; a multiple of ``heads`` and of 4.
        feed_forward: Width inside the feed-forward layers.
        heads: Of every attention.
        encoder_layers: Layers over the clips, behind the text has been worked in.
        decoder_layers: Layers over the queries; each gives a prediction for the losses.
        text_to_clips_layers: Layers of adaptive cross-attention.
        dummy_layers: Layers that condition the dummies on the words.
        sentence_layers: Layers of the encoder of sentences; only training runs it.
        moment_layers: Layers of the encoder of moments; only training runs it.
        projection_layers: Blocks that bring features of clips and words to ``width``.
        queries: Most moments that one call can give.
        dummies: Tokens that take the attention of clips which have nothing to do with the text.
        global_tokens: Pool of tokens that stand for kinds of videos.
        global_tokens_used: How many of the pool a video is summed up by.
        dropout: Share of attention weights, of hidden features and, per sample, of whole branches
            that is left out in training.
        input_dropout: The same for the features of clips and words.
        released_quirks: Compute as the released code does where it is wrong, to reproduce its
            numbers: words of one sample are hidden from padded clips of others when lengths differ
            (the padding mask of the cross-attention is laid out by head, not by sample), so that
            a result depends on the batch it is in; encoders of dummies and sentences always have 8
            heads and dropout 0.1; the last layer of the decoder's correction starts at random
            instead of 0. What the published method consists of, though it may look odd, is not
            switched by it: the residual of the cross-attention around its norm, the bias that a
            global token takes from layers without text, a place for the words behind dummies in
            one softmax. The losses list theirs.
        features: Where features of clips and words come from: the backbone's vision tower, which is
            the default, a frozen dual encoder, or files.
        background: Weight of queries without a moment in the loss ``label``; released:
            ``eos_coef``.
        margin: By how much the better clip of a pair is to be ahead; released: ``saliency_margin``.
        decode: How moments are read from the predictions.
    """

    preset: Literal["qvhighlights", "charades_sta", "tacos", "videochat_tpo"] | None = None
    width: int = Field(default=256, ge=4)
    feed_forward: int = Field(default=1024, ge=1)
    heads: int = Field(default=8, ge=1)
    encoder_layers: int = Field(default=3, ge=1)
    decoder_layers: int = Field(default=3, ge=1)
    text_to_clips_layers: int = Field(default=2, ge=1)
    dummy_layers: int = Field(default=2, ge=1)
    sentence_layers: int = Field(default=1, ge=1)
    moment_layers: int = Field(default=1, ge=1)
    projection_layers: int = Field(default=2, ge=1)
    queries: int = Field(default=10, ge=1)
    dummies: int = Field(default=45, ge=1)
    global_tokens: int = Field(default=10, ge=1)
    global_tokens_used: int = Field(default=1, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    input_dropout: float = Field(default=0.5, ge=0, lt=1)
    released_quirks: bool = False
    features: FeatureOptions = Field(default_factory=BackboneFeatures)
    background: float = Field(default=0.1, ge=0)
    margin: float = Field(default=0.2, ge=0)
    decode: DecodeOptions = Field(default_factory=DecodeOptions)

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, given: Any) -> Any:
        name = given.get("preset") if isinstance(given, dict) else None
        known = isinstance(name, str) and name in PRESETS  # an unknown one fails at its own field
        return {**PRESETS[name], **given} if known else given

    @model_validator(mode="after")
    def _sizes_fit(self) -> TemporalOptions:
        for count in (self.heads, 8 if self.released_quirks else 4):
            if self.width % count:
                raise ValueError(f"width {self.width} is not a multiple of {count}")
        if self.global_tokens_used > self.global_tokens:
            raise ValueError(
                f"global_tokens_used is {self.global_tokens_used}, more than the "
                f"{self.global_tokens} global_tokens"
            )
        return self


def small_options(options: TemporalOptions) -> TemporalOptions:
    """The same with a detector that is small enough for a laptop."""
    width = min(options.width, 8 * options.heads)  # a multiple of the heads, of 4 and of 8
    return options.model_copy(
        update={
            "width": width,
            "feed_forward": min(options.feed_forward, 2 * width),
            "encoder_layers": 1,
            "decoder_layers": min(options.decoder_layers, 2),
        }
    )
