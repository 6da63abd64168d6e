"""Recipes that are evaluated during their stages; as a script, started as ranks: train one with
ZeRO-3.

``evaluated.py RECIPE`` writes the run ``zero3`` beside the recipe.
"""

import sys
from pathlib import Path

from tests.core.training.small_runs import TINY, read_recipe, stage, write_recipe
from tpokit.training import arguments
from tpokit.training.stages import train

METERED = TINY.parents[1] / "evaluation" / "metered.py"
KINDS = ["point", "talk", "seen", "given", "mass"]
PARTS = ("vision", "connector", "llm", "bridge", "point", "mass")


def evaluated_recipe(folder, *, steps=(1, 3), probe=None, evaluate=None, **changes):
    """One or two stages that soon call heads, evaluated after every step on 5 samples in 3 batches.

    ``steps``: of each stage; of one alone, of the second.
    """
    options = {"kinds": KINDS, "image": "picture.png"}
    common = {"learning_rate": 0.03, "samples_per_step": 8, "warmup": 0.0}
    stages = [
        stage("assign", {"llm": "full", "bridge": "full"}, **common, steps=steps[0]),
        stage("all", dict.fromkeys(PARTS, "full"), **common, steps=steps[-1]),
    ]
    path = write_recipe(
        folder,
        **{
            "data": {"mixed": {"source": "lines", "options": options}},
            "stages": stages[-len(steps) :],
            "evaluate": {
                "data": ["mixed"],
                "samples": 5,
                "batch": 2,
                "max_new_tokens": 5,
                "before": False,
                "every": 1,
                "probe": {"prompts": "mixed", "samples": 3, **(probe or {})},
                **(evaluate or {}),
            },
            **changes,
        },
    )
    plugins = "".join(f"  - path: {place}\n" for place in (TINY, METERED))
    (folder / "registry.yaml").write_text(f"version: 1\nplugins:\n{plugins}")
    return path


def take_all_apart():
    """Let ZeRO-3 take even the smallest weights to pieces."""
    config = arguments.deepspeed_config

    def without_small_ones(*rest):
        made = config(*rest)
        made["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return made

    arguments.deepspeed_config = without_small_ones


if __name__ == "__main__":
    take_all_apart()
    place = Path(sys.argv[1])
    train(*read_recipe(place, "run.engine=zero3", f"output={place.with_name('zero3')}"))
