"""Models without numbers and small models stand for the real one."""

import json
import shutil
from pathlib import Path

import pytest

import tpokit_shapes_world
from tests.test_bad_input import line, recipe
from tpokit.data.dataset import open_sources
from tpokit.data.sample_reader import reader_of
from tpokit.model import build_model
from tpokit.recipe import open_recipe
from tpokit.variants import VariantPlugins, empty_model

BASE = Path(tpokit_shapes_world.__file__).parent / "base"
LLM = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3}
TOWER = {"hidden_size": 256, "intermediate_size": 512}


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of some size, of which only configuration and tokenizer are there."""
    folder = tmp_path_factory.mktemp("wide")
    for path in BASE.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    onevision = json.loads((folder / "config.json").read_text())
    onevision["text_config"] |= {**LLM, "num_key_value_heads": 2, "layer_types": None}
    onevision["vision_config"] |= {**TOWER, "num_hidden_layers": 4}
    (folder / "config.json").write_text(json.dumps(onevision))
    videochat2 = json.loads((folder / "videochat2.json").read_text())
    videochat2["llm"] |= {**LLM, "num_key_value_heads": 2}
    videochat2["vision"] |= {**TOWER, "layers": 4}
    videochat2["connector"]["options"] |= {"layers": 4, "width": 256}
    (folder / "videochat2.json").write_text(json.dumps(videochat2))
    return folder


def opened(folder, backbone, **options):
    """A recipe with that backbone and a region head."""
    changes = {
        "backbone": {"plugin": backbone, "options": {"model": str(folder), "frames": 4, **options}}
    }
    return open_recipe(recipe(folder, line(), **changes))


@pytest.mark.parametrize("name", ["llava_onevision", "videochat2"])
def test_variants_need_no_weights_and_read_samples_as_the_real_model(name, folder):
    wanted, plugins = opened(folder, name)
    real = build_model(opened(folder, name, weights="random")[0], plugins)
    empty = empty_model(wanted, plugins)
    small = build_model(wanted, VariantPlugins(plugins, "small"))
    assert shapes(empty) == shapes(real)
    assert all(parameter.is_meta for parameter in empty.backbone.parameters())
    sizes = [sum(p.numel() for p in model.parameters()) for model in (small, real)]
    assert sizes[0] < 0.05 * sizes[1]
    sources = open_sources(wanted, plugins, ["mine"])
    read = []
    for model in (real, empty, small):
        reader = reader_of(wanted, "", sources, model)
        example = reader.encode(reader.read("mine", 0, 0), "mine", 0, 0)
        read.append((example.ids, model.backbone.processor.pixels(example.views)))
    assert read[0] == read[1] == read[2]


@pytest.mark.parametrize(("name", "head_width"), [("llava_onevision", 128), ("videochat2", 32)])
def test_layers_are_said_as_the_configuration_has_them(name, head_width, folder):
    model = empty_model(*opened(folder, name))
    vision, llm = model.backbone.layer_stacks(tokens=100, pixels=64 * 64)
    assert (vision.part, vision.layers, vision.width, vision.inner) == ("vision", 4, 256, 512)
    assert (vision.tokens, vision.gated) == (16, False)
    assert (llm.part, llm.layers, llm.width, llm.inner) == ("llm", 3, 512, 1024)
    assert (llm.tokens, llm.gated) == (100, True)
    assert llm.keys == 2 * head_width  # two heads of keys for four of queries


def test_a_small_model_with_another_connector_gives_as_many_tokens(folder):
    wanted, plugins = opened(folder, "llava_onevision")
    queries = {"queries": 5, "extra_queries": 2}
    connector = {"plugin": "qformer", "options": queries}
    entry = type(wanted.backbone)(**wanted.backbone.model_dump() | {"connector": connector})
    wanted = wanted.model_copy(update={"backbone": entry})
    small = build_model(wanted, VariantPlugins(plugins, "small"))
    assert small.backbone.connector.options.queries == 5
    assert sum(p.numel() for p in small.backbone.connector.parameters()) < 300_000
