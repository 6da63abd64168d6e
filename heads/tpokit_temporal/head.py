"""The temporal head: moments and saliency of a video, from each temporal slot.

Paper: arXiv 2412.19326 section 3 (temporal head: CG-DETR, arXiv 2311.08835). Code: OpenGVLab/TPO
(December 2024), modeling_videochate.py: ``cg_model``. As there, the hidden state of the slot enters
the detector as one more word behind the query's last one, and every loss reaches the LLM through
it. We differ:

- features are a choice of the recipe; by default clips are frames seen by the backbone's own vision
  tower, and words are hidden states of the LLM at the question;
- clips are scaled to length 1 by default, as in CG-DETR's training sets; TPO's demo does not;
- where words and hidden states differ in width, a linear layer brings the slot to that of a word;
- losses are computed in float32, see `tpokit_temporal.losses.terms`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpokit.errors import DataError, TpokitError, UsageError
from tpokit.interfaces import Host, TaskHead
from tpokit.tokens import TaskTokens
from tpokit.types import (
    Context,
    ContextNeed,
    Frames,
    LossTerm,
    Media,
    MediaInfo,
    MediaNeed,
    Seen,
    Words,
)
from tpokit_temporal.annotations import TemporalTarget, read_annotation, require_video
from tpokit_temporal.detector.network import Detector
from tpokit_temporal.detector.outputs import DetectorOutput
from tpokit_temporal.detector.positions import endpoint_channels
from tpokit_temporal.features.choice import make_extractor
from tpokit_temporal.features.extractor import FeatureExtractor, Features, centred, unit
from tpokit_temporal.features.options import BackboneFeatures
from tpokit_temporal.losses.terms import LossSettings, temporal_terms, term_counts
from tpokit_temporal.losses.weights import TERMS
from tpokit_temporal.options import TemporalOptions, small_options
from tpokit_temporal.results import Moments, expected_moments
from tpokit_temporal.targets import TemporalTargets, collate_targets
from tpokit_temporal.windows import ClipScores, Decoding, decode_moments

TOKENS = TaskTokens(trigger="<time_begin>", slots=("<temp>",))
"""As released."""
_PLACE_CHANNELS = 2  # of `endpoint_channels`


@dataclass(frozen=True)
class Prediction:
    """What the detector gives of n calls, and ``clip_s [n]``: seconds of a clip, 0 where clips are
    equal parts of the video.
    """

    output: DetectorOutput
    clip_s: Tensor


class TemporalHead(TaskHead):
    """Moments, best first, and the saliency of each clip, for each call.

    A target is a mapping with ``moments_s`` and, optionally, ``saliency``; see
    `tpokit_temporal.annotations.read_annotation`.

    Attributes:
        detector: CG-DETR.
        slot_projection: Brings the slot to the width of a word; not there where they are equal.
        extractor: Gives the features; ``None``: they come with the context.
    """

    task = "temporal"
    tokens = TOKENS
    terms = TERMS
    Options = TemporalOptions
    options: TemporalOptions

    def __init__(self, options: TemporalOptions, host: Host) -> None:
        """Build the detector; see `TaskHead`.

        Raises:
            UsageError: The features cannot be had.
        """
        super().__init__(options, host)
        features = options.features
        self.extractor: FeatureExtractor | None = None
        if isinstance(features, BackboneFeatures):
            if not host.vision:
                raise UsageError(
                    "heads.temporal: this backbone gives no features of single frames; choose "
                    "features of another kind: encoder or files"
                )
            clip_width, word_width = features.grid**2 * host.vision, host.hidden
        else:
            self.extractor = make_extractor(features, host.folder)
            clip_width = self.extractor.video_width
            word_width = self.extractor.text_width or host.hidden
        self._clip_width, self._word_width = clip_width, word_width
        self.detector = Detector(options, clip_width + _PLACE_CHANNELS, word_width)
        if word_width != host.hidden:
            self.slot_projection = nn.Linear(host.hidden, word_width)
        quirks = options.released_quirks
        self._settings = LossSettings(options.background, options.margin, released_quirks=quirks)
        self._decoding = Decoding(
            multiple_s=options.decode.multiple_s,
            overlap=options.decode.overlap,
            most_after=options.decode.most,
        )

    @classmethod
    def build_small(cls, options: TemporalOptions, host: Host) -> TemporalHead:
        """See `TaskHead.build_small`; a frozen encoder stays as it is."""
        return cls(small_options(options), host)

    # ---- reading ----

    def context_need(self) -> ContextNeed:
        """What the features are made of."""
        if self.extractor is not None:
            return self.extractor.context_need()
        features = self.options.features
        assert isinstance(features, BackboneFeatures)
        frames = MediaNeed(rate=features.rate, frames_max=features.frames_max)
        return ContextNeed(media=frames, question=True, vision=True, grid=features.grid)

    def wants_frames(self, media: Media) -> bool:
        """No, if the extractor has kept the features of this medium."""
        return self.extractor is None or self.extractor.wants_frames(media)

    def prepare(self, seen: Seen) -> Any:
        """Number of clips, with the backbone's features; else what the extractor prepares.

        Raises:
            DataError: The question is empty, or there is no video.
        """
        if not seen.question.strip():
            raise DataError(f"{seen.where}: the question is empty; it must say what to look for")
        if self.extractor is not None:
            return self.extractor.prepare(seen)
        return len(seen.views[0].frames)

    def collate_prepared(self, prepared: Sequence[Any]) -> Any:
        """See `TaskHead.collate_prepared`."""
        return () if self.extractor is None else self.extractor.collate(prepared)

    def read_target(self, annotation: Any, seen: Seen) -> TemporalTarget:
        """See `tpokit_temporal.annotations.read_annotation`.

        Raises:
            DataError: The annotation is wrong, or the sample has no video.
        """
        duration_s = require_video(seen)
        return read_annotation(
            annotation,
            clips=self._clip_count(seen),
            duration_s=duration_s,
            where=seen.where,
            video=str(seen.media[0].path),
            released_quirks=self.options.released_quirks,
        )

    def _clip_count(self, seen: Seen) -> int | None:
        if seen.prepared is None:
            return None
        return int(seen.prepared if self.extractor is None else seen.prepared.clip_count)

    def collate(self, targets: Sequence[TemporalTarget]) -> TemporalTargets:
        """See `tpokit_temporal.targets.collate_targets`."""
        return collate_targets(targets)

    def counts(self, targets: TemporalTargets) -> dict[str, float]:
        """See `tpokit_temporal.losses.terms.term_counts`."""
        return term_counts(targets, self.options.queries, self.options.released_quirks)

    # ---- network ----

    def forward(self, slots: Tensor, context: Context) -> Prediction:
        """Detect: ``[n, 1, d]`` and the features of the context to a `Prediction` of n calls.

        With ``context.targets`` also what only the losses need is worked out.

        Raises:
            TpokitError: n is 0.
        """
        if not len(slots):
            raise TpokitError("the temporal head needs at least one call; idle_inputs() has one")
        features = self._features(context)
        targets: TemporalTargets | None = context.targets
        token = slots[:, 0]
        if self._word_width != self.host.hidden:
            token = self.slot_projection(token.to(self.slot_projection.weight.dtype))
        words, word_mask = features.words, features.word_mask
        if words is None or word_mask is None:
            assert context.question is not None, "asked for by context_need"
            words, word_mask = context.question
        places = endpoint_channels(features.clip_mask).to(features.clips.dtype)
        output = self.detector(
            torch.cat([features.clips, places], dim=-1),
            features.clip_mask,
            words,
            word_mask,
            task_token=token.to(words.dtype),
            relevant=None if targets is None else targets.relevant,
            negatives=targets.is_real if targets is not None and targets.real_count else None,
        )
        return Prediction(output, features.clip_s)

    def _features(self, context: Context) -> Features:
        if self.extractor is None:
            options = self.options.features
            assert isinstance(options, BackboneFeatures)
            assert context.frames is not None, "asked for by context_need"
            states, mask = context.frames
            if options.centred:
                states = centred(states, mask)
            if options.normalise:
                states = unit(states)
            return Features(states, mask, states.new_zeros(len(states)))
        if isinstance(context.prepared, Features):  # of files, or idle
            return context.prepared
        return self.extractor.encode(context.prepared, next(self.parameters()).device)

    def loss(self, prediction: Prediction, targets: TemporalTargets) -> dict[str, LossTerm]:
        """See `tpokit_temporal.losses.terms`."""
        return temporal_terms(prediction.output, targets, self._settings)

    def idle_inputs(self) -> dict[str, Any]:
        """One call about two clips, one of them relevant."""
        like = next(self.parameters())
        target = TemporalTarget(
            moments=((0.25, 0.5),),
            learnt=(0,),
            saliency=(1.0, 0.0),
            saliency_max=1.0,
            pairs=((0, 1), (0, 1)),
            video="idle",
        )
        clips = like.new_zeros(1, 2, self._clip_width)
        words = like.new_zeros(1, 1, self._word_width)
        clip_mask = torch.ones(1, 2, dtype=torch.bool, device=like.device)
        need = self.context_need()
        own_words = self.extractor is not None and self.extractor.text_width is not None
        context = Context(
            prepared=Features(
                clips,
                clip_mask,
                like.new_zeros(1),
                words if own_words else None,
                clip_mask[:, :1] if own_words else None,
            ),
            question=Words(words, clip_mask[:, :1]) if need.question else None,
            frames=Frames(clips, clip_mask) if need.vision else None,
            targets=self.collate([target]).to(like.device),
        )
        return {"slots": like.new_zeros(1, 1, self.host.hidden), "context": context}

    def without_gradient(self, learnt: Collection[str]) -> tuple[str, ...]:
        """Queries enter the decoder without content, so that its first layer has nothing to attend
        to; and what is added to all keys or scores alike changes nothing behind a softmax.
        """
        return (
            r"^detector\.decoder\.layers\.0\.self_attention\.((query|key)_|value\.weight)",
            r"\.key_\w+\.bias$",
            r"^detector\.saliency_clips\.bias$",
        )

    # ---- results ----

    def decode(self, prediction: Prediction, media: Sequence[MediaInfo]) -> list[Moments]:
        """Moments in seconds, best first, and the saliency of each clip.

        Raises:
            TpokitError: A prediction is not finite.
        """
        output = prediction.output
        counts = output.clip_mask.sum(1).tolist()
        durations_s = [info.duration_s for info in media]
        clip_s = [
            stated or duration_s / count
            for stated, duration_s, count in zip(
                prediction.clip_s.tolist(), durations_s, counts, strict=True
            )
        ]
        found = decode_moments(
            output.logits[-1].detach(),
            output.moments[-1].detach(),
            durations_s,
            ClipScores(output.saliency.detach(), counts, clip_s),
            self._decoding,
        )
        if any(not _is_finite(moments) for moments in found):
            raise TpokitError(
                "the temporal head gave a moment that is not finite: its weights or its input are "
                "broken"
            )
        return found

    def result_of(self, target: TemporalTarget, media: MediaInfo) -> Moments:
        """The annotated moments and saliency, in seconds and fractions of the largest grade."""
        return expected_moments(target, media)


def _is_finite(found: Moments) -> bool:
    numbers = [number for m in found.moments for number in (m.start_s, m.end_s, m.score)]
    return bool(torch.tensor([*numbers, *found.saliency]).isfinite().all())
