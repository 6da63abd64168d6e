"""How the tiny SAM 2 of the shapes world is made: it segments what a box or a point prompts.

Run:  python examples/shapes_world_sam2.py FOLDER
which writes ``segment`` and, from it, ``sam2.safetensors``, in about an hour on one core. It has
seen no word: what to segment comes from the prompt alone, as in the released SAM 2, and the mask
head learns to make such prompts. What took longest to find: to follow an object is learnt from
short clips, many at a time, with a frozen image encoder.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tpokit_mask.losses.options import LossOptions
from tpokit_mask.losses.terms import DecodedMasks, WantedMasks, mask_terms
from tpokit_mask.losses.weights import RELEASED_WEIGHTS
from tpokit_mask.sam2_port import Sam2, Sam2Sizes, Tracking, build, resize_frames, track
from tpokit_shapes_world.painting import paint
from tpokit_shapes_world.scenes import SceneOptions, make_scene

SIZES = Sam2Sizes(image_size=128, width=32, memory_width=16, trunk_width=16)
IMAGES = SceneOptions()
CLIPS = SceneOptions(frames=8, interval_frames=(5, 8), from_start=True)
WORLD = 7  # a seed of its own: no scene of it is trained or scored on elsewhere
IMAGE_BATCH = 24
IMAGE_SCENES, CLIP_SCENES = 12_000, 3_000
CLIP_NORM = 1.0
JITTER = 0.15  # of the side of a box: how far a prompted corner is off, at most


@dataclass(frozen=True)
class Run:
    """How long, and on what.

    Attributes:
        name: Of the file that it writes.
        steps: How many.
        images: The first of them, on images alone; of the others one in ``every`` is.
        clips: In a step.
        frames: Fewest and most of a clip.
        stride: Most frames from one to the next, of short clips.
        rate: Peak learning rate, after ``warmup`` steps; then half a cosine over ``horizon``.
        encoder: Whether the image encoder learns.
        points: Share of the steps on images that prompt by a point.
    """

    name: str
    steps: int
    images: int
    every: int
    clips: int
    frames: tuple[int, int]
    stride: int
    rate: float
    warmup: int
    horizon: int
    encoder: bool
    points: float


RUNS = (
    Run("segment", 4000, 2500, 3, 6, (4, 8), 1, 1.5e-3, 100, 4000, True, 0.25),
    Run("sam2", 1000, 0, 8, 8, (2, 4), 2, 1.5e-3, 50, 3000, False, 0.0),
)
SHORT = 4  # frames: clips of up to so many may skip some


class Scenes(NamedTuple):
    """Scenes side by side: n frames of f scenes, b objects.

    ``frames [n, 3, S, S]`` uint8; ``object_frames [b, t]`` into them; ``masks [b, t, S, S]`` bool;
    ``boxes [b, 4]`` in the first frame, fractions.
    """

    frames: Tensor
    object_frames: Tensor
    masks: Tensor
    boxes: Tensor


def main() -> None:
    """Do both runs and write their weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    before: Path | None = None
    for seed, run in enumerate(RUNS):
        torch.manual_seed(seed)
        weights = train(run, before, np.random.default_rng(min(seed, 1)))
        before = folder / f"{run.name}.safetensors"
        save_file(weights, before)


def train(run: Run, start: Path | None, random: np.random.Generator) -> dict[str, Tensor]:
    """Weights after a run, in float16."""
    sam2 = build(SIZES, checkpoint=start).set_trained("everything")
    if start is None:
        with torch.no_grad():  # objects are there mostly, so that masks learn from the first step
            sam2.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(2.0)
    sam2.model.image_encoder.requires_grad_(run.encoder)
    sam2.train()
    trained = [parameter for parameter in sam2.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=run.rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, run))
    began, seen = time.monotonic(), {"loss": 0.0, "images": 0.0, "clips": 0.0}
    for step in range(run.steps):
        of_clips = step >= run.images and step % run.every != 0
        loss, iou = loss_of(sam2, draw(random, of_clips, run), random, run)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        schedule.step()
        now = {"loss": float(loss.detach()), "clips" if of_clips else "images": iou}
        seen |= {name: 0.95 * seen[name] + 0.05 * value for name, value in now.items()}
        if step % 50 == 49:
            means = ", ".join(f"{name} {value:.3f}" for name, value in seen.items())
            spent = f"{time.monotonic() - began:.0f} s"
            print(f"{run.name} {step + 1} of {run.steps}: {means}, {spent}", flush=True)  # noqa: T201
    return {name: value.half().contiguous() for name, value in sam2.model.state_dict().items()}


