"""How well predicted boxes fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tpokit.answers import Box
from tpokit.geometry import aligned_iou, pairwise_iou
from tpokit.interfaces import Metric
from tpokit.types import MediaInfo

_HIT = 0.5
_CANDIDATES = 2000  # constant boxes that are tried
_ROWS = 256  # of them at once: [256, expected] numbers in memory

_Corners = tuple[float, float, float, float]
_NOWHERE: _Corners = (0.0, 0.0, 0.0, 0.0)


class RegionMetric(Metric):
    """``acc@0.5``: share of expected boxes that are met with IoU >= 0.5; ``mean_iou`` over them.

    Boxes are paired in reading order. An expected box without a prediction has IoU 0; predictions
    beyond the expected ones are neither rewarded nor punished. Tools differ in whether an IoU of
    exactly 0.5 counts; here it does. Source of the measure: Mao et al., CVPR 2016 (RefCOCOg).
    """

    task = "region"

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._predicted: list[_Corners] = []
        self._expected: list[_Corners] = []

    def add(self, predicted: Sequence[Box], expected: Sequence[Box], media: MediaInfo) -> None:
        """Take in one sample; boxes are in pixels of the medium. See `Metric.add`."""
        for index, box in enumerate(expected):
            self._expected.append(_fractions(box, media))
            found = index < len(predicted)
            self._predicted.append(_fractions(predicted[index], media) if found else _NOWHERE)

    def scores(self) -> dict[str, float]:
        """``acc@0.5`` and ``mean_iou``; empty when nothing was expected."""
        if not self._expected:
            return {}
        iou = aligned_iou(_tensor(self._predicted), _tensor(self._expected))
        return _summary(iou)

    def constant(self) -> dict[str, float]:
        """What the best constant box scores: of the expected boxes themselves (at most 2000, evenly
        spread), the one with the most hits, then with the highest mean IoU. Boxes are compared as
        fractions of their images.
        """
        if not self._expected:
            return {}
        expected = _tensor(self._expected)
        count = min(len(expected), _CANDIDATES)
        places = torch.linspace(0, len(expected) - 1, count, dtype=torch.float64).round().long()
        best = (-1.0, -1.0)
        for candidates in torch.split(expected[places], _ROWS):
            iou = pairwise_iou(candidates, expected)  # [candidates, expected]
            hits, means = (iou >= _HIT).double().mean(-1), iou.mean(-1)
            best = max(best, *zip(hits.tolist(), means.tolist(), strict=True))
        return {"acc@0.5": best[0], "mean_iou": best[1]}


def _fractions(box: Box, media: MediaInfo) -> _Corners:
    return (
        box.x0 / media.width,
        box.y0 / media.height,
        box.x1 / media.width,
        box.y1 / media.height,
    )


def _tensor(boxes: Sequence[_Corners]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64)


def _summary(iou: Tensor) -> dict[str, float]:
    return {"acc@0.5": float((iou >= _HIT).double().mean()), "mean_iou": float(iou.mean())}
