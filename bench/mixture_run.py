"""A training run that stops after its first steps and says what they took, for `mixture_scale.py`.

    python bench/mixture_run.py BEGAN RECIPE STEPS [--resume]

BEGAN is when the process was started, in seconds since 1970. Prints JSON: seconds until the samples
of the first step were there, by the clock and of the main process's processor time, and memory of
the process and of its data workers after the last step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tpokit.recipe import open_recipe
from tpokit.training import stages
from tpokit.training.trainer import TpoTrainer


class StoppingTrainer(TpoTrainer):
    """Ends the process, as a power cut would, when it has seen enough."""

    first_batch_s = 0.0
    processor_s = 0.0
    stop_at = 0

    def get_batch_samples(self, *arguments: Any) -> Any:
        """As ever, with a look at the clock."""
        read = super().get_batch_samples(*arguments)
        if not self.first_batch_s:
            self.first_batch_s = time.time() - float(sys.argv[1])
            self.processor_s = time.process_time()
            self.stop_at = self.state.global_step + int(sys.argv[3])
        if self.state.global_step >= self.stop_at:
            process = psutil.Process()
            workers = process.children()
            found = {
                "first_batch_s": self.first_batch_s,
                "processor_s": self.processor_s,
                "step": self.state.global_step,
                "main": memory(process),
                "workers": [memory(worker) for worker in workers],
            }
            for worker in workers:
                worker.kill()
            print(json.dumps(found), flush=True)
            os._exit(0)
        return read


def memory(process: psutil.Process) -> dict[str, float]:
    """Resident memory in GB; ``own``: shared pages divided by the number of sharers."""
    found = process.memory_full_info()
    return {"resident": found.rss / 1e9, "own": found.pss / 1e9}


if __name__ == "__main__":
    stages.TpoTrainer = StoppingTrainer
    stages.train(*open_recipe(Path(sys.argv[2])), resume="--resume" in sys.argv)
