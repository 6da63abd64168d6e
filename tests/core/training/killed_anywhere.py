"""Script: start or go on with a run, and die without warning at a place that is counted, or at a
time.

``killed_anywhere.py NOTE KIND NUMBER RECIPE [path=value]...`` dies when the run passes places of a
kind for the so many-eth time, or with the kind ``time`` after so many seconds. A place is passed in
front of what it names, and behind it. ``NOTE`` gets a line with its name.
"""

import functools
import json
import os
import signal
import sys
import threading
from pathlib import Path

from tests.core.training.small_runs import read_recipe
from tpokit import atomic
from tpokit.checkpoints import store
from tpokit.evaluation.runner import Evaluation
from tpokit.training import (
    bad_samples,
    callbacks,
    evaluation,
    json_lines,
    resume,
    skipped,
    stages,
    trainer,
)

PLACES = {
    "step": [
        (trainer.TpoTrainer, "get_batch_samples"),
        (trainer.TpoTrainer, "compute_loss"),
        (trainer.TpoTrainer, "_get_grad_norm"),  # between gradients and the update
        (trainer.TpoTrainer, "_maybe_log_save_evaluate"),
    ],
    "save": [
        (trainer.TpoTrainer, "_save_optimizer_and_scheduler"),
        (resume, "finish"),  # a checkpoint gets its name
        (resume.shutil, "rmtree"),  # old checkpoints, and those of a finished stage
        (atomic, "_to_disk"),
    ],
    "stage": [(store, "fill_model"), (resume.StageCheckpoints, "remove")],
    "score": [(Evaluation, "__call__"), (stages, "evaluate_model")],
    "row": [],  # written in part, below
    "time": [],
}


class Death:
    """Counts places and kills this process."""

    def __init__(self, note, number):
        self._note, self._left, self._owner = Path(note), number, os.getpid()

    def due(self):
        """Whether this is the place; a data worker does not count."""
        self._left -= os.getpid() == self._owner
        return self._left == 0

    def come(self, place):
        with self._note.open("a") as file:
            file.write(f"{place}\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner, name):
        work = getattr(owner, name)

        @functools.wraps(work)
        def watched(*arguments, **named):
            if self.due():
                self.come(f"before {name}")
            found = work(*arguments, **named)
            if self.due():
                self.come(f"after {name}")
            return found

        setattr(owner, name, watched)

    def tear_rows(self):
        def torn(path, rows):
            if self.due():
                with path.open("a") as file:
                    file.write(json.dumps(rows[0])[:20])
                self.come(f"in a row of {path.name}")
            json_lines.append_rows(path, rows)

        for module in (callbacks, bad_samples, evaluation, skipped):
            module.append_rows = torn


def main(note, kind, number, path, *overrides):
    death = Death(note, float(number))
    if kind == "time":
        timer = threading.Timer(float(number), death.come, ["some time"])
        timer.daemon = True
        timer.start()
    if kind == "row":
        death.tear_rows()
    for owner, name in PLACES[kind]:
        death.watch(owner, name)
    stages.train(*read_recipe(path, *overrides), resume="auto")


if __name__ == "__main__":
    main(*sys.argv[1:])
