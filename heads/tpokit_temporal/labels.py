"""Which clips of a video are worth seeing, and which ones are compared; does not import torch.

A grade is from 0 (has nothing to do with the query) to `GRADES`. Rules that are not ours:
wjun0830/CGDETR, cg_detr/start_end_dataset.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

GRADES = 12
"""Largest grade that the losses know: the sum of three ratings from 0 to 4, as in QVHighlights."""
_ROUNDING = 1e-9  # so that what lies exactly between two parts is not a matter of rounding

Edges = tuple[float, float]
Pair = tuple[int, int]


def to_fractions(moments_s: Sequence[Edges], length_s: float) -> tuple[Edges, ...]:
    """Start and end in seconds to centre and width as fractions of ``length_s``.

    We scale by the duration of the video, by which predictions are scaled back; released: by number
    x length of the clips, which may differ from it.
    """
    return tuple(
        ((start + end) / 2 / length_s, (end - start) / length_s) for start, end in moments_s
    )


def clips_inside(edges_s: Edges, clips: int, duration_s: float) -> tuple[float, ...]:
    """1 for clips whose middle lies in a moment, else 0; ``clips`` values.

    A moment that holds no middle is in the clip that holds the moment's own middle.
    """
    start, end = (edge / duration_s * clips for edge in edges_s)  # in clips
    first, behind = math.ceil(start - 0.5), math.ceil(end - 0.5)
    if first >= behind:
        first = min(int((start + end) / 2), clips - 1)
        behind = first + 1
    return tuple(float(first <= clip < behind) for clip in range(clips))


def released_inside(edges_s: Edges, clips: int, duration_s: float) -> tuple[float, ...]:
    """The same by the released rule for Charades-STA, TACoS and NLQ.

    The clip in which the moment ends does not count, even where the whole moment lies in it: then
    the clip before it does.
    """
    clip_s = duration_s / clips
    last = max(0, min(int(edges_s[1] / clip_s), clips) - 1)
    first = min(int(edges_s[0] / clip_s), last)
    return tuple(float(first <= clip <= last) for clip in range(clips))


def resample(
    values: Sequence[float], part_s: float, clips: int, duration_s: float
) -> tuple[float, ...]:
    """Values for parts of ``part_s`` seconds, from the start, to values for equal ``clips``.

    A clip takes the value of the part that its middle lies in, 0 behind the last part. Where parts
    are shorter than clips, it takes the largest value of the parts whose middles lie in it, so that
    no highlight is lost.
    """
    clip_s = duration_s / clips
    if part_s < clip_s:
        largest = [0.0] * clips
        for part, value in enumerate(values):
            clip = int((part + 0.5) * part_s / clip_s + _ROUNDING)
            if clip < clips:
                largest[clip] = max(largest[clip], value)
        return tuple(largest)
    parts = [int((clip + 0.5) * clip_s / part_s + _ROUNDING) for clip in range(clips)]
    return tuple(values[part] if part < len(values) else 0.0 for part in parts)


def choose_pairs(saliency: Sequence[float], random: np.random.Generator) -> tuple[Pair, Pair]:
    """Two pairs of clips, the first of each to be more salient than the second.

    Where relevant clips differ in grade: the best with the worst of them, and a random relevant
    with a random irrelevant clip (without any, the first pair again). Else: two random relevant
    clips, each with a random irrelevant one; where there is but one of a kind, it is taken twice
    (released: not a single irrelevant one). Where all clips are relevant, or none is, a clip is
    paired with itself, which teaches nothing.

    Args:
        saliency: Of each clip, at least one; relevant above 0.
        random: Makes the choices.
    """
    grades = np.asarray(saliency)
    relevant, irrelevant = np.flatnonzero(grades > 0), np.flatnonzero(grades <= 0)
    if len(np.unique(grades[relevant])) > 1:
        ranked = relevant[np.argsort(grades[relevant], kind="stable")]
        first = (int(ranked[-1]), int(ranked[0]))
        if not len(irrelevant):
            return first, first
        return first, (int(random.choice(relevant)), int(random.choice(irrelevant)))
    better = _two_of(relevant if len(relevant) else irrelevant, random)
    worse = _two_of(irrelevant, random) if len(relevant) and len(irrelevant) else better
    return (better[0], worse[0]), (better[1], worse[1])


def _two_of(clips: np.ndarray, random: np.random.Generator) -> Pair:
    first, second = random.choice(clips, 2, replace=len(clips) < 2)
    return int(first), int(second)
