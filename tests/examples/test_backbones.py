"""The examples of other backbones and connectors, at reduced length."""

from pathlib import Path

import pytest

import tpokit
from tpokit.recipe import open_recipe
from tpokit.training.stages import train

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = (
    "stages[*].steps=1",
    "stages[*].samples_per_step=4",
    "evaluate.samples=4",
    "run.device_batch=4",
    "run.threads=1",
    "run.workers=0",
)
CASES = [
    ("videochat2", ["mask", "region", "temporal"], ()),
    (
        "videochat2",
        ["mask", "region", "temporal"],
        ("backbone.plugin=llava_onevision", "evaluate=null"),
    ),
    ("pool_adapter", ["region"], ()),
]


@pytest.mark.parametrize(("name", "heads", "changes"), CASES)
def test_all_stages_of_an_example_run_with_either_backbone(
    name, heads, changes, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))  # scenes are written below it
    changes = [*SHORT, *changes, f"output={tmp_path / 'run'}"]
    recipe, plugins = open_recipe(EXAMPLES / f"{name}.yaml", changes)
    folder = train(recipe, plugins)
    for stage in recipe.stages:
        assert (folder / stage.name / "model.json").is_file()
    assert list(tpokit.load_model(folder, plugins).heads) == heads
