"""Recipes over the tiny plugins, and child processes that train them."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from PIL import Image

from tpokit.recipe import open_recipe

TINY = Path(__file__).with_name("tiny.py")


def write_recipe(folder, **changes):
    """A recipe of three stages; ``changes`` replace sections, ``run`` adds to its section."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "registry.yaml").write_text(f"version: 1\nplugins:\n  - path: {TINY}\n")
    Image.new("RGB", (4, 4), (90, 30, 200)).save(folder / "picture.png")
    run = {"device_batch": 2, "log_every": 2, "threads": 1, **changes.pop("run", {})}
    plain = {
        "recipe": 1,
        "name": "tiny",
        "seed": 3,
        "registry": "registry.yaml",
        "output": str(folder / "run"),
        "backbone": {"plugin": "tiny", "options": {"dropout": 0.2}},
        "heads": {"point": {"plugin": "point"}, "mass": {"plugin": "mass"}},
        "data": {
            "mixed": {
                "source": "lines",
                "options": {
                    "kinds": ["talk", "point", "mass", "given", "seen"],
                    "image": "picture.png",
                },
            },
        },
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
        "stages": [
            stage("assign", {"llm": "lora", "bridge": "full"}),
            stage("heads", {"llm": "lora", "bridge": "full", "point": "full", "mass": "full"}),
            stage(
                "joint",
                {
                    "vision": "full",
                    "connector": "full",
                    "llm": "lora",
                    "bridge": "full",
                    "point": "full",
                    "mass": "full",
                },
            ),
        ],
        "run": run,
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def stage(name, train, **changes):
    return {
        "name": name,
        "train": train,
        "learning_rate": 0.01,
        "mix": {"mixed": 1.0},
        "samples_per_step": 4,
        "steps": 6,
        "warmup": 0.2,
        "weight_decay": 0.02,
        **changes,
    }


def read_recipe(path, *overrides):
    return open_recipe(path, overrides)


def python(script, *arguments, processes=1, timeout_s=120):
    """Run a script (or "-m", a module) in this project, under torchrun if there are several
    processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), str(script), *map(str, arguments)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
