"""What a training step of a 7B model with all heads takes on a GPU: samples a second, MFU, memory.

    python bench/gpu_step.py --device cuda [--backbone videochat2|llava_onevision] [--batch 4]
    python bench/gpu_step.py --size tiny --device cpu

VideoChat2 at the size of the release (UMT-L/16, Q-Former, Mistral-7B) and LLaVA-OneVision 7B
(SigLIP so400m, Qwen2-7B) with random weights, which are drawn on the device, so that no file of
weights is needed. LoRA (rank 16) on the LLM; connector, bridge and heads in full; the vision tower
frozen; bfloat16; AdamW. Videos of 16 frames; of four samples one is a conversation, and one each
calls the region, the temporal and (if sam2 is installed) the mask head. Batches are read before the
clock starts: how fast data are read is measured by other benches.

MFU counts what the model needs (`tpokit.training.flops`), not what is computed again; the goal is
0.45. The hours are those of 3.5 million samples on 64 A100 by the ratio of the peaks in bfloat16:
the paper (arXiv 2412.19326) took 52 h for its third stage.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from gpu_step_files import CLIPS, SIZES, write_recipe

import tpokit
from tpokit.data.collate import Collator
from tpokit.data.conversation import Encoder
from tpokit.data.dataset import open_sources
from tpokit.losses import CombinedLoss
from tpokit.model import build_model
from tpokit.parts import parameter_groups, part_table, set_modes
from tpokit.recipe import open_recipe
from tpokit.training.flops import FlopCount, peak_flops, peak_of

GOAL = 0.45
SAMPLES, DEVICES, PAPER_H = 3.5e6, 64, 52.0
_WARMING = 2
_LONGEST = 8192  # tokens


class Job:
    """One model and its batches."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        """Build the model on the device and read the batches."""
        self.recipe, plugins = open_recipe(path)
        self.device = torch.device(options.device)
        self.stage = self.recipe.stages[0]
        with self.device:
            model = build_model(self.recipe, plugins)
        set_modes(model, self.stage.modes, self.recipe.lora, self.recipe.seed, self.stage.patterns)
        if options.checkpointing:
            model.backbone.gradient_checkpointing_enable()
        self.model = model.to(self.device).train()
        self.batches = self._read(plugins, options.batch, options.batches)
        rates = self.recipe.rates(self.stage)
        self.groups = parameter_groups(self.model, rates, self.stage.weight_decay)
        self.optimizer = torch.optim.AdamW(self.groups, fused=True)
        self.loss = CombinedLoss(self.recipe.loss_weights(self.stage))
        self.peak = peak_flops(self.device, self.recipe.run.precision)
        self.flops = FlopCount(self.model, self.peak or 1.0)

    def _read(self, plugins: Any, samples: int, batches: int) -> list[tpokit.Batch]:
        processor = self.model.backbone.processor
        heads = {task: self.model.head(task) for task in self.model.heads}
        sources = open_sources(self.recipe, plugins, CLIPS)
        names = [name for name in CLIPS if name in sources]
        encoder = Encoder(processor, heads, self.model.tokens, _LONGEST)
        collate = Collator(processor, heads, self.model.tokens)
        random = np.random.default_rng(0)
        found = []
        for first in range(0, samples * batches, samples):
            examples = []
            for place in range(first, first + samples):
                name = names[place % len(names)]
                sample = sources[name].read(place // len(names), random)
                examples.append(encoder.encode(sample, name, random=random))
            found.append(collate(examples).to(self.device))
        return found

    def step(self, batch: tpokit.Batch) -> float:
        """Forward, backward, clipping, update; returns the loss."""
        half = self.recipe.run.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
            self.flops.start()
            terms = self.model(batch)
            self.flops.take(batch)
            loss = self.loss(terms, batch.counts)
        loss.backward()
        trained = [parameter for group in self.groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, self.stage.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def measure(self, repeats: int) -> dict[str, float]:
        """Median seconds of a step and what the model needs for it, over all batches."""
        for batch in self.batches[:_WARMING]:
            self.step(batch)
        self.flops.read()
        times_s, flops = [], []
        for _ in range(repeats):
            for batch in self.batches:
                start = time.perf_counter()
                loss = self.step(batch)  # reading the loss waits for the device
                times_s.append(time.perf_counter() - start)
                flops.append(self.flops.read())
        if not np.isfinite(loss):
            raise SystemExit(f"the loss is {loss}")
        return {"step_s": statistics.median(times_s), "flops": sum(flops) / sum(times_s)}

    def peak_gib(self) -> float:
        """Most memory that was in use: of the GPU, or of this process."""
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device)) / 2**30
        return float(psutil.Process().memory_info().rss) / 2**30


def report(job: Job, found: dict[str, float], batch: int) -> None:
    """Print what was measured."""
    speed = batch / found["step_s"]
    lengths = [int(length) for one in job.batches for length in one.mask.sum(-1)]
    parts = part_table(job.model, job.stage.modes, job.recipe.rates(job.stage))
    sizes = [f"{row.part} {row.trained / 1e6:.1f} of {row.parameters / 1e6:.1f} M" for row in parts]
    print(f"  trained: {', '.join(sizes)}")
    print(
        f"  tokens of a sample: {min(lengths)} to {max(lengths)}; step {found['step_s']:.3f} s, "
        f"{speed:.2f} samples/s, {found['flops'] / 1e12:.3f} TFLOP/s needed, "
        f"peak memory {job.peak_gib():.1f} GiB"
    )
    a100 = peak_of("A100")
    if job.peak is None or a100 is None:
        print(f"  MFU: the peak of this device is not known (goal {GOAL}, on a GPU in bfloat16)")
        return
    utilisation = found["flops"] / job.peak
    hours = SAMPLES / (speed * a100 / job.peak * DEVICES) / 3600
    print(
        f"  MFU {utilisation:.3f} (goal {GOAL}: {'reached' if utilisation >= GOAL else 'MISSED'}); "
        f"{SAMPLES:.1e} samples on {DEVICES} A100: {hours:.1f} h by the ratio of peaks "
        f"(paper: {PAPER_H} h)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the tiny size on the CPU")
    parser.add_argument("--size", choices=list(SIZES), default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backbone", choices=["videochat2", "llava_onevision"], action="append")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=4, help="different ones")
    parser.add_argument("--repeats", type=int, default=5, help="of all batches")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--checkpointing", action="store_true", help="activations anew")
    parser.add_argument("--attention", default="auto", help="flash_attention_2, sdpa, eager")
    parser.add_argument("--sam2", default="sam2.1_hiera_large", help="size of the mask head's")
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    options = parser.parse_args()
    if options.quick:
        options.size, options.device = "tiny", "cpu"
        options.batches, options.repeats, options.frames = 1, 1, 4
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU at hand; --size tiny --device cpu tries the script out")
    masks = importlib.util.find_spec("sam2") is not None
    name = torch.cuda.get_device_name() if options.device == "cuda" else sys.platform
    print(f"{options.size}, batch {options.batch}, {options.frames} frames, {name}, ", end="")
    print(f"torch {torch.__version__}, attention {options.attention}, mask head: {masks}")
    numbers = {}
    for backbone in options.backbone or ["videochat2", "llava_onevision"]:
        with tempfile.TemporaryDirectory() as folder:
            path = write_recipe(Path(folder), backbone, options, masks)
            print(backbone, flush=True)
            job = Job(path, options)
            found = job.measure(options.repeats)
            report(job, found, options.batch)
            numbers[backbone] = {**found, "peak_gib": job.peak_gib(), "batch": options.batch}
            del job  # the next model needs the memory
            if options.device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    if options.json is not None:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
