"""What the temporal head costs: ours against CG-DETR computed as the released code does.

    python bench/temporal_head.py [--quick] [--device cuda] [--original CHECKOUT]

Network and losses of the released size (75 clips, 32 words, all valid), the same weights on both
sides, one process, in turns: a training step (forward, losses, backward; dropout on) at batch 32
and 1, inference, and the step under bf16 autocast. On a CPU times are least processor seconds of
one thread, on a GPU least seconds by the clock. Before, with dropout off, outputs, loss and
gradients of both sides are compared. The other side is `plain_cg_detr.py`, which restates the
released way of computing; with a checkout of wjun0830/CGDETR it is the released code itself.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from temporal_sides import QUICK, Batch, Original, Ours, Plain, Side, Size
from timing import seconds
from torch.utils.flop_counter import FlopCounterMode

from tpokit_temporal.detector.precision import bfloat16_is_emulated
from tpokit_temporal.options import TemporalOptions
from tpokit_temporal.released_names import our_names

TOLERANCE = 1e-4
_GPU_GOAL = 0.4


@dataclass(frozen=True)
class Case:
    """Something to measure, and the ratio to be reached on a CPU."""

    name: str
    batch: int
    training: bool
    goal: float
    autocast: bool = False


def compare(sides: Sequence[Side], batch: Batch) -> None:
    """Print how far both sides are apart with dropout off.

    Raises:
        SystemExit: They are not equal.
    """
    outputs, losses = [], []
    for side in sides:
        side.network.eval()
        side.network.zero_grad(set_to_none=True)
        found = side.detect(batch, training=True)
        loss = side.loss(found, batch)
        loss.backward()
        outputs.append(side.outputs(found))
        losses.append(loss.item())
    apart = {
        name: ((ours - outputs[1][name]).abs().max() / ours.abs().max().clamp(min=1)).item()
        for name, ours in outputs[0].items()
    }
    worst = max(apart, key=apart.__getitem__)
    apart_loss = abs(losses[0] - losses[1]) / abs(losses[1])
    count, gradient = len(batch.targets), _gradients_apart(sides)
    print(
        f"batch {count:2}: outputs differ by {apart[worst]:.1e} of their maximum ({worst}), the "
        f"loss ({losses[0]:.4f}) by {apart_loss:.1e}, gradients by {gradient:.1e} of their maximum"
    )
    if max(apart[worst], apart_loss) > TOLERANCE:
        raise SystemExit(f"the two sides are not equal to {TOLERANCE}")


def _gradients_apart(sides: Sequence[Side]) -> float:
    ours, theirs = (dict(side.network.named_parameters()) for side in sides)
    worst = 0.0
    for released, name in our_names(sides[0].network.options).items():
        one, other = ours[name].grad, theirs[released].grad
        scale = other.abs().max().clamp(min=1e-3)
        worst = max(worst, ((one - other).abs().max() / scale).item())
    return worst


def run_of(side: Side, case: Case, batch: Batch, device: str) -> Callable[[], object]:
    """What is timed."""
    side.network.train(case.training)
    autocast = torch.autocast(device, torch.bfloat16) if case.autocast else nullcontext()
    if case.training:
        return lambda: side.step(batch, autocast)

    def infer() -> None:
        with autocast:
            side.infer(batch)

    return infer


def peak_mb(run: Callable[[], object], device: str) -> float:
    """How much memory is in use at most, beyond what was before; not a number where unknown."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, else it is not counted again
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _resident_mb("VmRSS")
        run()
        return _resident_mb("VmHWM") - before
    except (OSError, AttributeError):
        return float("nan")


def _resident_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def measure(case: Case, sides: Sequence[Side], size: Size, device: str, repeats: int) -> None:
    """Print times, ratio, GFLOP and memory of one case."""
    batch = Batch.draw(size, case.batch, device)
    runs = [run_of(side, case, batch, device) for side in sides]
    gflops, memory = [], []
    for run in runs:
        with FlopCounterMode(display=False) as counter:
            run()
        gflops.append(counter.get_total_flops() / 1e9)
        memory.append(peak_mb(run, device))
    least = [float("inf")] * len(sides)
    for repeat in range(repeats):
        for index in (0, 1) if repeat % 2 else (1, 0):
            least[index] = min(least[index], seconds(runs[index], device))
    goal = case.goal if device == "cpu" else _GPU_GOAL
    ratio = least[0] / least[1]
    print(
        f"{case.name:<32}{least[0]:9.4f} s{least[1]:9.4f} s  {ratio:5.2f}  goal {goal:.2f} "
        f"{'reached' if ratio <= goal else 'MISSED '}  GFLOP {gflops[0]:6.1f} {gflops[1]:6.1f}"
        f"  MB {memory[0]:6.0f} {memory[1]:6.0f}"
    )


def cases(batch: int, autocast_batch: int) -> list[Case]:
    """All of them."""
    return [
        Case(f"training step, batch {batch}", batch, True, 0.75),
        Case("training step, batch 1", 1, True, 0.6),
        Case(f"inference, batch {batch}", batch, False, 0.9),
        Case("inference, batch 1", 1, False, 0.9),
        Case(f"bf16 training step, batch {autocast_batch}", autocast_batch, True, 0.55, True),
    ]


def main() -> None:
    """Compare, then measure."""
    parser = argparse.ArgumentParser(description="What the temporal head costs.")
    parser.add_argument("--quick", action="store_true", help="a tiny network, seconds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--original", type=Path, help="a checkout of wjun0830/CGDETR")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--autocast-batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name has this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    device, batch, repeats = given.device, given.batch, given.repeats
    size = Size(TemporalOptions(preset="videochat_tpo", released_quirks=True))
    if given.quick:
        size, batch, repeats = QUICK, 4, 2
    ours = Ours(size, device)
    if given.original is None:
        theirs: Side = Plain(ours.network, size, device)
    else:
        theirs = Original(ours.network, size, device, given.original)
    sides = ours, theirs
    print(f"torch {torch.__version__}, {device}, {type(ours).__name__} | {type(theirs).__name__}")
    if device == "cpu" and bfloat16_is_emulated():
        print(
            "this CPU only emulates bfloat16: under autocast ours computes in float32, theirs not"
        )
    for count in (batch, 1):
        compare(sides, Batch.draw(size, count, device))
    autocast_batch = min(batch, given.autocast_batch)
    for case in cases(batch, autocast_batch):
        if given.only in case.name:
            measure(case, sides, size, device, repeats if case.batch > 1 else 4 * repeats)


if __name__ == "__main__":
    main()
