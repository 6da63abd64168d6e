"""The two sides that `temporal_head.py` compares: ours, and CG-DETR as released."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from original_cg_detr import OriginalCgDetr
from plain_cg_detr import PlainCgDetr
from plain_losses import total_loss
from torch import Tensor, nn

from tpokit_temporal.annotations import TemporalTarget
from tpokit_temporal.detector.network import Detector
from tpokit_temporal.detector.positions import endpoint_channels
from tpokit_temporal.losses.terms import LossSettings, temporal_terms
from tpokit_temporal.losses.weights import released_weights
from tpokit_temporal.options import TemporalOptions
from tpokit_temporal.released_names import to_released
from tpokit_temporal.targets import TemporalTargets, collate_targets

_WEIGHTS = released_weights(saliency=4.0)


_CURVES = ("saliency", "attention")
_SAME = (*_CURVES, "text_attention", "dummies")
_SAME_ALIGNMENT = ("moment", "other", "sentence", "dummy_sentence", "clips")
_RELEASED = {
    "saliency": "saliency_scores",
    "attention": "t2vattnvalues",
    "text_attention": "cate_attn_weights",
    "dummies": "dummy_tokens",
    "moment": "memory_moment",
    "other": "nmmemory_moment",
    "sentence": "sentence_txt",
    "dummy_sentence": "sentence_dummy",
    "clips": "src_vid",
    "saliency_negative": "saliency_scores_neg",
    "attention_negative": "t2vattnvalues_neg",
}


@dataclass(frozen=True)
class Size:
    """What is measured; the defaults are the released ones."""

    options: TemporalOptions
    clip_width: int = 770
    word_width: int = 4096
    clips: int = 75
    words: int = 32


QUICK = Size(
    TemporalOptions(width=32, feed_forward=64, dummies=5, released_quirks=True), 18, 24, 12, 6
)


@dataclass(frozen=True)
class Batch:
    """Random features, one moment each."""

    inputs: tuple[Tensor, Tensor, Tensor, Tensor]
    targets: TemporalTargets

    @classmethod
    def draw(cls, size: Size, count: int, device: str) -> Batch:
        """``count`` samples, each of its own video."""
        random = torch.Generator().manual_seed(count)
        clips = torch.ones(count, size.clips, dtype=torch.bool)
        words = torch.ones(count, size.words, dtype=torch.bool)
        features = torch.randn(count, size.clips, size.clip_width - 2, generator=random)
        features = torch.cat([features, endpoint_channels(clips)], -1)
        text = torch.randn(count, size.words, size.word_width, generator=random)
        starts = torch.randint(0, size.clips // 2, (count,), generator=random).tolist()
        lengths = torch.randint(2, size.clips // 2, (count,), generator=random).tolist()
        targets = [
            _target(size.clips, start, length, video)
            for video, (start, length) in enumerate(zip(starts, lengths, strict=True))
        ]
        inputs = tuple(tensor.to(device) for tensor in (features, clips, text, words))
        return cls(inputs, collate_targets(targets).to(device))


def _target(clips: int, start: int, length: int, video: int) -> TemporalTarget:
    inside = range(start, start + length)
    return TemporalTarget(
        moments=(((start + length / 2) / clips, length / clips),),
        learnt=(0,),
        saliency=tuple(float(1 + clip % 12) if clip in inside else 0.0 for clip in range(clips)),
        saliency_max=12.0,
        pairs=((start, clips - 1), (start + 1, (start + length) % clips)),
        video=str(video),
    )


class Side:
    """One way of computing."""

    network: nn.Module

    def detect(self, batch: Batch, training: bool) -> Any:
        """A forward pass, with all that the losses need if ``training``."""
        raise NotImplementedError

    def loss(self, found: Any, batch: Batch) -> Tensor:
        """The weighted sum of all losses."""
        raise NotImplementedError

    def outputs(self, found: Any) -> dict[str, Tensor]:
        """What can be compared, by our names."""
        raise NotImplementedError

    def step(self, batch: Batch, autocast: AbstractContextManager[Any]) -> Tensor:
        """A training step without the optimizer."""
        self.network.zero_grad(set_to_none=True)
        with autocast:
            found = self.detect(batch, training=True)
            loss = self.loss(found, batch)
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def infer(self, batch: Batch) -> None:
        """Inference."""
        self.detect(batch, training=False)


class Ours(Side):
    """`tpokit_temporal`."""

    def __init__(self, size: Size, device: str) -> None:
        """Draw weights."""
        torch.manual_seed(0)
        self.network = Detector(size.options, size.clip_width, size.word_width).to(device)
        with torch.no_grad():  # else the products of clips leave the range in which float32 is fine
            self.network.aligner.moment_encoder[-1].feed_forward_norm.weight.mul_(0.2)
        self._settings = LossSettings(released_quirks=size.options.released_quirks)

    def detect(self, batch: Batch, training: bool) -> Any:
        """See `Side`."""
        targets = batch.targets
        extra = {"relevant": targets.saliency, "negatives": targets.is_real} if training else {}
        return self.network(*batch.inputs, **extra)

    def loss(self, found: Any, batch: Batch) -> Tensor:
        """See `Side`."""
        terms = temporal_terms(found, batch.targets, self._settings)
        shares = [_WEIGHTS[name] / max(term.count, 1) for name, term in terms.items()]
        sums = [term.sum for term in terms.values()]
        return sum(share * value for share, value in zip(shares, sums, strict=True))

    def outputs(self, found: Any) -> dict[str, Tensor]:
        """See `Side`."""
        same = {name: getattr(found, name) for name in _SAME}
        same |= {name: getattr(found.alignment, name) for name in _SAME_ALIGNMENT}
        if found.negative is not None:
            same |= {f"{name}_negative": getattr(found.negative, name) for name in _CURVES}
        return same


class Plain(Side):
    """`plain_cg_detr.py`."""

    def __init__(self, ours: Detector, size: Size, device: str) -> None:
        """Take over the weights."""
        self.network = PlainCgDetr(size.options, size.clip_width, size.word_width).to(device)
        self.network.load_state_dict(to_released(ours.state_dict(), size.options))

    def detect(self, batch: Batch, training: bool) -> Any:
        """See `Side`."""
        videos = [str(video) for video in range(len(batch.targets))]
        extra = (batch.targets.saliency, videos) if training else ()
        return self.network(*batch.inputs, *extra)

    def loss(self, found: Any, batch: Batch) -> Tensor:
        """See `Side`."""
        return total_loss(found, batch.targets)

    def outputs(self, found: Any) -> dict[str, Tensor]:
        """See `Side`."""
        names = *_SAME, *_SAME_ALIGNMENT, *(f"{name}_negative" for name in _CURVES)
        return {name: found[name] for name in names if name in found}


class Original(Side):
    """The release."""

    def __init__(self, ours: Detector, size: Size, device: str, checkout: Path) -> None:
        """Take over the weights."""
        widths = size.clip_width, size.word_width
        whole = OriginalCgDetr(checkout, size.options, widths, device)
        whole.load(to_released(ours.state_dict(), size.options))
        self.network, self._whole = whole.network, whole

    def detect(self, batch: Batch, training: bool) -> Any:
        """See `Side`."""
        videos = [str(video) for video in range(len(batch.targets))] if training else None
        relevant = batch.targets.saliency if training else None
        return self._whole(*batch.inputs, relevant=relevant, videos=videos)

    def loss(self, found: Any, batch: Batch) -> Tensor:
        """See `Side`."""
        return self._whole.loss(found, batch.targets)

    def outputs(self, found: Any) -> dict[str, Tensor]:
        """See `Side`."""
        values = {ours: found[theirs] for ours, theirs in _RELEASED.items()}
        return {name: value for name, value in values.items() if value is not None}
