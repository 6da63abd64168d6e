"""What a training step of the mask head costs: samples side by side, and kept features.

    python bench/mask_training.py [--quick] [--size sam2.1_hiera_tiny] [--device cuda]

A step is all that the head does: files are read and prepared, collated, encoded, segmented or
tracked, and the losses go back to the slots. First four samples in one step against four steps with
one each, of which the gradients must be equal: images, then clips of four frames. Then, with
``--cached``, a step that finds the features of its frames on the disk against one that encodes
them. One process, in turns; on a CPU times are least processor seconds of one thread, on a GPU
least seconds by the clock. Weights are random.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from timing import seconds
from torch import Tensor

from tpokit.batch import moved
from tpokit.data.media import read_media
from tpokit.interfaces import Host
from tpokit.types import Context, Media, MediaInfo, Seen
from tpokit_mask.head import MaskHead
from tpokit_mask.losses.weights import RELEASED_WEIGHTS
from tpokit_mask.options import MaskOptions
from tpokit_mask.results import encode_mask
from tpokit_mask.sam2_port import Sam2Sizes, build

HIDDEN = 256
SAMPLES = 4
CLIP_FRAMES = 4
TOLERANCE = 1e-5
OWN_SIZE = Sam2Sizes()
_WEIGHTS = {**RELEASED_WEIGHTS["sam2"], "box_tokens": 1.0, "box_l1": 1.0}


@dataclass(frozen=True)
class Drawn:
    """A sample: its medium, the annotation of one object, and the hidden state of its slot."""

    media: Media
    annotation: dict[str, Any]
    slot: Tensor


def draw(folder: Path, frames: int, side: int) -> list[Drawn]:
    """Pictures of a bright disc that moves over noise; a clip is a folder of them."""
    random = np.random.default_rng(frames)
    drawn = []
    rows, columns = np.mgrid[:side, :side]
    for number in range(SAMPLES):
        place = folder / f"{frames}_{number}"
        place.mkdir()
        annotated = []
        for frame in range(frames):
            centre = side * (0.3 + 0.1 * number), side * (0.3 + 0.1 * frame)
            disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < (side / 6) ** 2
            pixels = random.integers(0, 128, (side, side, 3), dtype=np.uint8)
            pixels[disc] += 127
            Image.fromarray(pixels).save(place / f"{frame}.png", compress_level=1)
            annotated.append({"time_s": frame / 8, "mask": {"rle": encode_mask(disc)}})
        media = Media("video", place, rate=8.0)
        if frames == 1:
            media = Media("image", place / "0.png")
            del annotated[0]["time_s"]
        slot = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(number))
        drawn.append(Drawn(media, {"frames": annotated}, slot))
    return drawn


class Stepper:
    """One head, and its training steps."""

    def __init__(self, options: dict[str, Any], device: str) -> None:
        """Build a head; all heads of a run have the same weights."""
        torch.manual_seed(0)
        host = Host(HIDDEN)
        self.head = MaskHead(MaskOptions(frames=CLIP_FRAMES, **options), host).to(device).train()
        self._device = device

    def step(self, samples: Sequence[Drawn], share: float) -> None:
        """Add the gradients of some samples; ``share`` is what their losses count."""
        head = self.head
        need = head.context_need().media
        assert need is not None, "it learns from masks"
        prepared, targets = [], []
        for sample in samples:
            wanted = head.wants_frames(sample.media)
            views = read_media(sample.media, {"head": need}) if wanted else {}
            seen = Seen("bench", "", (sample.media,), (_info(sample),), tuple(views.values()))
            seen = replace(seen, prepared=head.prepare(seen))
            prepared.append(seen.prepared)
            targets.append(head.read_target(sample.annotation, seen))
        right = moved(head.collate(targets), self._device)
        clips = moved(head.collate_prepared(prepared), self._device)
        slots = torch.stack([sample.slot for sample in samples]).to(self._device)
        found = head(slots, Context(prepared=clips, targets=right))
        loss = torch.stack(
            [_WEIGHTS[name] * term.sum for name, term in head.loss(found, right).items()]
        ).sum()
        (loss * share).backward()

    def together(self, samples: Sequence[Drawn]) -> None:
        """One step with all samples."""
        self.head.zero_grad()
        self.step(samples, 1 / len(samples))

    def one_by_one(self, samples: Sequence[Drawn]) -> None:
        """A step with each sample."""
        self.head.zero_grad()
        for sample in samples:
            self.step([sample], 1 / len(samples))

    def gradients(self) -> list[Tensor]:
        """Of all that learns, copied."""
        return [p.grad.clone() for p in self.head.parameters() if p.grad is not None]


def _info(sample: Drawn) -> MediaInfo:
    height, width = sample.annotation["frames"][0]["mask"]["rle"]["size"]
    return MediaInfo(sample.media.kind, width, height, len(sample.annotation["frames"]) / 8)


def least_seconds(runs: Sequence[Callable[[], object]], device: str, repeats: int) -> list[float]:
    """Least time of each of two runs, in turns."""
    least = [float("inf")] * len(runs)
    for repeat in range(repeats):
        for index in (0, 1) if repeat % 2 else (1, 0):
            least[index] = min(least[index], seconds(runs[index], device))
    return least


def compare(options: dict[str, Any], samples: Sequence[Drawn], goal: float, run: Any) -> None:
    """Print gradients and times of samples side by side and one by one.

    Raises:
        SystemExit: The gradients are not equal.
    """
    stepper = Stepper(options, run.device)
    stepper.together(samples)
    together = stepper.gradients()
    stepper.one_by_one(samples)
    scale = max(float(gradient.abs().max()) for gradient in together)
    apart = max(
        float((one - other).abs().max()) / scale
        for one, other in zip(together, stepper.gradients(), strict=True)
    )
    what = "images" if samples[0].media.kind == "image" else f"clips of {CLIP_FRAMES} frames"
    if apart > TOLERANCE:
        raise SystemExit(f"{what}: gradients differ by {apart:.1e} of their maximum")
    runs = [lambda: stepper.together(samples), lambda: stepper.one_by_one(samples)]
    side_by_side, single = least_seconds(runs, run.device, run.repeats)
    print(
        f"{len(samples)} {what}: {side_by_side:.3f} s in one step, {single:.3f} s in "
        f"{len(samples)}: {single / side_by_side:.2f} x as fast (goal {goal}); gradients differ "
        f"by {apart:.1e} of their maximum"
    )


def compare_cached(
    options: dict[str, Any], samples: Sequence[Drawn], folder: Path, run: Any
) -> None:
    """Print the times of a step with and without kept features."""
    plain = Stepper(options, run.device)
    keeping = {**options, "sam2": {**options["sam2"], "cache": str(folder / "features")}}
    kept = Stepper(keeping, run.device)
    kept.together(samples)  # fills the cache
    runs = [lambda: kept.together(samples), lambda: plain.together(samples)]
    found, encoded = least_seconds(runs, run.device, run.repeats)
    print(
        f"{len(samples)} images: {found:.3f} s with kept features, {encoded:.3f} s without: "
        f"{encoded / found:.2f} x as fast (goal 3 at the size sam2.1_hiera_tiny)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repeat, images only")
    parser.add_argument("--size", help="a released size instead of a very small one")
    parser.add_argument("--cached", action="store_true", help="measure kept features as well")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    run = parser.parse_args()
    torch.set_num_threads(1)
    run.repeats = 1 if run.quick else run.repeats
    size: Any = run.size or OWN_SIZE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(1)
        save_file(build(size).model.state_dict(), folder / "weights.safetensors")
        sam2 = {"size": size, "checkpoint": str(folder / "weights.safetensors")}
        side = build(size).image_size
        images = draw(folder, 1, side)
        goal = 1.0 if run.size and run.device == "cpu" else 1.5
        compare({"sam2": sam2}, images, goal, run)
        if not run.quick:
            compare({"sam2": sam2}, draw(folder, CLIP_FRAMES, side), goal, run)
        if run.cached:
            compare_cached({"sam2": sam2}, images, folder, run)


if __name__ == "__main__":
    main()
