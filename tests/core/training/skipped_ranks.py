"""Script: two steps with each of several engines, of which the first is not finite on rank 0 only.

``skipped_ranks.py FOLDER ENGINE...`` writes ``FOLDER/<engine>/gradient.safetensors``, what both
steps together changed, as a gradient, beside the list of skipped steps.
"""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.core.training.one_step import change
from tpokit.training.ranks import Ranks

TWO_STEPS = ("stages[0].steps=2", "stages[0].samples_per_step=4", "heads.point.options.poison=0.45")


def run(folder, engines):
    torch.set_num_threads(1)
    for engine in engines:
        Ranks.here().join(timeout_s=60)
        found = change(folder, engine, device_batch=1, overrides=TWO_STEPS)
        if Ranks.here().first:
            (folder / engine).mkdir()
            save_file(found, folder / engine / "gradient.safetensors")
            shutil.move(folder / "skipped_steps.jsonl", folder / engine)
        Ranks.here().wait()


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
