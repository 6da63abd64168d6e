"""What it saves to compute logits at labels only, at a large vocabulary.

    python bench/label_logits.py [--quick] [--full] [--vocabulary 152000] [--labelled 0.2]
        [--chunks 8]

A step (forward, backward) of the composed model, which asks for logits where a label is, against
the transformers model inside it, which computes all of them; each in a process of its own, so that
the peak of its memory is its own. Goals: at least 1.3 times faster, at most half the memory, equal
loss and gradients. LoRA of the language model is trained over a frozen base, as the stages do; with
``--full`` everything is, and then the memory goal is missed; most likely (not profiled) because
both sides peak at the two dense gradients of the tied word table. There is no head: a trigger's
logit would be one more. A third side computes the logits in chunks, as ``run.logit_chunks`` does:
less memory for one more product with the output layer.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bridge_overhead import composed_step, direct_step
from random_model import Size, build, make_batch, parameters_of
from safetensors.torch import load_file, save_file

import tpokit

FASTER, MEMORY = 1.3, 0.5
CHUNKED = "in chunks"
STEPS = {"labels only": composed_step, "all logits": direct_step, CHUNKED: composed_step}


@dataclass(frozen=True)
class Work:
    """What each side does.

    Attributes:
        size: Of model and batch.
        lora: Train LoRA alone.
        repeats: Steps that are measured.
        threads: Of the arithmetic.
        chunks: Of the side that computes logits in chunks.
    """

    size: Size
    lora: bool
    repeats: int
    threads: int
    chunks: int


def resident_mib(name: str) -> float:
    """Memory of this process: ``VmRSS`` now, ``VmHWM`` at its highest, in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise tpokit.UsageError(f"/proc/self/status has no {name}; this bench needs Linux")


def measure(name: str, work: Work, folder: Path) -> None:
    """One side, in a process of its own; leaves times, peak and gradients in a folder."""
    torch.set_num_threads(work.threads)
    model = build(work.size, work.lora, headless=True)
    model.logit_chunks = work.chunks if name == CHUNKED else 1
    batch = make_batch(model, work.size)
    step = STEPS[name]
    loss = float(step(model, batch))
    gradients = {
        parameter_name: parameter.grad.clone()
        for parameter_name, parameter in model.backbone.named_parameters()
        if parameter.grad is not None
    }
    save_file(gradients, folder / f"{name}.safetensors")
    del gradients
    times, peaks = [], []
    for _ in range(work.repeats):
        model.zero_grad(set_to_none=False)  # gradients stay allocated: both sides need them
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, else its use is not counted
        before = resident_mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark
        processor, clock = time.process_time(), time.perf_counter()
        step(model, batch)
        times.append((time.perf_counter() - clock, time.process_time() - processor))
        peaks.append(resident_mib("VmHWM") - before)
    found = {"loss": loss, "times_s": times, "added_mib": peaks, "size": parameters_of(model)}
    (folder / f"{name}.json").write_text(json.dumps(found))


def compare(work: Work) -> None:
    """Measure all sides and print the ratios."""
    size = work.size
    found: dict[str, dict[str, Any]] = {}
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in STEPS:
            # a copy of this process has the libraries already
            process = multiprocessing.get_context("fork").Process(
                target=measure, args=(name, work, Path(folder))
            )
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{name}: its process ended with {process.exitcode}")
            found[name] = json.loads((Path(folder) / f"{name}.json").read_text())
            gradients[name] = load_file(Path(folder) / f"{name}.safetensors")
    ours, theirs, chunked = (found[name] for name in STEPS)
    print(
        f"{ours['size']}, vocabulary {size.vocabulary}, {size.batch} x {size.tokens} tokens, "
        f"labels on {size.labelled:.0%} of the positions, trained: {'LoRA' if work.lora else 'all'}"
    )
    for name, side in found.items():
        clock, processor = zip(*side["times_s"], strict=True)
        added = statistics.median(side["added_mib"])
        print(
            f"  {name:<12}clock median {statistics.median(clock):.3f} s, least {min(clock):.3f} s; "
            f"processor least {min(processor):.3f} s; adds {added:.0f} MiB; loss {side['loss']:.6f}"
        )
    faster = min(t[1] for t in theirs["times_s"]) / min(t[1] for t in ours["times_s"])
    ours_mib, theirs_mib = (statistics.median(side["added_mib"]) for side in (ours, theirs))
    memory = ours_mib / max(theirs_mib, 0.1)  # a tiny model may fit into what is there
    print(
        f"  faster by {faster:.2f} (least processor time; goal {FASTER}): "
        f"{verdict(faster >= FASTER)}"
    )
    print(f"  memory {memory:.2f} of theirs (goal at most {MEMORY}): {verdict(memory <= MEMORY)}")
    chunked_mib = statistics.median(chunked["added_mib"])
    slower = min(t[1] for t in chunked["times_s"]) / min(t[1] for t in ours["times_s"])
    print(
        f"  in {work.chunks} chunks: {chunked_mib / max(ours_mib, 0.1):.2f} of the memory of "
        f"labels only, {slower:.2f} times its time"
    )
    other = gradients["all logits"]
    largest = max(float(value.abs().max()) for value in other.values())
    for name in ("labels only", CHUNKED):
        one = gradients[name]
        difference = max(float((one[key] - other[key]).abs().max()) for key in one)
        print(
            f"  {name}: loss differs by {abs(found[name]['loss'] - theirs['loss']):.1e}; "
            f"{len(one)} gradients by at most {difference:.1e} (largest {largest:.1e}; same "
            f"parameters: {set(one) == set(other)})"
        )


def verdict(reached: bool) -> str:
    """In words."""
    return "reached" if reached else "MISSED"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description="What label-only logits save.")
    parser.add_argument("--quick", action="store_true", help="a tiny model, seconds")
    parser.add_argument("--full", action="store_true", help="train everything, not LoRA")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=152_000)
    parser.add_argument("--labelled", type=float, default=0.2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    size = Size(
        options.layers,
        options.width,
        options.vocabulary,
        tokens=options.tokens,
        labelled=options.labelled,
    )
    if options.quick:
        size = replace(size, layers=2, width=64, vocabulary=20_000, tokens=128)
    print(f"torch {torch.__version__}, {options.threads} threads, float32, CPU", flush=True)
    compare(Work(size, not options.full, options.repeats, options.threads, options.chunks))


if __name__ == "__main__":
    main()
