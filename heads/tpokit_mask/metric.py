"""How well the mask head's results fit, for ``tpokit evaluate``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tpokit.interfaces import Metric
from tpokit.types import MediaInfo
from tpokit_mask.constant_mask import Bits, constant_for_images, constant_for_videos, grid_bits
from tpokit_mask.metrics.boundary import boundary_accuracy
from tpokit_mask.metrics.boxes import repeat_empty
from tpokit_mask.metrics.protocols import MaskScores
from tpokit_mask.metrics.referring import referring_scores
from tpokit_mask.metrics.region import Bools, Floats, Overlap, overlap
from tpokit_mask.metrics.tracking_benchmarks import TrackedSequence, got10k_scores, lasot_scores
from tpokit_mask.results import FrameResult, MaskTrack

_NO_FRAME = -1
_SLACK_S = 1e-3  # times of the same frame may differ by rounding


class MaskMetric(Metric):
    """Images: ``giou`` (mean IoU of the masks; not the generalised IoU of boxes) and ``ciou`` (IoU
    of all pixels of all images). Videos: ``j`` (region), ``f`` (boundary), ``j&f`` (their mean):
    mean over the expected frames of a call, then over calls. Tracks of which only boxes are
    expected: ``auc``, ``precision`` and ``norm_precision`` (at 0.2 sizes) of LaSOT as pytracking
    computes them, ``ao``, ``sr@0.5`` and ``sr@0.75`` of GOT-10k; see `tracking_benchmarks`: in
    these the first frame is given, and an empty mask repeats the last box.

    Results are paired in reading order. An expected one without a prediction, and an expected frame
    at whose time nothing was predicted, count as empty masks: right where nothing is to be seen.
    Predictions beyond the expected ones are neither rewarded nor punished. The frame of a
    prediction that answers for an expected one is the nearest, at most half a step away (of the
    prediction or of the expectation, whichever is longer). Masks are compared at the original size.

    An expected result without a frame does not count; nor does an image with a box but no mask, nor
    a track of boxes that shows its target on the first frame only.
    """

    task = "mask"

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._overlaps: list[tuple[int, int]] = []
        self._areas_px: list[int] = []
        self._image_grids: list[Bits] = []
        self._quality: list[tuple[float, float]] = []  # J, F
        self._video_grids: list[Bits] = []
        self._tracks: list[TrackedSequence] = []

    def add(
        self, predicted: Sequence[MaskTrack], expected: Sequence[MaskTrack], media: MediaInfo
    ) -> None:
        """Take in one sample; of its masks only numbers are kept. See `Metric.add`.

        Raises:
            DataError: A predicted mask is not of the size of the medium.
        """
        for index, wanted in enumerate(expected):
            nothing = MaskTrack(wanted.kind, wanted.height_px, wanted.width_px, ())
            found = predicted[index] if index < len(predicted) else nothing
            known = [place for place, frame in enumerate(wanted.frames) if _has_mask(frame)]
            if _boxes_only(wanted):
                self._add_track(found, wanted)
            elif known and wanted.kind == "image":
                self._add_image(found, wanted)
            elif known:
                self._add_video(found, wanted, known)

    def scores(self) -> dict[str, float]:
        """All measures of the kinds of results that were expected."""
        measures: dict[str, float] = {}
        if self._overlaps:
            pixels = Overlap(*np.array(self._overlaps, dtype=np.int64).T)
            measures |= referring_scores(pixels)._asdict()
        if self._quality:
            measures |= _video_measures(MaskScores(*np.mean(self._quality, axis=0).tolist()))
        if self._tracks:
            lasot, got10k = lasot_scores(self._tracks), got10k_scores(self._tracks)
            measures["auc"] = lasot.success_auc
            measures["precision"] = lasot.precision_at_20_px
            measures["norm_precision"] = lasot.normalised_precision_at_020
            measures["ao"] = got10k.average_overlap
            measures["sr@0.5"] = got10k.success_at_50
            measures["sr@0.75"] = got10k.success_at_75
        return measures

    def constant(self) -> dict[str, float]:
        """What the best constant mask would have scored: of images that with the best ``giou``, of
        videos that with the best ``j``, the same on all frames. Tried are the empty mask, the full
        one, and the mean expected mask cut at each tenth of its largest value. They are compared on
        a grid of 64 x 64 cells, not at the original size. Tracks of boxes have no constant: their
        first box is given.
        """
        measures: dict[str, float] = {}
        if self._image_grids:
            measures |= constant_for_images(self._image_grids, self._areas_px)._asdict()
        if self._video_grids:
            measures |= _video_measures(constant_for_videos(self._video_grids))
        return measures

    def _add_image(self, found: MaskTrack, wanted: MaskTrack) -> None:
        true = wanted.mask(0)
        pixels = overlap(_mask(found, 0 if found.frames else _NO_FRAME), true)
        self._overlaps.append((int(pixels.intersection_px), int(pixels.union_px)))
        self._areas_px.append(true.size)
        self._image_grids.append(grid_bits(true))

    def _add_video(self, found: MaskTrack, wanted: MaskTrack, known: Sequence[int]) -> None:
        shown = _shown(found, [wanted.frames[place].time_s for place in known])
        region, boundary, grids = [], [], []
        for place, answer in zip(known, shown.tolist(), strict=True):  # one mask at a time
            true, mask = wanted.mask(place), _mask(found, answer)
            region.append(float(overlap(mask, true).iou))
            boundary.append(float(boundary_accuracy(mask, true)))
            grids.append(grid_bits(true))
        self._quality.append((float(np.mean(region)), float(np.mean(boundary))))
        self._video_grids.append(np.stack(grids))

    def _add_track(self, found: MaskTrack, wanted: MaskTrack) -> None:
        true = _boxes_xywh_px(wanted.frames)
        visible = np.array([frame.box is not None for frame in wanted.frames])
        if not (visible & (true > 0).all(-1))[1:].any():  # no benchmark can score it
            return
        shown = _shown(found, [frame.time_s for frame in wanted.frames])
        # the last row is for frames that nothing was predicted on
        boxes = np.concatenate([repeat_empty(_boxes_xywh_px(found.frames)), np.zeros((1, 4))])
        size_px = (float(wanted.width_px), float(wanted.height_px))
        name = f"track {len(self._tracks)}"
        self._tracks.append(
            TrackedSequence(name, repeat_empty(boxes[shown]), true, visible, size_px)
        )


def _has_mask(frame: FrameResult) -> bool:
    """Whether the mask is known; it is empty where the object is not visible."""
    return frame.rle is not None or frame.box is None


def _boxes_only(wanted: MaskTrack) -> bool:
    return any(frame.box is not None for frame in wanted.frames) and all(
        frame.rle is None for frame in wanted.frames
    )


def _mask(found: MaskTrack, place: int) -> Bools:
    if place == _NO_FRAME:
        return np.zeros((found.height_px, found.width_px), dtype=bool)
    return found.mask(place)


def _shown(found: MaskTrack, times_s: Sequence[float]) -> NDArray[np.int64]:
    """Places of the frames that answer for frames at some times; see `MaskMetric`."""
    own_s, asked_s = np.array([frame.time_s for frame in found.frames]), np.array(times_s)
    if not len(own_s):
        return np.full(len(asked_s), _NO_FRAME)
    after = np.searchsorted(own_s, asked_s).clip(max=len(own_s) - 1)
    before = np.maximum(after - 1, 0)
    nearer = np.abs(own_s[before] - asked_s) <= np.abs(own_s[after] - asked_s)
    places = np.where(nearer, before, after)
    reach_s = max(_step_s(own_s), _step_s(asked_s)) / 2 + _SLACK_S
    return np.where(np.abs(own_s[places] - asked_s) <= reach_s, places, _NO_FRAME)


def _step_s(times_s: Floats) -> float:
    """From a frame to the next, usually; 0 for one frame."""
    return float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0


def _boxes_xywh_px(frames: Sequence[FrameResult]) -> Floats:
    """Boxes ``[t, 4]``, zeros where the object is not visible."""
    corners = [frame.box or (0.0, 0.0, 0.0, 0.0) for frame in frames]
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _video_measures(found: MaskScores) -> dict[str, float]:
    return {"j": found.region, "f": found.boundary, "j&f": found.mean}
