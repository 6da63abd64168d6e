"""What following an object costs: memory over a long video, and time against sam2's own predictor.

    python bench/mask_tracking.py [--quick] [--size sam2.1_hiera_tiny] [--device cuda]

Memory: `stream` goes through 60 and through 600 frames that are made as they are asked for, each in
a process of its own; every mask becomes run lengths in the size of the frame, and nothing is kept.
The peak of the longer one is to be at most 1.3 times that of the shorter.

Time: ours against `SAM2VideoPredictor` of the package sam2, with the same weights and box, on the
same folder of JPEG files, from the files to masks in the size of the frames; one process, in turns,
after a run of each that compares the masks. The predictor takes the box, ours the tokens that
`Sam2.box_tokens` makes of it; ours keeps memories in bfloat16 as the predictor does, and neither
smooths masks afterwards. Frames have the size of SAM 2's images, because the two scale frames by
different filters. Times are processor seconds of one thread, on a GPU seconds by the clock: of each
frame the least of all repeats, summed. Weights are random unless there is a checkpoint, which
changes no cost; a released size takes 5 s or more a frame on a CPU (``--frames 6 --lengths 8 16
--repeats 3``).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # the predictor draws a bar for each of its loops

import numpy as np
import torch
from hydra.utils import instantiate
from PIL import Image
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from tpokit import Media
from tpokit.data.stream import stream_frames
from tpokit_mask.results import encode_mask
from tpokit_mask.sam2.build import configuration
from tpokit_mask.sam2_port import (
    Masks,
    Sam2,
    Sam2Sizes,
    Tracking,
    build,
    resize_frames,
    resized,
    stream,
)

_PEAK_GOAL, _TIME_GOAL = 1.3, 1.1
_HEIGHT, _WIDTH = 360, 640  # of the made stream
_DIFFERENT = 1e-3
"""Share of pixels of a frame that may differ: those where a logit is next to nothing."""


@dataclass(frozen=True)
class Case:
    """What is tracked.

    Attributes:
        size: Name of a released SAM 2, or sizes of its own.
        checkpoint: File of weights; ``None``: random ones.
        objects: Boxes, one object each.
        batch: Frames that ours encodes at once, if not the default.
        device: Where.
    """

    size: str | Sam2Sizes
    checkpoint: Path | None
    objects: int
    batch: int | None
    device: str

    def model(self) -> Sam2:
        """The same one each time."""
        torch.manual_seed(0)
        sam2 = build(self.size, checkpoint=self.checkpoint)
        if self.checkpoint is None:  # else chance may have it that nothing is ever visible
            torch.nn.init.constant_(
                sam2.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 9
            )
        return sam2.eval().requires_grad_(False).to(self.device)

    def boxes(self) -> Tensor:
        """Corners as fractions, ``[b, 4]``."""
        left = torch.arange(self.objects) / (2 * self.objects) + 0.1
        return torch.stack((left, left * 0 + 0.2, left + 0.3, left * 0 + 0.7), 1)

    def follow(
        self, sam2: Sam2, frames: Iterator[np.ndarray], tracking: Tracking
    ) -> Iterator[Masks]:
        """Ours, from frames uint8 ``[h, w, 3]``."""
        side = sam2.image_size
        images = (resize_frames(torch.from_numpy(frame)[None], side)[0] for frame in frames)
        maps = sam2.encode_each(images, self.batch)
        return stream(sam2, maps, sam2.box_tokens(self.boxes().to(self.device)), tracking)


def made_frames(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """A disc on its way over a pattern that moves, too: uint8 ``[h, w, 3]`` each."""
    row, column = np.mgrid[:height, :width].astype(np.float32)
    for index in range(count):
        wave = np.sin((column + 3 * index) / 17) * np.cos((row + 2 * index) / 23)
        grey = (127 + 60 * wave).astype(np.uint8)
        frame = np.stack([grey, np.roll(grey, index, 1), 255 - grey], -1)
        middle = width * (0.25 + 0.5 * (index % 100) / 100)
        disc = (column - middle) ** 2 + (row - 0.45 * height) ** 2 < (0.2 * height) ** 2
        frame[disc] = 240, 40, 40
        yield frame


# ---- memory ----


def measure_memory(case: Case, lengths: Sequence[int]) -> None:
    """Print how much memory the shorter and the longer stream take at most."""
    # a copy of this process has the libraries already; a GPU cannot be used in one
    context = multiprocessing.get_context("fork" if case.device == "cpu" else "spawn")
    found = []
    for count in lengths:
        report = context.SimpleQueue()
        process = context.Process(target=_stream_through, args=(case, count, report))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"tracking {count} frames failed")
        before_mb, peak_mb, seconds, size_kb = report.get()
        found.append(peak_mb)
        print(
            f"{count:5} frames of {_WIDTH} x {_HEIGHT}: peak RSS {peak_mb:7.1f} MB, "
            f"{peak_mb - before_mb:6.1f} MB above that with the model built; "
            f"{count / seconds:6.2f} frames/s, masks as run lengths {size_kb:.0f} kB"
        )
    ratio = found[-1] / found[0]
    reached = "reached" if ratio <= _PEAK_GOAL else "MISSED"
    print(f"peak of {lengths[-1]} / {lengths[0]} frames: {ratio:.3f}  goal {_PEAK_GOAL} {reached}")


def _stream_through(case: Case, count: int, report: multiprocessing.SimpleQueue) -> None:
    """Runs in a process of its own."""
    torch.set_num_threads(1)
    sam2 = case.model()
    before_mb, start, size = _resident_mb("VmRSS"), time.perf_counter(), 0
    frames = made_frames(count, _HEIGHT, _WIDTH)
    for masks in case.follow(sam2, frames, Tracking()):
        for mask in (resized(masks.chosen, _HEIGHT, _WIDTH) > 0).cpu().numpy():
            size += len(encode_mask(mask)["counts"])
    seconds = time.perf_counter() - start
    report.put((before_mb, _resident_mb("VmHWM"), seconds, size / 1000))


def _resident_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


# ---- time ----


class Ours:
    """What the mask head does."""

    def __init__(self, case: Case, frames: int) -> None:
        """Build the model."""
        self.sam2, self._case = case.model(), case
        self._tracking = Tracking(said_frames=frames, half_memory=True)

    def __call__(self, folder: Path) -> Iterator[Tensor]:
        """Logits in the size of the frames, ``[b, h, w]`` of each frame."""
        media = Media("video", folder, rate=24.0)
        frames = (frame.pixels for frame in stream_frames(media))
        side = self.sam2.image_size
        for masks in self._case.follow(self.sam2, frames, self._tracking):
            yield resized(masks.chosen, side, side)


class Predictor:
    """sam2's own."""

    def __init__(self, case: Case, ours: Sam2) -> None:
        """Build it as the package does, and take over the weights."""
        config = configuration(case.size)
        config._target_ = f"{SAM2VideoPredictor.__module__}.{SAM2VideoPredictor.__name__}"
        self._predictor: SAM2VideoPredictor = instantiate(config, _recursive_=True, _convert_="all")
        self._predictor.load_state_dict(ours.model.state_dict())
        self._predictor.eval().to(case.device)
        self._boxes = case.boxes() * ours.image_size

    def __call__(self, folder: Path) -> Iterator[Tensor]:
        """As ours."""
        state = self._predictor.init_state(str(folder))
        for index, box in enumerate(self._boxes):
            self._predictor.add_new_points_or_box(state, frame_idx=0, obj_id=index, box=box)
        for _, _, logits in self._predictor.propagate_in_video(state):
            yield logits[:, 0]


