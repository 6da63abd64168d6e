"""Made-up releases of the toy formats, and what a model of ours holds."""

from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from tests.core.training import tiny
from tests.core.weights import toy
from tpokit.plugins import Plugins
from tpokit.tokens import TaskTokens, TokenTable

WIDTH = 16
TASKS = {"mass": tiny.MassHead.tokens, "point": tiny.PointHead.tokens}


def plugins_of(folder) -> Plugins:
    return Plugins.load(toy.registry(folder))


def table(tasks: dict[str, TaskTokens] | None = None) -> TokenTable:
    return TokenTable.build(
        tiny.ROWS, TASKS if tasks is None else tasks, tiny.TinyProcessor().tokenizer
    )


def release(dtype=torch.float32, seed=0):
    """Random tensors of every name of the release."""
    rules = [toy.ToyRules(WIDTH), toy.MassRules(WIDTH, 4), toy.PointRules(WIDTH, 3)]
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for part in rules:
        for one in part.tensors(table()):
            numbers = torch.randn(one.shape, generator=random).to(dtype)
            tensors[one.name] = (numbers * 100).long() if one.dtype else numbers
    return tensors


def write_release(folder: Path, tensors=None, files=("model.safetensors",)):
    """The release in so many files, without an index if it is one."""
    tensors = release() if tensors is None else tensors
    toy.write_table(folder, WIDTH)
    names = sorted(tensors)
    places = {name: files[i * len(files) // len(names)] for i, name in enumerate(names)}
    for file in files:
        toy.save({n: tensors[n] for n in names if places[n] == file}, folder / file)
    return places


def write_index(folder: Path, places):
    import json

    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return path


def files_of(folder: Path):
    """Every file of a saved model but the report, which says where the weights came from."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "import.json"
    }


def saved(folder: Path, name: str):
    return load_file(folder / f"{name}.safetensors")


def recipe_of(folder: Path):
    return yaml.safe_load((folder / "recipe.yaml").read_text())
