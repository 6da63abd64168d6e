"""What the head knows of features, wherever they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import tpokit

_EPSILON = 1e-5


class Features(NamedTuple):
    """Features of the videos and queries of n calls.

    n: calls; l: most clips; t: most words; v, w: widths. Valid clips and words come first, what is
    behind them is zero.

    Attributes:
        clips: ``[n, l, v]`` float32, without the two channels of the clip's place in the video.
        clip_mask: ``[n, l]`` bool.
        clip_s: ``[n]`` float32, length of a clip in seconds: clip k of a call shows ``[k clip_s, (k
            + 1) clip_s]`` of its video.
        words: ``[n, t, w]`` float32; ``None`` if the words are not the extractor's affair.
        word_mask: ``[n, t]`` bool.
    """

    clips: Tensor
    clip_mask: Tensor
    clip_s: Tensor
    words: Tensor | None = None
    word_mask: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Features:
        """The same on a device."""
        there: dict[str, Any] = {
            name: None if part is None else part.to(device, non_blocking=non_blocking)
            for name, part in self._asdict().items()
        }
        return Features(**there)


@dataclass(frozen=True)
class Prepared:
    """What a data worker found out about the video and the query of one call.

    Attributes:
        clip_count: l, clips of the video.
        clip_s: Length of a clip in seconds.
    """

    clip_count: int
    clip_s: float


class FeatureExtractor(ABC):
    """Gives features of clips and words.

    It is no module: it has no trainable parameters, and what it loads is frozen, so nothing of it
    belongs into a checkpoint. A head holds it as a plain attribute; copies in data workers are
    without weights.

    Attributes:
        video_width: v, numbers of a clip.
        text_width: w, numbers of a word; ``None``: the words are not its affair, the head takes
            hidden states of the LLM.
    """

    video_width: int
    text_width: int | None

    @abstractmethod
    def context_need(self) -> tpokit.ContextNeed:
        """What the core must give: frames of the video, words of the LLM."""

    def wants_frames(self, media: tpokit.Media) -> bool:
        """Whether `prepare` needs the frames of a medium; false if its features are there already
        (runs in data workers, before decoding).
        """
        return self.context_need().media is not None

    @abstractmethod
    def prepare(self, seen: tpokit.Seen) -> Prepared:
        """Read or preprocess what belongs to one call (runs in data workers).

        Raises:
            DataError: A file is missing or wrong, or the call is about no video.
        """

    @abstractmethod
    def collate(self, prepared: Sequence[Any]) -> Any:
        """What `prepare` gave for the n calls of a batch, as tensors (runs in data workers); n may
        be 0.
        """

    @abstractmethod
    def encode(self, collated: Any, device: torch.device) -> Features:
        """Features of the n calls on a device (runs in the model's step).

        Without calls the tensors are ``[0, 1, ...]`` and of the right widths.
        """


def first_video(seen: tpokit.Seen) -> tuple[tpokit.Media, tpokit.MediaInfo]:
    """The video that a call is about.

    Raises:
        DataError: The first medium is not a video, or there is none.
    """
    if not seen.media or seen.media[0].kind != "video":
        found = f"its first medium is an {seen.media[0].kind}" if seen.media else "it has no medium"
        raise tpokit.DataError(f"{seen.where}: moments are found in a video, but {found}")
    return seen.media[0], seen.info[0]


def padded(rows: Sequence[Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Sequences ``[l_i, width]`` of n calls as ``[n, l, width]`` and their mask ``[n, l]``; l is at
    least 1.
    """
    if not rows:
        return torch.zeros(0, 1, width), torch.zeros(0, 1, dtype=torch.bool)
    together = pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=together.device)
    places = torch.arange(together.shape[1], device=together.device)
    return together, places < lengths[:, None]


def centred(clips: Tensor, mask: Tensor) -> Tensor:
    """Clips ``[n, l, v]`` less the mean of those of their video; 0 where the mask ``[n, l]`` is
    false.
    """
    shown = mask.unsqueeze(-1)
    clips = clips.masked_fill(~shown, 0)
    mean = clips.sum(1, keepdim=True) / shown.sum(1, keepdim=True).clamp(min=1)
    return (clips - mean).masked_fill(~shown, 0)


def unit(rows: Tensor) -> Tensor:
    """Rows ``[..., v]`` scaled to length 1 as published: ``x / (|x| + 1e-5)``."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / (lengths + _EPSILON)
