"""Script: train a recipe and die without warning in the stage ``heads``, after step 5."""

import os
import signal
import sys

from tests.core.training.small_runs import read_recipe
from tpokit.training.stages import train
from tpokit.training.trainer import TpoTrainer


class DyingTrainer(TpoTrainer):
    def get_batch_samples(self, *arguments):
        if self._stage.name == "heads" and self.state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().get_batch_samples(*arguments)


if __name__ == "__main__":
    sys.modules["tpokit.training.stages"].TpoTrainer = DyingTrainer
    train(*read_recipe(sys.argv[1], *sys.argv[2:]))
