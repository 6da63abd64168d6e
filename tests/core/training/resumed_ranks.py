"""Script: start or go on with runs of several engines, also one process as a launcher starts it.

``resumed_ranks.py STEP RECIPE FOLDER ENGINE...`` trains into ``FOLDER/<engine>``, saves and stops
behind a step, or with 0 at the end.
"""

import contextlib
import os
import sys
from pathlib import Path

import torch

from tests.core.training.small_runs import read_recipe
from tests.forked import _free_port
from tpokit.training import stages
from tpokit.training.arguments import forget_engine
from tpokit.training.ranks import Ranks
from tpokit.training.trainer import TpoTrainer
from tpokit.training.watching import StepWatcher, Wish


class Enough(Exception):
    pass


class StopBehind(StepWatcher):
    def __init__(self, step):
        self.step = step

    def step_ended(self, number):
        return Wish.SAVE | Wish.STOP if number == self.step else Wish.NOTHING


def stopped_trainer(step):
    class StoppedTrainer(TpoTrainer):
        def train(self, *arguments, **named):
            self._watchers = (*self._watchers, StopBehind(step))
            super().train(*arguments, **named)
            if step:
                self.release()
                forget_engine()
                raise Enough

    return StoppedTrainer


def run(step, path, folder, engines):
    torch.set_num_threads(1)
    stages.TpoTrainer = stopped_trainer(step)
    for engine in engines:
        overrides = (f"output={folder / engine}", f"run.engine={engine}")
        with contextlib.suppress(Enough):
            stages.train(*read_recipe(path, *overrides), resume="auto")
        Ranks.here().wait()


if __name__ == "__main__":
    if "RANK" not in os.environ:
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", **here)
    run(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