def rate(step: int, run: Run) -> float:
    """Warm-up, then half a cosine."""
    share = (step - run.warmup) / max(run.horizon - run.warmup, 1)
    return (step + 1) / run.warmup if step < run.warmup else 0.5 * (1 + math.cos(math.pi * share))


def draw(random: np.random.Generator, of_clips: bool, run: Run) -> Scenes:
    """Some scenes; of clips some frames from the start."""
    options, size = (CLIPS, run.clips) if of_clips else (IMAGES, IMAGE_BATCH)
    count, stride = 1, 1
    if of_clips:
        count = int(random.integers(run.frames[0], run.frames[1] + 1))
        if run.stride > 1 and count <= SHORT:
            stride = int(random.integers(1, run.stride + 1))
    shown = slice(0, count * stride, stride)
    frames, places, masks, boxes = [], [], [], []
    for index in random.integers(CLIP_SCENES if of_clips else IMAGE_SCENES, size=size):
        scene = make_scene(WORLD, int(index), options)
        first = sum(len(part) for part in frames)
        frames.append(torch.from_numpy(paint(scene)[shown]))
        for thing, mask in enumerate(scene.masks[:, shown]):
            corners = scene.box_px(thing)
            assert corners is not None
            places.append(torch.arange(first, first + count))
            masks.append(torch.from_numpy(mask.copy()))
            boxes.append(torch.tensor(corners) / options.side)
    side = SIZES.image_size
    wanted = torch.stack(masks).repeat_interleave(side // options.side, -1)
    return Scenes(
        resize_frames(torch.cat(frames), side),
        torch.stack(places),
        wanted.repeat_interleave(side // options.side, -2),
        torch.stack(boxes),
    )


def loss_of(
    sam2: Sam2, scenes: Scenes, random: np.random.Generator, run: Run
) -> tuple[Tensor, float]:
    """Loss per object and frame with the weights of SAM 2, and the mean IoU on the last frame."""
    still = scenes.object_frames.shape[1] == 1
    by_point = still and run.points > 0 and random.random() < run.points
    tokens = point_tokens(sam2, scenes, random) if by_point else box_tokens(sam2, scenes, random)
    tracking = Tracking(three_masks=by_point, gated=False)
    found = track(sam2, sam2.encode(scenes.frames, 64), tokens, scenes.object_frames, tracking)
    there = torch.ones(len(tokens), dtype=torch.bool)
    decoded = [DecodedMasks(masks.logits, masks.ious, masks.scores) for masks in found]
    wanted = [WantedMasks(masks, there) for masks in scenes.masks.unbind(1)]
    terms = mask_terms(decoded, wanted, float(len(tokens) * len(found)), LossOptions())
    weights = RELEASED_WEIGHTS["sam2"]
    loss = torch.stack([weights[name] * term.sum / term.count for name, term in terms.items()])
    with torch.no_grad():
        last = scenes.masks[:, -1, 2::4, 2::4]
        answer = found[-1].gated().chosen > 0
        shared, either = (answer & last).sum((1, 2)), (answer | last).sum((1, 2))
        iou = torch.where(either > 0, shared / either.clamp(min=1), 1.0).mean()
    return loss.sum(), float(iou)


def box_tokens(sam2: Sam2, scenes: Scenes, random: np.random.Generator) -> Tensor:
    """Prompts of boxes whose corners are a little off: a head does not know them better."""
    size = (scenes.boxes[:, 2:] - scenes.boxes[:, :2]).repeat(1, 2)
    off = torch.from_numpy(random.uniform(-JITTER, JITTER, scenes.boxes.shape)).float()
    corners = (scenes.boxes + off * size).clamp(0, 1).reshape(-1, 2, 2) * sam2.image_size
    labels = torch.tensor([[2, 3]]).expand(len(corners), 2)
    tokens: Tensor = sam2.model.sam_prompt_encoder((corners, labels), None, None)[0]
    return tokens


def point_tokens(sam2: Sam2, scenes: Scenes, random: np.random.Generator) -> Tensor:
    """Prompts of one pixel of each object."""
    flat = scenes.masks[:, 0].flatten(1).float()
    chosen = torch.from_numpy(random.random(flat.shape)).float() * flat
    place = chosen.argmax(1)
    side = sam2.image_size
    points = torch.stack((place % side, place // side), 1)[:, None].float()
    labels = torch.ones(len(points), 1, dtype=torch.long)
    tokens: Tensor = sam2.model.sam_prompt_encoder((points, labels), None, None)[0]
    return tokens


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
