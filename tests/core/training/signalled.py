"""Script: ``tpokit train`` that gets a signal, together with its data workers.

``signalled.py SIGNAL TIMES RANK PLACE ARGUMENT...``: the rank sends itself the signal so many times
in the third step (``step``), or when the model is scored (``score``). One that comes again is not
taken for the same.
"""

import multiprocessing
import os
import signal
import sys

from tpokit.cli import main
from tpokit.training import interruption, stages
from tpokit.training.trainer import TpoTrainer


def ask(name, times):
    for process in (*multiprocessing.active_children(), None):
        for _ in range(times):
            os.kill(process.pid if process else os.getpid(), signal.Signals[name])


def asking(work, name, times, due):
    def asked(*arguments, **named):
        if due(*arguments):
            ask(name, times)
        return work(*arguments, **named)

    return asked


def run(name, times, rank, place, *arguments):
    here = os.environ.get("RANK", "0") == rank
    interruption._AGAIN_S = 0.0
    if place == "step":
        TpoTrainer.get_batch_samples = asking(
            TpoTrainer.get_batch_samples,
            name,
            int(times),
            lambda trainer, *_: here and trainer.state.global_step == 2,
        )
    else:
        stages.evaluate_model = asking(stages.evaluate_model, name, int(times), lambda *_: here)
    main(arguments)


if __name__ == "__main__":
    run(*sys.argv[1:])