def compare(ours: Ours, theirs: Predictor, folder: Path) -> None:
    """Print how far the masks are apart.

    Raises:
        SystemExit: They are not the same.
    """
    different, apart, largest, covered, count = 0.0, 0.0, 0.0, 0.0, 0
    for mine, other in zip(ours(folder), theirs(folder), strict=True):
        different = max(different, ((mine > 0) != (other > 0)).float().mean().item())
        apart = max(apart, (mine - other).abs().max().item())
        largest = max(largest, other.abs().max().item())
        covered += (other > 0).float().mean().item()
        count += 1
    print(
        f"masks of {count} frames, which cover {covered / count:.0%}: at most {different:.1e} of "
        f"the pixels of a frame differ, logits by {apart:.1e} of up to {largest:.1f}"
    )
    if different > _DIFFERENT:
        raise SystemExit(f"more than {_DIFFERENT} of the pixels differ")


def seconds_of_frames(side: Ours | Predictor, folder: Path, device: str) -> np.ndarray:
    """What one side takes for each frame until its masks are there as yes and no, ``[t]``.

    What comes before the first frame counts as its.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    laps = [clock()]
    for logits in side(folder):
        (logits > 0).cpu()
        laps.append(clock())
    return np.diff(laps)


def measure_time(case: Case, frames: int, repeats: int) -> None:
    """Compare, then print frames per second of both sides and the ratio of their times."""
    ours = Ours(case, frames)
    theirs = Predictor(case, ours.sam2)
    side = ours.sam2.image_size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, frame in enumerate(made_frames(frames, side, side)):
            Image.fromarray(frame).save(folder / f"{index:05}.jpg", quality=95)
        compare(ours, theirs, folder)
        taken = np.zeros((repeats, 2, frames))
        for repeat in range(repeats):
            for index in (0, 1) if repeat % 2 else (1, 0):
                sides = ours, theirs
                taken[repeat, index] = seconds_of_frames(sides[index], folder, case.device)
    least = taken.min(0).sum(1)  # of each frame
    for title, needed in zip(("ours", "SAM2VideoPredictor"), least, strict=True):
        print(f"  {title:<18} {needed:8.3f} s, {frames / needed:7.2f} frames/s")
    middle = np.median(taken.sum(2), 0)
    ratio = least[0] / least[1]
    reached = "reached" if ratio <= _TIME_GOAL else "MISSED"
    print(
        f"time ours / theirs: {ratio:.2f}  goal {_TIME_GOAL} {reached}  (of the medians of whole "
        f"runs: {middle[0] / middle[1]:.2f})"
    )


def main() -> None:
    """Memory first, while this process is small."""
    parser = argparse.ArgumentParser(description="What following an object costs.")
    parser.add_argument("--quick", action="store_true", help="a few frames, seconds")
    parser.add_argument("--size", help="a released SAM 2; default: a tiny one of 128 pixels")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--batch", type=int, help="frames that ours encodes at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lengths", type=int, nargs=2, default=[60, 600])
    parser.add_argument("--frames", type=int, default=60, help="of the timed video")
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    size, lengths, frames, repeats = (
        given.size or Sam2Sizes(),
        given.lengths,
        given.frames,
        given.repeats,
    )
    if given.quick:
        size, lengths, frames, repeats = Sam2Sizes(image_size=64, width=32), [4, 8], 4, 1
    case = Case(size, given.checkpoint, given.objects, given.batch, given.device)
    print(f"torch {torch.__version__}, {case.device}, {case.objects} object(s), {case.size}")
    measure_memory(case, lengths)
    measure_time(case, frames, repeats)


if __name__ == "__main__":
    main()
