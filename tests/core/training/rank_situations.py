"""Script: the gradients of a composed model for many ways in which samples fall to two ranks.

``rank_situations.py FOLDER ENGINE...``, as two ranks, writes ``FOLDER/<engine>.safetensors``: the
gradient of every trained weight in every situation, one optimizer step each. No step changes a
weight. The guard compares the ranks.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch.utils.data import Dataset

from tests.composed import SMALL, collator_of, encoder_of, samples
from tests.core.training import rank_situations
from tpokit import Sample, Turn
from tpokit.data.bad_samples import BadSampleLimit, ReadBatch
from tpokit.model import build_model
from tpokit.parts import set_modes
from tpokit.recipe import open_recipe
from tpokit.training.arguments import Split, forget_engine, gradient_of, training_arguments
from tpokit.training.bad_samples import BadSampleList
from tpokit.training.rank_guard import RankGuard
from tpokit.training.ranks import Ranks
from tpokit.training.resume import StageCheckpoints
from tpokit.training.trainer import TpoTrainer
from tpokit.training.watching import StepWatcher
from tpokit_shapes_world.tiny_model import write_tiny


@dataclass(frozen=True)
class Situation:
    """One optimizer step: two samples of rank 0, two of rank 1, each in so many micro-batches."""

    samples: tuple[str, str, str, str]
    micro_batches: tuple[int, int] = (1, 1)
    same_task: bool = False


SITUATIONS = {
    "different tasks": Situation(("moment", "other moment", "boxes", "text")),
    "media and something given": Situation(("given", "video", "text", "image"), (2, 1)),
    "one task after another": Situation(("moment", "boxes", "image", "text"), (2, 2), True),
    "text only, no head runs": Situation(("text", "other text") * 2, same_task=True),
}
_ENCODED = {}  # samples by name; whoever is a copy of this process has them
SHAPE = replace(SMALL, vision_layers=1, layers=1)
TEMPORAL = {
    "width": 16,
    "feed_forward": 16,
    "heads": 4,
    **dict.fromkeys(("dummy_layers", "text_to_clips_layers", "projection_layers"), 1),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    "queries": 3,
    "dummies": 2,
    "global_tokens": 2,
    "dropout": 0.0,
    "input_dropout": 0.0,
    "features": {"kind": "backbone", "rate": 8.0, "frames_max": 4},
}


def write_recipe(folder):
    heads = {
        "region": {"plugin": "region", "options": {"hidden": 8}},
        "temporal": {"plugin": "temporal", "options": TEMPORAL},
    }
    stage = {
        "name": "all",
        "train": dict.fromkeys(("vision", "connector", "llm", "bridge", *heads), "full"),
        "learning_rate": 1.0,
        "mix": {"none": 1.0},
        "samples_per_step": 4,
        "steps": len(SITUATIONS),
        "clip": 0.0,
    }
    model = {
        "model": str(write_tiny(folder / "tiny", SHAPE)),
        "weights": "random",
        "crops": "single",
        "frames": 2,
    }
    plain = {
        "recipe": 1,
        "name": "ranks",
        "output": str(folder / "run"),
        "backbone": {"plugin": "llava_onevision", "options": model},
        "heads": heads,
        "data": {"none": {"source": "shapes_world"}},
        "stages": [stage],
        "run": {"threads": 1, "device_batch": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plain))


def pool(folder):
    """Samples by name."""
    boxes = samples(folder, 1, kinds={"two_regions": 1.0}, turns=(1, 1))
    moments = samples(folder, 2, kinds={"moment": 1.0}, frames=4, turns=(1, 1))
    images = samples(folder, 1, turns=(1, 2))
    videos = samples(folder, 1, frames=2, turns=(1, 1))
    given = Sample(
        "given",
        (Turn("user", "what is in <region> ?"), Turn("assistant", "the red ring")),
        media=boxes[0].media,
        given={"region": ((0.1, 0.2, 0.4, 0.5),)},
    )
    texts = [
        Sample(word, (Turn("user", f"is this a {word}"), Turn("assistant", answer)))
        for word, answer in (("ring", "no"), ("square", "yes"))
    ]
    names = ("boxes", "moment", "other moment", "image", "video")
    found = (*boxes, *moments, *images, *videos)
    others = {"text": texts[0], "other text": texts[1], "given": given}
    return {**dict(zip(names, found, strict=True)), **others}


class Situations(Dataset):
    """The samples of all situations."""

    def __init__(self, model, folder):
        if not _ENCODED:
            own, encoder = pool(folder), encoder_of(model)
            _ENCODED.update({name: encoder.encode(own[name], "situations") for name in own})

    def __len__(self):
        return 4 * len(SITUATIONS)

    def __getitem__(self, index):
        situation = list(SITUATIONS.values())[index // 4]
        return situation, _ENCODED[situation.samples[index % 4]]


def read_together(collate, pairs):
    """What a rank reads in a situation, in as many micro-batches as that says."""
    counts = pairs[0][0].micro_batches
    ranks = Ranks.here()
    read = []
    for count in counts if ranks.world == 1 else (counts[ranks.rank],):
        own, pairs = [example for _, example in pairs[:2]], pairs[2:]
        read += [own] if count == 1 else [own[:1], own[1:]]
    return ReadBatch(tuple(map(collate, read)))


class KeptGradients(StepWatcher):
    """Keeps every gradient of every step."""

    def __init__(self, model):
        self._model = model
        self._situations = iter(SITUATIONS)
        self.found = {}

    def gradients_ready(self):
        situation = next(self._situations)
        for name, weight in self._model.named_parameters():
            gradient = gradient_of(weight)
            self.found[f"{situation}/{name}"] = gradient.clone()


class StandingStill(TpoTrainer):
    """No step changes a weight."""

    def make_optimizer(self, groups):
        return torch.optim.SGD([{**group, "lr": 0.0} for group in groups], lr=0.0)

    def get_batch_samples(self, *arguments):
        situation = list(SITUATIONS.values())[self.state.global_step]
        self._same_task = situation.same_task
        return super().get_batch_samples(*arguments)


def gradients(folder, engine):
    """The gradients of all situations, by situation and name; one process takes what the two have,
    one micro-batch after another.
    """
    ranks = Ranks.here()
    recipe, plugins = open_recipe(folder / "recipe.yaml", [f"run.engine={engine}"])
    stage = recipe.stages[0]
    model = build_model(recipe, plugins)
    torch.manual_seed(5)
    torch.nn.init.normal_(model.bridge.output.weight, std=0.3)
    set_modes(model, stage.modes, recipe.lora, 0)
    split = Split.of(stage.samples_per_step, 4, ranks.world)
    kept = KeptGradients(model)
    trainer = StandingStill(
        model,
        training_arguments(recipe, stage, split, folder / "checkpoints"),
        Situations(model, folder),
        recipe,
        stage,
        StageCheckpoints(folder, stage.name, ranks),
        BadSampleList(folder / "bad.jsonl", stage.name, BadSampleLimit(0, 4), ranks.first),
        [RankGuard(model, engine, stage.name, ranks), kept],
    )
    trainer.data_collator = partial(read_together, collator_of(model))
    trainer.train()
    trainer.release()
    forget_engine()
    return kept.found


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    Ranks.here().join(60)
    for name in sys.argv[2:]:
        result = rank_situations.gradients(place, name)  # whose samples are there already
        if Ranks.here().first:
            save_file(result, place / f"{name}.safetensors")
