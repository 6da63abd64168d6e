"""How the tiny SAM 2 of the shapes world is made: it segments what a box or a point prompts.

Run:  python examples/shapes_world_sam2.py segmenting.safetensors
      python examples/shapes_world_sam2.py sam2.safetensors --follow segmenting.safetensors
It takes about an hour on one core. It has seen no word: what to segment comes from the prompt
alone, as in the released SAM 2, and the mask head learns to make such prompts. The first run learns
to segment, and begins to follow; the second one follows.
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
IMAGE_BATCH, CLIP_BATCH = 24, 6
IMAGE_SCENES, CLIP_SCENES = 12_000, 3_000
WARMUP, CLIP_NORM = 100, 1.0
JITTER = 0.15  # of the side of a box: how far a prompted corner is off, at most
POINT_SHARE = 0.25  # of the steps on images prompt by a point


@dataclass(frozen=True)
class Run:
    """How long, and on what.

    ``images`` steps on images alone, then ``mixed`` ones, of which one in ``every`` is on images;
    ``shortest`` run of frames of a clip; ``stride``: most frames from one to the next.
    """

    images: int
    mixed: int
    every: int
    shortest: int
    stride: int
    peak_rate: float


SEGMENT = Run(images=2500, mixed=1500, every=3, shortest=4, stride=1, peak_rate=1.5e-3)
FOLLOW = Run(images=0, mixed=3000, every=4, shortest=2, stride=2, peak_rate=1.2e-3)


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
    """Train and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--follow", type=Path, help="weights of the first run")
    wanted = parser.parse_args()
    run = FOLLOW if wanted.follow else SEGMENT
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    sam2 = build(SIZES, checkpoint=wanted.follow).set_trained("everything")
    if wanted.follow is None:
        with torch.no_grad():  # objects are there mostly, so that masks learn from the first step
            sam2.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(2.0)
    optimizer = torch.optim.AdamW(sam2.parameters(), lr=run.peak_rate, weight_decay=0.01)
    steps = run.images + run.mixed
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    began = time.monotonic()
    seen = [0.0, 0.0]
    for step in range(steps):
        of_clips = step >= run.images and step % run.every != 0
        scenes = draw(random, of_clips, run)
        loss, iou = loss_of(sam2, scenes, random, of_clips)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sam2.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        seen = [
            0.95 * old + 0.05 * new
            for old, new in zip(seen, (float(loss.detach()), iou), strict=True)
        ]
        if step % 50 == 49:
            report = f"step {step + 1} of {steps}: loss {seen[0]:.3f}, IoU {seen[1]:.3f}"
            print(f"{report}, {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201
    weights = {name: value.half().contiguous() for name, value in sam2.model.state_dict().items()}
    save_file(weights, wanted.output)


def rate(step: int, steps: int) -> float:
    """Warm-up, then half a cosine."""
    share = (step - WARMUP) / max(steps - WARMUP, 1)
    return (step + 1) / WARMUP if step < WARMUP else 0.5 * (1 + math.cos(math.pi * share))


def draw(random: np.random.Generator, of_clips: bool, run: Run) -> Scenes:
    """Some scenes; of clips some frames from the start."""
    options, size = (CLIPS, CLIP_BATCH) if of_clips else (IMAGES, IMAGE_BATCH)
    count = int(random.integers(run.shortest, options.frames + 1)) if of_clips else 1
    stride = int(random.integers(1, run.stride + 1)) if of_clips and run.stride > 1 else 1
    count = min(count, options.frames // stride)
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
    sam2: Sam2, scenes: Scenes, random: np.random.Generator, of_clips: bool
) -> tuple[Tensor, float]:
    """Loss per object with the weights of SAM 2, and the mean IoU of the chosen masks."""
    by_point = not of_clips and random.random() < POINT_SHARE
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
