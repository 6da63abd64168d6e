"""Script: train a recipe with an engine, once as it is and once with the gradients of tasks
compared in every step; started as ranks.

``seen_engines.py RECIPE ENGINE`` leaves runs in ``ENGINE-0`` and ``ENGINE-1`` beside the recipe.
"""

import sys
from pathlib import Path

import torch

from tests.core.training.small_runs import read_recipe
from tpokit.training import stages

if __name__ == "__main__":
    torch.set_num_threads(1)
    stages.loss_curves = lambda *_: None  # takes longer than the steps
    place, engine = Path(sys.argv[1]), sys.argv[2]
    for every in (0, 1):
        run = (f"run.engine={engine}", f"run.gradients_every={every}")
        stages.train(*read_recipe(place, *run, f"output={place.parent / f'{engine}-{every}'}"))
