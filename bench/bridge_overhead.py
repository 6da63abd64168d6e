"""What composing costs: a step of `tpokit.TpoModel` against the same transformers model alone.

    python bench/bridge_overhead.py [--quick] [--layers 12] [--width 768] [--threads 1]

Conversation only, the same weights, batch and labels, in one process, in alternating order. Both
sides are timed by the clock and by processor time; the latter says more on a machine that others
use too. The goal is a ratio of at most 1.03. The losses differ by what the triggers' own logits add
to the normaliser. Then a mixed step (half of it calls the head): how
much of it the bridge itself takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from random_model import Size, build, make_batch, parameters_of
from torch import Tensor

import tpokit
from tpokit.losses import CombinedLoss

GOAL = 1.03
_LOSS = CombinedLoss({"language": 1.0, "assign": 1.0, "point.l1": 1.0})


@dataclass(frozen=True)
class Timing:
    """Seconds of the repeats of one thing, by the clock and by processor time."""

    clock_s: list[float]
    processor_s: list[float]

    def line(self) -> str:
        """Median and least of both."""
        return (
            f"clock median {statistics.median(self.clock_s):8.4f} s, least "
            f"{min(self.clock_s):8.4f} s; processor median "
            f"{statistics.median(self.processor_s):8.4f} s, least {min(self.processor_s):8.4f} s"
        )


def composed_step(model: tpokit.TpoModel, batch: tpokit.Batch) -> Tensor:
    """Forward and backward of the composed model."""
    loss = _LOSS(model(batch), batch.counts)
    loss.backward()
    return loss.detach()


def direct_step(model: tpokit.TpoModel, batch: tpokit.Batch) -> Tensor:
    """Forward and backward of the transformers model inside it."""
    loss = model.backbone.model(
        input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels
    ).loss
    loss.backward()
    return loss.detach()


def time_alternating(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Time several things in turn, the order turned around each time; one round is for warming."""
    found = {name: Timing([], []) for name in steps}
    for repeat in range(repeats + 1):
        for name in sorted(steps, reverse=bool(repeat % 2)):
            clock, processor = time.perf_counter(), time.process_time()
            steps[name]()
            if repeat:
                found[name].clock_s.append(time.perf_counter() - clock)
                found[name].processor_s.append(time.process_time() - processor)
    return found


def compare(size: Size, lora: bool, repeats: int) -> None:
    """Print the ratio of a conversation-only step."""
    model = build(size, lora)
    batch = make_batch(model, size)
    losses = composed_step(model, batch), direct_step(model, batch)
    difference = float((losses[0] - losses[1]).abs())
    trained = "LoRA of the LLM, bridge, head" if lora else "LLM, connector, bridge, head in full"
    print(f"\n{parameters_of(model)}, {size.batch} x {size.tokens} tokens, trained: {trained}")
    print(f"labels on {size.labelled:.0%} of the positions; losses differ by {difference:.1e}")
    model.zero_grad()
    found = time_alternating(
        {
            "composed": lambda: composed_step(model, batch),
            "direct": lambda: direct_step(model, batch),
        },
        repeats,
    )
    for name, timing in found.items():
        print(f"  {name:<9}{timing.line()}")
    composed, direct = found["composed"], found["direct"]
    median = statistics.median(composed.processor_s) / statistics.median(direct.processor_s)
    clock = min(composed.clock_s) / min(direct.clock_s)
    least = min(composed.processor_s) / min(direct.processor_s)
    print(
        f"  ratio {least:.3f} (least processor time; medians {median:.3f}, least clock {clock:.3f})"
        f"; goal at most {GOAL}: {'reached' if least <= GOAL else 'MISSED'}"
    )


def bridge_share(size: Size, repeats: int) -> None:
    """Print how much of a mixed step the bridge's own operations take, forward and backward."""
    size = replace(size, calls=max(1, round(size.tokens * size.labelled / 8)))
    model = build(size, lora=True)
    batch = make_batch(model, size)
    shape = size.batch, size.tokens, size.width
    embeds, hidden = torch.randn(shape), torch.randn(shape, requires_grad=True)
    learnt = batch.learnt

    def bridge_alone() -> None:
        written = model.bridge.write(embeds, batch.tokens, {})
        read = model.bridge.read(hidden, batch.slots["point"])
        triggers = model.bridge.output(hidden.detach()[learnt.rows, learnt.positions])
        outputs = [written, read, triggers]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    found = time_alternating(
        {"bridge": bridge_alone, "mixed step": lambda: composed_step(model, batch)}, repeats
    )
    print(f"\nmixed step, {size.calls} calls of the head in each sample, LoRA:")
    for name, timing in found.items():
        print(f"  {name:<11}{timing.line()}")
    share = statistics.median(found["bridge"].clock_s) / statistics.median(
        found["mixed step"].clock_s
    )
    print(f"  the bridge itself (write, read, trigger logits; both directions): {share:.2%}")


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description="What composing costs.")
    size = Size()
    parser.add_argument("--quick", action="store_true", help="a tiny model, seconds")
    parser.add_argument("--layers", type=int, default=size.layers)
    parser.add_argument("--width", type=int, default=size.width)
    parser.add_argument("--batch", type=int, default=size.batch)
    parser.add_argument("--tokens", type=int, default=size.tokens)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        size, repeats = Size(layers=2, width=64, vocabulary=2000, tokens=64), 3
    else:
        size = Size(options.layers, options.width, batch=options.batch, tokens=options.tokens)
        repeats = options.repeats
    print(f"torch {torch.__version__}, {options.threads} threads, float32, CPU, {repeats} repeats")
    for lora in (True, False):
        for labelled in (size.labelled, 1.0):
            compare(replace(size, labelled=labelled), lora, repeats)
    bridge_share(size, repeats)


if __name__ == "__main__":
    main()
