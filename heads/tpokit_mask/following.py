"""Objects through images and videos in inference: frame by frame, in bounded memory.

A video is decoded, encoded and tracked as it comes, and each mask becomes run lengths at once; so a
video of any length takes as much room. Several videos run side by side, in one batch.

Legend: n calls, v media, q frames of each that are encoded at once, S side of SAM 2's images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tpokit.data.stream import TimedFrame, stream_frames
from tpokit.errors import TpokitError
from tpokit.types import Media
from tpokit_mask.options import TrackingOptions
from tpokit_mask.results import FrameResult, MaskTrack, frame_result
from tpokit_mask.sam2_port import Masks, Sam2, Tracker, Tracking, resize_frames, resized

_IMAGES_AT_ONCE = 32
_SLACK_S = 1e-6  # times are computed


class _Block(NamedTuple):
    """The next q frames of v media; one that has ended repeats its last frame.

    ``frames [v][up to q]``: those that are there; ``images [v, q, 3, S, S]`` uint8.
    """

    frames: list[list[TimedFrame]]
    images: Tensor


@torch.no_grad()
def follow(
    sam2: Sam2, media: Sequence[Media], tokens: Tensor, options: TrackingOptions, batch: int
) -> list[MaskTrack]:
    """Where the object of each call is, on every frame of its medium.

    Args:
        sam2: In eval mode.
        media: Of each of the n calls.
        tokens: ``[n, k, d]`` prompt tokens; d: width of SAM 2.
        options: Of tracking.
        batch: Frames that are encoded at once.

    Raises:
        TpokitError: The prompt tokens are not finite.
        DataError: A medium cannot be read.
    """
    if not bool(tokens.isfinite().all()):
        raise TpokitError(
            "the mask head gave a prompt that is not finite: its weights or its input are broken"
        )
    found: dict[int, MaskTrack] = {}
    for together in _batches(list(dict.fromkeys(media)), options.videos_at_once):
        calls = [place for place, medium in enumerate(media) if medium in together]
        shown = torch.tensor([together.index(media[place]) for place in calls])
        tracks = _follow(sam2, together, tokens[calls], shown.to(tokens.device), options, batch)
        found.update(zip(calls, tracks, strict=True))
    return [found[place] for place in range(len(media))]


def _batches(media: Sequence[Media], videos_at_once: int) -> Iterator[list[Media]]:
    """Media that run side by side: images with images, videos with videos."""
    for kind, size in (("image", _IMAGES_AT_ONCE), ("video", videos_at_once)):
        alike = [medium for medium in media if medium.kind == kind]
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _follow(
    sam2: Sam2,
    media: Sequence[Media],
    tokens: Tensor,
    object_media: Tensor,
    options: TrackingOptions,
    batch: int,
) -> list[MaskTrack]:
    """Of calls about media that run side by side; ``object_media [n]`` says which one each is
    about.
    """
    tracker = Tracker(sam2, tokens, tracking_of(options, for_losses=False))
    streams = [_paced(stream_frames(medium), options.rate) for medium in media]
    places = object_media.tolist()
    frames: list[list[FrameResult]] = [[] for _ in places]
    sizes: dict[int, tuple[int, int]] = {}
    for block in _blocks(streams, sam2.image_size, max(1, batch // len(media))):
        count = block.images.shape[1]
        maps = sam2.narrow(sam2.encode(block.images.flatten(0, 1), batch))
        for step in range(count):
            masks = tracker.step(maps.rows(object_media * count + step))
            there = [row for row, medium in enumerate(places) if step < len(block.frames[medium])]
            shown = [block.frames[places[row]][step] for row in there]
            for row, result in zip(there, _results(masks, there, shown), strict=True):
                frames[row].append(result)
        for place, new in enumerate(block.frames):
            if new:
                sizes.setdefault(place, new[0].pixels.shape[:2])
    return [
        MaskTrack(media[place].kind, *sizes[place], tuple(found))
        for place, found in zip(places, frames, strict=True)
    ]


def tracking_of(options: TrackingOptions, for_losses: bool) -> Tracking:
    """The tracking that options ask for: masks as they are answered with, or as they are taught."""
    return Tracking(
        prompted=tuple(range(options.prompted)),
        append=options.append,
        three_masks=options.three_masks,
        gated=options.gated_loss or not for_losses,
        said_frames=options.said_frames,
        half_memory=options.half_memory and not for_losses,
    )


def _paced(frames: Iterator[TimedFrame], rate: float | None) -> Iterator[TimedFrame]:
    """The first frame, which is the one that is prompted, and from there ``rate`` a second."""
    if rate is None:
        yield from frames
        return
    due_s = None
    for frame in frames:
        due_s = frame.time_s if due_s is None else due_s
        if frame.time_s >= due_s - _SLACK_S:
            yield frame
        while due_s <= frame.time_s + _SLACK_S:
            due_s += 1 / rate


def _blocks(streams: Sequence[Iterator[TimedFrame]], side: int, count: int) -> Iterator[_Block]:
    """The frames of streams, up to ``count`` of each at a time, until all have ended."""
    last: dict[int, Tensor] = {}
    while any(frames := [list(islice(stream, count)) for stream in streams]):
        longest = max(map(len, frames))
        images = []
        for place, found in enumerate(frames):
            rows = last.get(place)
            if found:
                pixels = torch.from_numpy(np.stack([frame.pixels for frame in found]))
                rows = resize_frames(pixels, side)
                last[place] = rows[-1:]
            assert rows is not None, "every stream gives at least one frame"
            images.append(torch.cat([rows, rows[-1:].expand(longest - len(rows), -1, -1, -1)]))
        yield _Block(frames, torch.stack(images))


def _results(
    masks: Masks, rows: Sequence[int], shown: Sequence[TimedFrame]
) -> Iterator[FrameResult]:
    """What is answered of some objects on one frame each, at the size of their frames."""
    scores = masks.scores.sigmoid().tolist()
    sizes = [frame.pixels.shape[:2] for frame in shown]
    answers: dict[int, np.ndarray] = {}
    for size in set(sizes):  # one copy from the device for each
        alike = [row for row, found in zip(rows, sizes, strict=True) if found == size]
        answers.update(
            zip(alike, (resized(masks.chosen[alike], *size) > 0).cpu().numpy(), strict=True)
        )
    for row, frame in zip(rows, shown, strict=True):
        yield frame_result(frame.time_s, answers[row], scores[row])
