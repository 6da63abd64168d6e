"""Script: one plain gradient step with each of several engines, started by torchrun or alone.

``one_step.py FOLDER ENGINE...`` writes ``FOLDER/<engine>-<processes>.safetensors``, the gradient of
every trained weight; behind the name of an engine may stand what it offloads. Rank 0 has the
samples with calls, rank 1 conversation only. With ``zero3`` the recipe in ``FOLDER/whole`` is
trained, too.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset

from tests.core.training.small_runs import read_recipe
from tests.core.training.tiny import LineOptions, Lines
from tpokit.checkpoints.tensors import trained_state, trained_tensors
from tpokit.data.bad_samples import BadSampleLimit
from tpokit.data.conversation import Encoder
from tpokit.model import build_model
from tpokit.parts import set_modes
from tpokit.training.arguments import ZERO_STAGES, Split, forget_engine, gather, training_arguments
from tpokit.training.bad_samples import BadSampleList
from tpokit.training.ranks import Ranks
from tpokit.training.resume import StageCheckpoints
from tpokit.training.stages import train
from tpokit.training.trainer import TpoTrainer

RATE = 1000.0
ORDER = ("point", "seen", "talk", "talk", "given", "mass", "talk", "talk")


class OneStep(Dataset):
    """Two samples for each rank in turn."""

    def __init__(self, model, folder):
        heads = {task: model.head(task) for task in model.heads}
        self.encoder = Encoder(model.backbone.processor, heads, model.tokens, 100)
        self.source = Lines(LineOptions(kinds=ORDER, image="picture.png", count=len(ORDER)), folder)

    def __len__(self):
        return len(ORDER)

    def __getitem__(self, index):
        return self.encoder.encode(self.source.read(index, np.random.default_rng(index)), "lines")


class PlainStep(TpoTrainer):
    """A weight changes by its gradient, times a rate so large that rounding does not matter."""

    def make_optimizer(self, groups):
        return torch.optim.SGD(groups, lr=RATE)


def change(folder, engine, device_batch=2, overrides=(), changed=None):
    """The gradients; ``changed`` changes the model before that and gives a watcher."""
    ranks = Ranks.here()
    recipe, plugins = read_recipe(folder / "recipe.yaml", f"run.engine={engine}", *overrides)
    stage = recipe.stages[0]
    model = build_model(recipe, plugins)
    torch.manual_seed(5)
    torch.nn.init.normal_(model.bridge.output.weight, std=0.3)
    set_modes(model, stage.train, recipe.lora, 0)
    watchers = [] if changed is None else [changed(model)]
    zero = engine in ZERO_STAGES
    before = {name: t.detach().clone() for name, t in trained_tensors(model).items()}
    split = Split.of(stage.samples_per_step, device_batch, ranks.world)
    arguments = training_arguments(recipe, stage, split, folder / "checkpoints")
    trainer = PlainStep(
        model,
        arguments,
        OneStep(model, folder),
        recipe,
        stage,
        StageCheckpoints(folder, stage.name, ranks),
        BadSampleList(folder / "bad.jsonl", stage.name, BadSampleLimit(0, len(ORDER)), ranks.first),
        watchers,
    )
    try:
        trainer.train()
    finally:
        forget_engine()
    after = trained_state(trained_tensors(model), gather if zero else None)
    trainer.release()
    return {n: (before[n] - after[n]) / RATE for n in after if n != "heads.mass.offset"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    for name in sys.argv[2:]:
        Ranks.here().join(timeout_s=60)
        engine, _, offload = name.partition("-")
        overrides = [f"run.offload={offload}"] if offload else []
        found = change(place, engine, overrides=overrides)
        if Ranks.here().first:
            save_file(found, place / f"{name}-{Ranks.here().world}.safetensors")
        if name == "zero3":
            train(*read_recipe(place / "whole" / "recipe.yaml", "run.engine=zero3"))
