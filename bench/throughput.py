"""Fine-tuning on conversations, samples a second: tpokit against LLaMA-Factory and ms-swift.

    python bench/throughput.py [--size tiny|0.2b] [--llama-factory PYTHON] [--ms-swift PYTHON]

PYTHON is the interpreter of an environment in which that tool is installed. Without one, tpokit is
compared with a plain loop of transformers' Trainer, which is always measured.

The same for all sides: a LLaVA-OneVision with random weights (one folder), conversations about
small images in one order, batches, LoRA (rank 16, all linear layers of the language model, no
dropout), AdamW at one rate, clipping, float32 on a CPU or bfloat16 on a GPU, sdpa attention, no
gradient checkpointing, one process, threads, data workers. So the loss of the first step must be
equal on all sides, and is compared. What a tool does before the first step is not counted.

Sides run in turn, each in a process of its own. One callback (`throughput_run.py`) notes the end of
every step. What counts is the time from the end of step 2 to the end of the last one, of each step
the least of the repeats: by the clock, and by processor time of the process and of its data
workers, which says more on a machine that others use too. Goal: at least 1.15 times the samples a
second of each tool.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import throughput_run
import torch
import yaml
from throughput_files import ENTRY, SIZES, STAGE, Files, Size, write_data, write_model

GOAL = 1.15
WARMING = 2  # steps that are not counted
TOLERANCE = 1e-3  # of the first losses, relative
_OURS, _PLAIN = "tpokit", "plain Trainer"
_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_RANK, _ALPHA, _RATE = 16, 32, 1e-4


@dataclass(frozen=True)
class Cost:
    """Seconds of a sample: by the clock, and processor time of the training process and of its data
    workers.
    """

    clock_s: float
    main_s: float
    workers_s: float

    @property
    def processor_s(self) -> float:
        """Of all processes."""
        return self.main_s + self.workers_s

    @classmethod
    def least(cls, clocks: list[dict[str, Any]], samples: int) -> Cost:
        """Of a sample, over the counted steps. Repeats do the same steps: of each step the least
        counts, as what comes on top of it is due to other programs.
        """
        totals = {}
        for name in ("clock_s", "main_s", "workers_s"):
            ends = [[step[name] for step in clock["steps"][WARMING - 1 :]] for clock in clocks]
            taken = [[later - earlier for earlier, later in pairwise(times)] for times in ends]
            totals[name] = sum(min(times) for times in zip(*taken, strict=True)) / samples
        return cls(**totals)


@dataclass(frozen=True)
class Job:
    """What every side does."""

    files: Files
    size: Size
    batch: int
    steps: int
    workers: int
    threads: int
    seed: int = 0

    @property
    def gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return torch.cuda.is_available()

    @property
    def dtype(self) -> str:
        """Of weights and arithmetic."""
        return "bfloat16" if self.gpu else "float32"


def our_settings(job: Job, folder: Path) -> dict[str, Any]:
    """A recipe."""
    path = folder / "recipe.yaml"
    stage = {
        "name": STAGE,
        "train": {"llm": "lora"},
        "learning_rate": _RATE,
        "mix": {ENTRY: 1.0},
        "samples_per_step": job.batch,
        "steps": job.steps,
        "schedule": "constant",
    }
    recipe = {
        "recipe": 1,
        "name": "throughput",
        "seed": job.seed,
        "output": str(folder / "run"),
        "backbone": {
            "plugin": "llava_onevision",
            "options": {"model": str(job.files.model), "dtype": job.dtype},
        },
        "data": {
            ENTRY: {"source": "jsonl", "options": {"annotations": str(job.files.data["ours"])}}
        },
        "lora": {"rank": _RANK, "alpha": float(_ALPHA)},
        "stages": [stage],
        "run": {
            "device_batch": job.batch,
            "precision": job.dtype,
            "workers": job.workers,
            "threads": job.threads,
            "log_every": 1,
            "max_length": job.size.shape.positions,
        },
    }
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return {"recipe": str(path)}


def plain_settings(job: Job, folder: Path) -> dict[str, Any]:
    """Arguments of transformers and PEFT."""
    lora = {
        "r": _RANK,
        "lora_alpha": _ALPHA,
        "lora_dropout": 0.0,
        "target_modules": r".*language_model\.layers\.\d+\..*\.(" + "|".join(_LAYERS) + ")",
    }
    arguments = {**shared_arguments(job, folder), "remove_unused_columns": False}
    return {
        "model": str(job.files.model),
        "data": str(job.files.data["plain"]),
        "dtype": job.dtype,
        "lora": lora,
        "arguments": {**arguments, "use_cpu": not job.gpu, "disable_tqdm": True},
    }


def llama_factory_settings(job: Job, folder: Path) -> dict[str, Any]:
    """What would stand in its YAML file. Its template for LLaVA-NeXT with Qwen has the same text;
    the model itself is none of its list, so that layers are named one by one.
    """
    tags = {"role_tag": "role", "content_tag": "content"}
    tags |= {"user_tag": "user", "assistant_tag": "assistant"}
    described = {
        "file_name": str(job.files.data["marked"]),
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": tags,
    }
    (folder / "dataset_info.json").write_text(json.dumps({ENTRY: described}), encoding="utf-8")
    return {
        **shared_arguments(job, folder),
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(job.files.model),
        "finetuning_type": "lora",
        "lora_rank": _RANK,
        "lora_alpha": _ALPHA,
        "lora_dropout": 0.0,
        "lora_target": ",".join(named_layers(job.size)),
        "dataset_dir": str(folder),
        "dataset": ENTRY,
        "template": "llava_next_qwen",
        "default_system": "",
        "cutoff_len": 8192,
        "disable_shuffling": True,
        "image_min_pixels": 1,
        "flash_attn": "sdpa",
        "disable_gradient_checkpointing": True,
        "overwrite_cache": True,
        "use_cpu": not job.gpu,
    }


def ms_swift_settings(job: Job, folder: Path) -> dict[str, Any]:
    """What would stand behind ``swift sft``. Its own template for LLaVA-OneVision looks for images
    under the released id; with another id that for LLaVA-NeXT does the same.
    """
    released = job.files.image_id == 151646
    return {
        **shared_arguments(job, folder),
        "model": str(job.files.model),
        "model_type": "llava_onevision_hf",
        "template": "llava_onevision_hf" if released else "llava_next_qwen_hf",
        "system": "",
        "torch_dtype": job.dtype,
        "tuner_type": "lora",
        "lora_rank": _RANK,
        "lora_alpha": _ALPHA,
        "lora_dropout": 0.0,
        "target_regex": r".*language_model\.layers\.\d+\..*\.(" + "|".join(_LAYERS) + ")",
        "dataset": str(job.files.data["marked"]),
        "split_dataset_ratio": 0.0,
        "dataset_shuffle": False,
        "train_dataloader_shuffle": False,
        "attn_impl": "sdpa",
        "gradient_checkpointing": False,
        "max_length": 8192,
        "use_cpu": not job.gpu,
    }


def shared_arguments(job: Job, folder: Path) -> dict[str, Any]:
    """Arguments of transformers itself, alike for all tools that hand them on."""
    return {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": job.batch,
        "gradient_accumulation_steps": 1,
        "max_steps": job.steps,
        "learning_rate": _RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": job.gpu,
        "dataloader_num_workers": job.workers,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": job.seed,
    }


def named_layers(size: Size) -> list[str]:
    """Every linear layer of the language model."""
    kinds = [f"self_attn.{name}" if name[0] in "qkvo" else f"mlp.{name}" for name in _LAYERS]
    return [
        f"language_model.layers.{layer}.{kind}"
        for layer in range(size.shape.layers)
        for kind in kinds
    ]


SETTINGS = {
    _OURS: our_settings,
    _PLAIN: plain_settings,
    "LLaMA-Factory": llama_factory_settings,
    "ms-swift": ms_swift_settings,
}


def run_side(side: str, job: Job, interpreter: str | None, folder: Path) -> dict[str, Any]:
    """Run a side in a process of its own; returns what its clock wrote.

    Raises:
        SystemExit: It failed; says where its output is.
    """
    folder.mkdir(parents=True)
    settings, clock, log = SETTINGS[side](job, folder), folder / "clock.json", folder / "log"
    if interpreter is None:  # a copy of this process has the libraries already
        arguments = side, settings, clock, job.threads, log
        process = multiprocessing.get_context("fork").Process(target=quietly, args=arguments)
        process.start()
        process.join()
        code = process.exitcode
    else:
        path = folder / "settings.json"
        path.write_text(json.dumps({"settings": settings, "threads": job.threads}))
        command = [interpreter, throughput_run.__file__, side, str(path), str(clock)]
        hidden = {"PYTHONPATH", "VIRTUAL_ENV"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment["OMP_NUM_THREADS"] = str(job.threads)  # before torch is imported
        with log.open("w") as said:
            code = subprocess.run(
                command, env=environment, stdout=said, stderr=said, check=False
            ).returncode
    if code or not clock.is_file():
        raise SystemExit(f"{side} ended with {code}:\n{log.read_text()[-3000:]}")
    found: dict[str, Any] = json.loads(clock.read_text())
    return found


def quietly(side: str, settings: dict[str, Any], clock: Path, threads: int, log: Path) -> None:
    """Run a side here, its output in a file."""
    with log.open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        throughput_run.run(side, settings, clock, threads)


def report(found: dict[str, list[dict[str, Any]]], job: Job) -> None:
    """Print the table.

    Raises:
        SystemExit: The sides have not done the same.
    """
    first = {side: clocks[0]["losses"][0] for side, clocks in found.items()}
    apart = max(abs(loss / first[_OURS] - 1) for loss in first.values())
    if apart > TOLERANCE:
        raise SystemExit(f"the sides do not train the same: losses of the first step {first}")
    print(f"losses of the first step are {first[_OURS]:.5f}, equal to {apart:.0e}")
    samples = (job.steps - WARMING) * job.batch
    costs = {side: Cost.least(clocks, samples) for side, clocks in found.items()}
    for side, least in costs.items():
        print(
            f"{side:<14} {1 / least.clock_s:8.3f} samples/s; processor s a sample: "
            f"{least.main_s:.4f} training, {least.workers_s:.4f} data workers"
        )
    ours = costs[_OURS]
    for side in [side for side in costs if side != _OURS]:
        other = costs[side]
        ratio = other.clock_s / ours.clock_s
        verdict = "reached" if ratio >= GOAL else "MISSED"
        pairs = ", ".join(
            f"{Cost.least([theirs], samples).clock_s / Cost.least([mine], samples).clock_s:.2f}"
            for mine, theirs in zip(found[_OURS], found[side], strict=True)
        )
        print(
            f"tpokit / {side}: {ratio:.2f} x the samples a second (goal {GOAL}: {verdict}; pair by "
            f"pair {pairs}); by processor time {other.processor_s / ours.processor_s:.2f} x, of "
            f"the training process alone {other.main_s / ours.main_s:.2f} x",
            flush=True,
        )


def prepare(folder: Path, size: Size, options: argparse.Namespace) -> Files:
    """Write model and data; in a process of its own, so that this one has no threads to copy."""
    samples = options.batch * options.steps
    result = folder / "image_id"

    def write() -> None:
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        result.write_text(str(write_model(size, folder / "model", dtype)))

    data = write_data(size, folder, samples, seed=0)
    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join()
    return Files(folder / "model", data, int(result.read_text()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps of the tiny model")
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--llama-factory", metavar="PYTHON")
    parser.add_argument("--ms-swift", metavar="PYTHON")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="an empty folder for all files")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.repeats, options.batch, options.workers = 3, 1, 2, 0
    interpreters = {_OURS: None, _PLAIN: None}
    for side, given in (
        ("LLaMA-Factory", options.llama_factory),
        ("ms-swift", options.ms_swift),
    ):
        if given is not None:
            interpreters[side] = given
    size = SIZES[options.size]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        files = prepare(folder, size, options)
        job = Job(files, size, options.batch, options.steps, options.workers, options.threads)
        print(
            f"{options.size}, batch {job.batch}, {job.steps} steps, {job.dtype}, torch "
            f"{torch.__version__}, {job.threads} threads, {job.workers} workers, "
            f"{options.repeats} repeats in turn, {sys.platform}",
            flush=True,
        )
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in interpreters}
        for repeat in range(options.repeats):
            for side, interpreter in interpreters.items():
                place = folder / f"{side.replace(' ', '_')}_{repeat}"
                found[side].append(run_side(side, job, interpreter, place))
        report(found, job)


if __name__ == "__main__":
    main()
