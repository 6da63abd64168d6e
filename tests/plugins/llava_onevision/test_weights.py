"""LLaVA-OneVision as the hub has it becomes a model of ours, and goes back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration

from tests.plugins.llava_onevision.tiny_onevision import build, tiny_config, write_tiny
from tpokit import CheckpointError, ConnectorChoice, TaskTokens, TokenTable, UsageError, load_model
from tpokit.interfaces import Connector
from tpokit.lora import add_lora
from tpokit.weights.exporting import ExportOptions, export_weights
from tpokit.weights.importing import check_weights, import_weights
from tpokit_llava_onevision.options import LlavaOnevisionOptions
from tpokit_llava_onevision.weights import LlavaOnevisionWeights, name_in_class

NO_TOKENS = TokenTable(200, {}, {})
NEWER = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower.vision_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("image_newline", "model.image_newline"),
)


class OneToken(Connector):
    """Stands in for any other connector."""

    def __init__(self, options, host):
        super().__init__(options, host)
        self.layer = nn.Linear(host.vision, host.hidden)

    @classmethod
    def tokens(cls, options, host, frames):
        return frames

    def forward(self, features, frames, instruction=None):
        return self.layer(features.mean(1))


def respelled(tensors):
    """Older names as newer ones."""
    found = {}
    for name, tensor in tensors.items():
        before, after = next(pair for pair in NEWER if name.startswith(pair[0]))
        found[after + name.removeprefix(before)] = tensor
    return found


def expected(folder):
    """What transformers reads from a folder."""
    return LlavaOnevisionForConditionalGeneration.from_pretrained(folder).state_dict()


# ---- names ----


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("language_model.model.layers.0.norm.bias", "model.language_model.layers.0.norm.bias"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("vision_tower.vision_model.post_layernorm.bias", "model.vision_tower.post_layernorm.bias"),
        ("model.vision_tower.post_layernorm.bias", "model.vision_tower.post_layernorm.bias"),
        ("multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("image_newline", "model.image_newline"),
        ("image_newline.weight", None),
        ("vision_resampler.query", None),
    ],
)  # fmt: skip
def test_names_of_both_spellings_find_their_places(published, ours):
    assert name_in_class(published) == ours


def test_files_of_other_models_are_none_of_these():
    shapes = {"multi_modal_projector.linear_1.weight": (8, 8)}  # LLaVA 1.5 has no newline vector
    assert LlavaOnevisionWeights.from_published(shapes) is None


# ---- there and back ----


@pytest.mark.parametrize("spelling", ["older", "newer"])
def test_a_hub_folder_becomes_a_model_with_its_weights(tmp_path, spelling):
    source = write_tiny(tmp_path / "hub")
    wanted = expected(source)
    if spelling == "newer":
        file = source / "model.safetensors"
        save_file(respelled(load_file(file)), file, metadata={"format": "pt"})
    report = import_weights(source, tmp_path / "out")
    assert report.format == "llava_onevision"
    assert {row.state for row in report.tensors} == {"placed"}
    model = load_model(tmp_path / "out")
    found = model.backbone.model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert dict(model.heads.items()) == {}


def test_exported_it_is_what_transformers_reads_and_comes_back_the_same(tmp_path):
    source = write_tiny(tmp_path / "hub")
    import_weights(source, tmp_path / "out")
    export_weights(tmp_path / "out", tmp_path / "away", ExportOptions("llava_onevision"))
    names = set(load_file(tmp_path / "away" / "model.safetensors"))
    assert "language_model.model.embed_tokens.weight" in names
    assert "vision_tower.vision_model.post_layernorm.weight" in names
    one, other = expected(source), expected(tmp_path / "away")
    assert all(torch.equal(one[name], other[name]) for name in one)
    import_weights(tmp_path / "away", tmp_path / "back")
    one, other = (load_model(tmp_path / name).state_dict() for name in ("out", "back"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_head_that_is_tied_to_the_word_table_is_in_no_file(tmp_path):
    source = write_tiny(tmp_path / "hub", weights=False)
    config = tiny_config()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(source)
    assert "language_model.lm_head.weight" not in load_file(source / "model.safetensors")
    import_weights(source, tmp_path / "out")
    model = load_model(tmp_path / "out").backbone.model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    export_weights(tmp_path / "out", tmp_path / "away", ExportOptions("llava_onevision"))
    assert "language_model.lm_head.weight" not in load_file(tmp_path / "away" / "model.safetensors")
    one, other = expected(source), expected(tmp_path / "away")
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---- what does not fit ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_resampler.query": torch.zeros(3)}, r"unexpected: vision_resampler\.query"),
        ({"language_model.model.norm.weight": None}, r"model\.language_model\.norm\.weight"),
    ],
)
def test_anything_unknown_or_missing_is_an_error(tmp_path, change, message):
    source = write_tiny(tmp_path / "hub")
    file = source / "model.safetensors"
    tensors = {**load_file(file), **change}
    save_file({name: t for name, t in tensors.items() if t is not None}, file)
    with pytest.raises(CheckpointError, match=message):
        check_weights(source)


def test_a_folder_without_configuration_is_refused(tmp_path):
    source = write_tiny(tmp_path / "hub")
    (source / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        check_weights(source)


def test_files_beside_the_weights_are_copied_but_no_index(tmp_path):
    source, backbone = write_tiny(tmp_path / "hub"), tmp_path / "backbone"
    backbone.mkdir()
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    shapes = {name: tuple(t.shape) for name, t in load_file(source / "model.safetensors").items()}
    LlavaOnevisionWeights.from_published(shapes).prepare(source, backbone)
    assert {path.name for path in backbone.iterdir()} == {
        path.name for path in source.iterdir()
    } - {
        "model.safetensors",
        "model.safetensors.index.json",
    }


def test_adapters_are_refused(tmp_path):
    backbone = build(write_tiny(tmp_path / "hub"))
    add_lora(backbone, backbone.lora_targets(), rank=2, alpha=4.0, dropout=0.0, seed=0)
    with pytest.raises(UsageError, match="holds no adapters; merge them first"):
        LlavaOnevisionWeights.from_model(backbone)


def test_another_connector_is_refused(tmp_path):
    folder = write_tiny(tmp_path / "hub")
    plain = build(folder)
    choice = ConnectorChoice(OneToken, OneToken.Options())
    backbone = type(plain).build(LlavaOnevisionOptions(model=str(folder)), tmp_path, choice)
    with pytest.raises(UsageError, match=r"another, a OneToken \(backbone\.connector\)"):
        LlavaOnevisionWeights.from_model(backbone)


def test_task_tokens_are_refused(tmp_path):
    backbone = build(write_tiny(tmp_path / "hub"))
    tasks = {"region": TaskTokens("<box_begin>", ("<boxes>",))}
    table = TokenTable.build(backbone.rows, tasks, backbone.processor.tokenizer)
    rules = LlavaOnevisionWeights.from_model(backbone)
    assert len(list(rules.tensors(NO_TOKENS))) == len(list(backbone.model.parameters()))
    with pytest.raises(UsageError, match="holds no task tokens; this model has heads of region"):
        list(rules.tensors(table))
