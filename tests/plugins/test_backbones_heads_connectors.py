"""Every backbone with every head, and every connector in every backbone: they learn and answer.

Whatever comes with tpokit is tried. The recipe is that of examples/videochat2.yaml, where only
names are exchanged.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tpokit.data.collate import Collator
from tpokit.data.conversation import Encoder
from tpokit.data.dataset import open_sources
from tpokit.inference.predictor import Predictor
from tpokit.losses import CombinedLoss
from tpokit.model import build_model
from tpokit.plugins import Plugins
from tpokit.recipe import parse_recipe

RECIPE = Path(__file__).parents[2] / "examples" / "videochat2.yaml"
PLUGINS = Plugins.load()
DATA = {  # task to data entries of the recipe with calls of it
    "mask": ["masks", "tracks"],
    "region": ["boxes"],
    "temporal": ["moments"],
}
TINY = {  # what a connector must be told to fit a tower of 4 x 4 patches
    "pool_adapter": {"grid": 2},
    "qformer": {
        "queries": 6,
        "extra_queries": 2,
        "layers": 2,
        "width": 32,
        "heads": 2,
        "intermediate": 48,
        "dropout": 0.0,
    },
}


def recipe_of(backbone, heads, folder, connector=None):
    """The example with another backbone, other heads (by name) and another connector."""
    plain = yaml.safe_load(RECIPE.read_text())
    plain["backbone"]["plugin"] = backbone
    if connector is not None:
        chosen = {"plugin": connector, "options": TINY.get(connector, {})}
        plain["backbone"]["connector"] = chosen
    own = plain["heads"]
    plain["heads"] = {}
    for head in heads:
        task = PLUGINS.spec("head", head).task
        plain["heads"][task] = own[task] if own[task]["plugin"] == head else {"plugin": head}
    plain["loss"] = {}
    for stage in plain["stages"]:
        stage["train"] = {"llm": "full", "bridge": "full", **dict.fromkeys(plain["heads"], "full")}
        stage["learning_rate"] = 1e-3
    for entry in plain["data"].values():
        entry["options"]["folder"] = str(folder)
    return parse_recipe(plain, "test", RECIPE.parent, (), PLUGINS)


def samples_of(recipe, names):
    """One sample of each data entry."""
    sources = open_sources(recipe, PLUGINS, names)
    return [sources[name].read(0, np.random.default_rng(0)) for name in names]


def batch_of(model, samples):
    heads = {task: model.head(task) for task in model.heads}
    processor = model.backbone.processor
    encoder = Encoder(processor, heads, model.tokens, processor.max_length)
    examples = [encoder.encode(sample, "test") for sample in samples]
    return Collator(processor, heads, model.tokens)(examples)


def learn(model, batch, recipe, steps):
    """Losses of some steps on one batch, of all parts in full."""
    combined = CombinedLoss(recipe.loss_weights("joint"))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    model.train()
    for _ in range(steps):
        loss = combined(model(batch), batch.counts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("heads", [["mask", "region", "temporal"], ["temporal_mlp"]], ids="+".join)
@pytest.mark.parametrize("backbone", PLUGINS.names("backbone"))
def test_every_backbone_learns_and_answers_with_every_head(backbone, heads, tmp_path):
    recipe = recipe_of(backbone, heads, tmp_path)
    names = [name for task in recipe.heads for name in DATA[task]]
    samples = samples_of(recipe, [*names, "talk"])
    model = build_model(recipe, PLUGINS)
    batch = batch_of(model, samples)
    losses = learn(model, batch, recipe, steps=6)
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())
    for task in model.heads:  # an answer that calls the head, whatever the model would have said
        model.eval()
        with torch.no_grad():
            model.bridge.output.weight.zero_()
            row = model.tokens.ids[model.tokens.tasks[task].trigger] - model.tokens.rows
            model.bridge.output.weight[row] = 1e3 * _last_hidden(model, samples[0])
        answer = Predictor(model).answer([samples[0]], max_new_tokens=1)[0]
        assert [call.task for call in answer.calls] == [task]


def _last_hidden(model, sample):
    """State at the end of the prompt, in whose direction the output row of a trigger is put."""
    heads = {task: model.head(task) for task in model.heads}
    processor = model.backbone.processor
    encoder = Encoder(processor, heads, model.tokens, processor.max_length)
    example = encoder.encode(sample, "test", answer_next=True)
    return model.hidden(Collator(processor, heads, model.tokens, "left")([example]))[0, -1]


def test_all_heads_were_tried():
    assert PLUGINS.names("head") == ["mask", "region", "temporal", "temporal_mlp"]


@pytest.mark.parametrize("connector", PLUGINS.names("connector"))
@pytest.mark.parametrize("backbone", PLUGINS.names("backbone"))
def test_every_connector_learns_in_every_backbone_and_is_saved_with_it(
    backbone, connector, tmp_path
):
    recipe = recipe_of(backbone, ["region", "temporal_mlp"], tmp_path, connector)
    model = build_model(recipe, PLUGINS)
    batch = batch_of(model, samples_of(recipe, ["boxes", "talk", "moments"]))
    losses = learn(model, batch, recipe, steps=6)
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.backbone.save(tmp_path / "saved")
    options = {**recipe.backbone.options, "model": str(tmp_path / "saved"), "weights": "pretrained"}
    entry = recipe.backbone.model_copy(update={"options": options})
    again = build_model(recipe.model_copy(update={"backbone": entry}), PLUGINS).backbone
    kept = dict(model.backbone.named_parameters())
    assert any(name.startswith("connector.") for name in kept)
    assert kept.keys() == dict(again.named_parameters()).keys()
    for name, parameter in again.named_parameters():
        assert torch.equal(kept[name], parameter), name
