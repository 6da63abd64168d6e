"""What it gains to arrange conversations of very different length.

    python bench/arrangement.py [--quick] [--layers 2] [--width 256] [--like]

A step (forward, backward, LoRA of the language model) over the same 64 conversations in turns: in
eights as they come, each in a row of its own, with a mask over the padding, as a backbone that
cannot pack gets them; and arranged. Lengths are drawn from a log-normal distribution around 80
tokens, 8 to 800; with ``--like`` they are 70 to 90. Goals: packing, the default of conversation, is
at least 1.5 times faster, and costs nothing where it finds nothing to pack. Equal loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from random_model import Size, build, parameters_of
from timing import seconds

import tpokit
from tpokit.data.arrangement import Arrangement, Rows
from tpokit.data.collate import Collator
from tpokit.types import IGNORED

CONVERSATIONS, DEVICE_BATCH, TOKENS = 64, 8, 4096
FASTER, COST = 1.5, 1.03
PLAIN = "as they come, padded"
PACKED = "packed"


def conversations(size: Size, alike: bool, quick: bool) -> list[tpokit.Example]:
    """Random words, half of each conversation an answer."""
    random = torch.Generator().manual_seed(0)
    draws = torch.randn(CONVERSATIONS, generator=random)
    lengths = 80 + draws.clamp(-1, 1) * 10 if alike else (80 * draws.exp()).clamp(8, 800)
    found = []
    for number, length in enumerate((lengths / (8 if quick else 1)).int().clamp(min=2).tolist()):
        ids = torch.randint(0, size.vocabulary - 2, (length,), generator=random).tolist()
        half = length // 2
        found.append(
            tpokit.Example(
                sample=tpokit.Sample(str(number), turns=()),
                source="random",
                ids=ids,
                labels=[IGNORED] * half + ids[half:],
                slots={},
                given_positions={},
                targets={},
                given={},
                views=[],
            )
        )
    return found


def batches(
    model: tpokit.TpoModel,
    examples: list[tpokit.Example],
    together: int,
    rules: Arrangement,
    packs: bool,
) -> list[tpokit.Batch]:
    """Micro-batches of all examples, so many of them arranged together."""
    processor: Any = model.backbone.processor
    processor.collate_media = lambda views: {}
    collator = Collator(processor, {}, model.tokens, packs=packs)
    arranged: list[Rows] = []
    for start in range(0, len(examples), together):
        arranged += rules(examples[start : start + together])
    return [collator.rows(rows) for rows in arranged]


def sides(model: tpokit.TpoModel, examples: list[Any]) -> dict[str, list[tpokit.Batch]]:
    """The same conversations in all ways."""
    plain, packing = Arrangement(DEVICE_BATCH), Arrangement(DEVICE_BATCH, packing="conversation")
    budget = Arrangement(len(examples), tokens=TOKENS, packing="conversation")
    return {
        PLAIN: batches(model, examples, DEVICE_BATCH, plain, packs=False),
        "the same without a mask": batches(model, examples, DEVICE_BATCH, plain, packs=True),
        PACKED: batches(model, examples, DEVICE_BATCH, packing, packs=True),
        "group of 64": batches(model, examples, 64, plain, packs=True),
        "group of 64, packed": batches(model, examples, 64, packing, packs=True),
        f"group of 64, packed, {TOKENS} tokens": batches(model, examples, 64, budget, packs=True),
    }


def step(model: tpokit.TpoModel, found: list[tpokit.Batch]) -> float:
    """Forward and backward of all micro-batches."""
    total = 0.0
    for batch in found:
        loss = model(batch)["language"].sum
        loss.backward()
        total += loss.item()
    return total


def compare(size: Size, examples: list[Any], repeats: int, goal: float) -> None:
    """Measure all ways in turns and print their ratios."""
    model = build(size, lora=True, headless=True)
    ways = sides(model, examples)
    losses = {name: step(model, found) for name, found in ways.items()}
    times: Mapping[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, found in ways.items():
            times[name].append(seconds(lambda found=found: step(model, found), "cpu"))
    lengths = sorted(len(example.ids) for example in examples)
    print(
        f"{parameters_of(model)}, {len(examples)} conversations of {lengths[0]} to {lengths[-1]} "
        f"tokens, {sum(lengths)} in all"
    )
    for name, found in ways.items():
        positions = sum(batch.ids.numel() for batch in found)
        print(
            f"  {name:<36}{len(found):2} micro-batches, {positions:6} positions, "
            f"{min(times[name]):.2f} s, faster by {min(times[PLAIN]) / min(times[name]):.2f}, "
            f"loss differs by {abs(losses[name] / losses[PLAIN] - 1):.0e}"
        )
    faster = min(times[PLAIN]) / min(times[PACKED])
    print(f"  packing {faster:.2f} (goal {goal:.2f}): {'reached' if faster >= goal else 'MISSED'}")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description="What arranging conversations gains.")
    parser.add_argument("--quick", action="store_true", help="a tiny model, seconds")
    parser.add_argument("--like", action="store_true", help="conversations of like length")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(chosen.layers, chosen.width, vocabulary=4000)
    if chosen.quick:
        size = Size(layers=1, width=64, vocabulary=500)
    examples = conversations(size, chosen.like, chosen.quick)
    goal = 1 / COST if chosen.like else FASTER
    compare(size, examples, 1 if chosen.quick else chosen.repeats, goal)


if __name__ == "__main__":
    main()
