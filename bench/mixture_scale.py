"""What a mixture of millions of annotation lines costs: time to start, memory, speed of reading.

    python bench/mixture_scale.py [--lines 3500000] [--quick]

Makes lines of conversation, boxes and moments in 20 files (about 1 GB, in a temporary folder that
is removed), and trains the tiny LLaVA-OneVision of the shapes world on all of them with two data
workers. With ``--quick`` few lines, and nothing is started.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from mixture_lines import write_files

from tpokit.data import places
from tpokit.data.bad_samples import BadSampleLimit
from tpokit.data.conversation import Encoder
from tpokit.data.dataset import MixedDataset, open_sources
from tpokit.data.mixing import Mixture, generator
from tpokit.interfaces import DataSource
from tpokit.model import build_model
from tpokit.plugins import Plugins
from tpokit.recipe import Recipe, open_recipe

GOAL_START_S, GOAL_MAIN_GB, GOAL_WORKER_GB, GOAL_SAMPLES, GOAL_RESUME_S = (
    15.0,
    1.5,
    0.5,
    10_000,
    1.0,
)
SAMPLES_PER_STEP, SAVED_STEP, LAST_STEPS = 8, 20, 4
RESUMED_AT = 3_400_000
PIECE, SPREAD = 8, 4096
BARE = "import psutil, torch; print(psutil.Process().memory_info().rss / 1e9)"


def write_recipe(folder: Path, files: dict[str, Path]) -> Path:
    """One epoch of everything, in three groups that share by size."""
    kinds = sorted({name.split("_")[0] for name in files})
    plain = {
        "recipe": 1,
        "name": "scale",
        "output": str(folder / "run"),
        "backbone": {
            "plugin": "llava_onevision",
            "options": {
                "model": "package://tpokit_shapes_world/base",
                "crops": "single",
                "frames": 4,
            },
        },
        "heads": {
            "region": {"plugin": "region"},
            "temporal": {"plugin": "temporal_mlp"},
        },
        "data": {
            name: {"source": "jsonl", "options": {"annotations": str(path)}}
            for name, path in files.items()
        },
        "stages": [
            {
                "name": "joint",
                "train": {"llm": "lora", "bridge": "full", "region": "full", "temporal": "full"},
                "learning_rate": 1e-4,
                "mix": {kind: {"of": [n for n in files if n.startswith(kind)]} for kind in kinds},
                "samples_per_step": SAMPLES_PER_STEP,
                "epochs": 1,
            }
        ],
        "run": {"threads": 1, "workers": 2, "save_every": SAVED_STEP},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def opened(recipe: Recipe, plugins: Plugins) -> tuple[dict[str, DataSource], float]:
    """All sources, and the seconds that opening them took by the clock."""
    start = time.perf_counter()
    sources = open_sources(recipe, plugins, list(recipe.data))
    return sources, time.perf_counter() - start


def per_second(read: Callable[[int], object], count: int, spread: int = PIECE) -> float:
    """Readings a second of processor time; of ``spread`` positions the first few."""
    began = time.process_time()
    for turn in range(count // PIECE):
        for position in range(turn * spread, turn * spread + PIECE):
            read(position)
    return count / (time.process_time() - began)


def reading_speeds(
    recipe: Recipe, plugins: Plugins, sources: dict[str, DataSource], count: int
) -> tuple[float, float, float]:
    """Samples a second on one core: drawn, read and parsed in a row, the same as in a worker of one
    of many ranks, and in a row with encoding too, conversation only.
    """
    sizes = {name: len(source) for name, source in sources.items()}
    mixture = Mixture(recipe.stages[0].mix, sizes, seed=0)

    def read(position: int) -> object:
        draw = mixture.draw(position)
        random = generator(0, draw.epoch, f"{draw.source}/{draw.index}", "read")
        return sources[draw.source].read(draw.index, random)

    model = build_model(recipe, plugins)
    heads = {task: model.head(task) for task in model.heads}
    processor = model.backbone.processor
    talk = {name: source for name, source in sources.items() if name.startswith("talk")}
    dataset = MixedDataset(
        talk,
        {name: 1.0 for name in talk},
        0,
        Encoder(processor, heads, model.tokens, processor.max_length),
        BadSampleLimit(0.0, 1),
    )
    encoded = per_second(dataset.__getitem__, count // 4)
    return per_second(read, count), per_second(read, count, SPREAD), encoded


def run(recipe: Path, *options: str) -> dict[str, Any]:
    """What a run in a process of its own says; places in files are kept beside its recipe."""
    script = Path(__file__).with_name("mixture_run.py")
    steps = SAVED_STEP + LAST_STEPS
    command = [sys.executable, str(script), str(time.time()), str(recipe), str(steps), *options]
    home = {**os.environ, "HOME": str(recipe.parent)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=home)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def go_far(folder: Path, step: int) -> None:
    """Let the newest checkpoint be one of a later step."""
    saved = folder / "run" / "joint.checkpoints" / f"step-{SAVED_STEP}"
    for name in ("trainer_state.json", "complete.json"):
        content = json.loads((saved / name).read_text())
        key = "global_step" if "global_step" in content else "step"
        (saved / name).write_text(json.dumps({**content, key: step}))
    saved.rename(saved.with_name(f"step-{step}"))


def report_runs(folder: Path, recipe: Path) -> None:
    """Start a run twice, the second time far behind, and print what it takes."""
    bare = float(subprocess.check_output([sys.executable, "-c", BARE], text=True))
    found = run(recipe)
    main, start_s = found["main"], found["first_batch_s"]
    print(
        f"start to first batch {start_s:.1f} s by the clock, {found['processor_s']:.1f} s of the "
        f"main process (goal {GOAL_START_S:g})"
    )
    print(
        f"main process: {main['resident']:.2f} GB resident (goal {GOAL_MAIN_GB}); "
        f"bare torch {bare:.2f} GB"
    )
    for worker in found["workers"]:
        above = worker["resident"] - bare
        print(
            f"data worker: {worker['resident']:.2f} GB resident, {above:.2f} GB above bare torch "
            f"(goal {GOAL_WORKER_GB}); {worker['own']:.2f} GB without what it shares"
        )
    go_far(folder, RESUMED_AT // SAMPLES_PER_STEP)
    again = run(recipe, "--resume")
    print(
        f"resume at sample {(again['step'] - SAVED_STEP - LAST_STEPS) * SAMPLES_PER_STEP}: "
        f"{again['first_batch_s']:.1f} s to the first batch; against the start "
        f"{again['first_batch_s'] - start_s:+.1f} s by the clock, "
        f"{again['processor_s'] - found['processor_s']:+.1f} s of the main process "
        f"(goal {GOAL_RESUME_S:g})"
    )


def main() -> None:
    """Make the lines, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=3_500_000)
    parser.add_argument("--quick", action="store_true", help="few lines, nothing is started")
    asked = parser.parse_args()
    lines, count = (3_000, 400) if asked.quick else (asked.lines, 20_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not asked.quick:
            places.FOLDER = folder / places.FOLDER.relative_to("~")
        files = write_files(folder, lines)
        size = sum(path.stat().st_size for path in files.values())
        print(f"{lines} lines in {len(files)} files, {size / 1e6:.0f} MB")
        time.sleep(0 if asked.quick else 3)  # files that change under one's eyes are not kept
        path = write_recipe(folder, files)
        recipe, plugins = open_recipe(path)
        _, first_s = opened(recipe, plugins)
        sources, again_s = opened(recipe, plugins)
        print(f"indexing {first_s:.2f} s the first time, {again_s:.3f} s from then on")
        read, spread, encoded = reading_speeds(recipe, plugins, sources, count)
        print(
            f"samples a second on one core, without media: {read:.0f} drawn, read and parsed "
            f"(goal {GOAL_SAMPLES}; {spread:.0f} where {PIECE} of {SPREAD} in a row are read, as "
            f"in a worker of many ranks), {encoded:.0f} with encoding (conversation)"
        )
        if not asked.quick:
            report_runs(folder, path)


if __name__ == "__main__":
    main()
