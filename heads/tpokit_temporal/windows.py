"""From what the detector gives to moments in seconds: the released post-processing, as options.

Source: wjun0830/CGDETR, cg_detr/inference.py, cg_detr/postprocessing_cg_detr.py and
utils/temporal_nms.py. Legend: n calls, q queries of the decoder, c clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tpokit_temporal.results import Moment, Moments

Floats = NDArray[np.float64]

_DECIMALS = 4  # of seconds and scores, as released


@dataclass(frozen=True)
class Decoding:
    """What is done to the moments of a call, in this order.

    Attributes:
        best_first: Sort by score; false: in the order of the decoder's queries.
        lengths_s: Least and greatest length; a moment outside is made as long. No published data
            set uses it.
        keep: Which point of such a moment stays.
        limits_s: Clamped to this part of the video.
        multiple_s: Start and end are rounded to multiples of it (half to even); ``None``: not.
        inside: Clamp to the video at the very end too; without (as released) rounding can lead
            beyond the last second.
        overlap: Non-maximum suppression: moments are dropped that overlap with a better one by more
            than this (`hull_overlap`); ``None``: all stay.
        most_before: Moments that enter the suppression at most, best first.
        most_after: Moments that are given at most, with suppression or without.
        half_saliency: Round saliency to 16 bits, as released; makes ties.
    """

    best_first: bool = True
    lengths_s: tuple[float, float] | None = None
    keep: Literal["start", "centre", "end"] = "start"
    limits_s: tuple[float, float] | None = None
    multiple_s: float | None = None
    inside: bool = True
    overlap: float | None = None
    most_before: int = 10
    most_after: int = 10
    half_saliency: bool = False


@dataclass(frozen=True)
class ClipScores:
    """Saliency of the clips of n calls.

    Attributes:
        scores: ``[n, c]``; what is beyond a call's own clips is ignored.
        counts: Clips of each call.
        clip_s: Length of a clip of each call, in seconds.
    """

    scores: Tensor
    counts: Sequence[int]
    clip_s: Sequence[float]


def decode_moments(
    logits: Tensor,
    moments: Tensor,
    durations_s: Sequence[float],
    clips: ClipScores | None = None,
    how: Decoding | None = None,
) -> list[Moments]:
    """Results of n calls, with a single copy from the device.

    Args:
        logits: ``[n, q, 2]`` for "a moment" (index 0) and "nothing" (index 1).
        moments: ``[n, q, 2]`` centre and width as fractions of the video.
        durations_s: Length of the video of each call, in seconds.
        clips: Saliency, if there is any.
        how: Rounding, limits and suppression; default: all moments, best first, in the video.
    """
    how = how or Decoding()
    calls, queries = logits.shape[:2]
    score = logits.float().softmax(-1)[..., :1]
    length_s = torch.tensor(durations_s, dtype=torch.float32).to(moments.device)[:, None, None]
    centre, half = moments[..., :1].float(), moments[..., 1:].float() / 2
    edges_s = torch.cat([centre - half, centre + half], dim=-1) * length_s
    edges_s = edges_s.clamp(min=0).minimum(length_s)
    found = torch.cat([edges_s, score], dim=-1)  # [n, q, 3]
    columns = [found.reshape(calls, queries * 3)]
    if clips is not None:
        given = clips.scores.half() if how.half_saliency else clips.scores
        columns.append(given.float())
    numbers = torch.cat(columns, dim=1).cpu().numpy().astype(np.float64)
    found_s = numbers[:, : queries * 3].reshape(calls, queries, 3)
    if how.best_first:
        found_s = _best_first(found_s)
    found_s = adjust(found_s.round(_DECIMALS), durations_s, how)
    kept = list(found_s[:, : how.most_after]) if how.overlap is None else suppress(found_s, how)
    return [
        Moments(tuple(Moment(*row) for row in rows.tolist()), *_saliency(numbers, index, clips))
        for index, rows in enumerate(kept)
    ]


def adjust(moments_s: Floats, durations_s: Sequence[float], how: Decoding) -> Floats:
    """Moments ``[n, q, 3]`` (start, end in seconds, score) with lengths, limits and multiples."""
    start_s, end_s = moments_s[..., 0], moments_s[..., 1]
    if how.lengths_s is not None:
        start_s, end_s = _resize(start_s, end_s, how.lengths_s, how.keep)
    edges_s = np.stack([start_s, end_s], axis=-1)
    if how.limits_s is not None:
        edges_s = edges_s.clip(*how.limits_s)
    if how.multiple_s is not None:
        edges_s = np.rint(edges_s / how.multiple_s) * how.multiple_s  # half to even
    if how.inside:
        edges_s = edges_s.clip(0, np.asarray(durations_s, dtype=np.float64)[:, None, None])
    return np.concatenate([edges_s, moments_s[..., 2:]], axis=-1)


def suppress(moments_s: Floats, how: Decoding) -> list[Floats]:
    """Non-maximum suppression of moments ``[n, q, 3]``: n tables ``[k, 3]``, best first.

    A moment stays unless it overlaps by more than ``how.overlap`` with a better one that stays.
    """
    ranked = _best_first(moments_s[:, : how.most_before])
    if how.overlap is None:
        return list(ranked[:, : how.most_after])
    close = hull_overlap(ranked[:, :, None, :2], ranked[:, None, :, :2]) > how.overlap
    stays = np.ones(ranked.shape[:2], dtype=bool)
    for rank in range(ranked.shape[1]):
        stays[:, rank + 1 :] &= ~(close[:, rank, rank + 1 :] & stays[:, rank, None])
    stays &= stays.cumsum(-1) <= how.most_after
    return [rows[chosen] for rows, chosen in zip(ranked, stays, strict=True)]


def hull_overlap(first_s: Floats, second_s: Floats) -> Floats:
    """Intersection ``[...]`` of moments ``[..., 2]`` (start, end) that broadcast, divided by their
    hull, from the earlier start to the later end; 0 where either is empty.
    """
    both = np.minimum(first_s[..., 1], second_s[..., 1]) - np.maximum(
        first_s[..., 0], second_s[..., 0]
    )
    hull = np.maximum(first_s[..., 1], second_s[..., 1]) - np.minimum(
        first_s[..., 0], second_s[..., 0]
    )
    overlap: Floats = np.zeros(both.shape)
    np.divide(both.clip(0), hull, out=overlap, where=hull > 0)
    return overlap


def _best_first(moments_s: Floats) -> Floats:
    order = np.argsort(-moments_s[..., 2], axis=-1, kind="stable")
    return np.take_along_axis(moments_s, order[..., None], axis=-2)


def _resize(
    start_s: Floats, end_s: Floats, lengths_s: tuple[float, float], keep: str
) -> tuple[Floats, Floats]:
    length_s = (end_s - start_s).clip(*lengths_s)
    other = length_s != end_s - start_s  # the rest must not be touched by rounding
    centre_s = (start_s + end_s) / 2
    first_s = {"start": start_s, "centre": centre_s - length_s / 2, "end": end_s - length_s}[keep]
    last_s = {"start": start_s + length_s, "centre": centre_s + length_s / 2, "end": end_s}[keep]
    return np.where(other, first_s, start_s), np.where(other, last_s, end_s)


def _saliency(
    numbers: Floats, index: int, clips: ClipScores | None
) -> tuple[tuple[float, ...], float]:
    """Saliency and length of the clips of one call; it stands in the last columns."""
    if clips is None:
        return (), 0.0
    first = numbers.shape[1] - clips.scores.shape[1]
    row = numbers[index, first : first + clips.counts[index]]
    return tuple(row.tolist()), float(clips.clip_s[index])
