"""A model of ours on its way to published names: what goes where, and what cannot."""

import json

import pytest
import torch

from tests.plugins.videochat2.released_bridge import SIZES, WEIGHTS, released_model, tiny_folder
from tests.plugins.videochat2.weights.rules import table
from tpokit import ConnectorChoice, UsageError
from tpokit.lora import add_lora, merge_lora
from tpokit_videochat2.backbone import VideoChat2Backbone
from tpokit_videochat2.config import read_config
from tpokit_videochat2.connectors.mlp import MlpConnector
from tpokit_videochat2.connectors.options import MlpOptions, QFormerOptions
from tpokit_videochat2.connectors.qformer import QFormerConnector
from tpokit_videochat2.options import VideoChat2Options
from tpokit_videochat2.weights.released import VideoChatTpoWeights

BLOCKS = r"llm\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
QFORMER = {
    **{"queries": SIZES["nq"], "extra_queries": SIZES["ne"], "layers": SIZES["ql"]},
    **{"width": SIZES["qh"], "heads": SIZES["qheads"], "intermediate": SIZES["qi"]},
}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return released_model(tmp_path_factory.mktemp("released"))


def backbone_of(folder, connector=None, llm=None):
    """A tiny one of random weights."""
    made = tiny_folder(folder / "tiny")
    if llm is not None:
        described = json.loads((made / "videochat2.json").read_text())
        described["llm"] |= llm
        (made / "videochat2.json").write_text(json.dumps(described))
    options = VideoChat2Options(model=str(made), weights="random")
    return VideoChat2Backbone.build(options, folder, connector)


def published(backbone, tokens):
    return {t.name: t for t in VideoChatTpoWeights.from_model(backbone).tensors(tokens)}


def is_of_head(name):
    return name.startswith(("loc_", "track_embed", "sam."))


# ---- what goes where ----


def test_a_model_is_published_under_the_names_it_came_by(released):
    found = published(released.backbone, released.tokens)
    needed = {name for name, tensor in found.items() if not tensor.optional}
    came = {name for name in WEIGHTS if not is_of_head(name)}
    assert needed <= came
    text_side = {name for name in came - needed if name.startswith("qformer.")}
    assert came - needed == text_side, "only what no instruction needs was left behind"
    assert all(found[name].shape == WEIGHTS[name].shape for name in needed)


def test_every_parameter_of_the_model_has_a_place(released):
    found = published(released.backbone, released.tokens)
    places = {place.ours for tensor in found.values() for place in tensor.places}
    names = {name.replace(".base_layer.", ".") for name, _ in released.named_parameters()}
    assert places == {name for name in names if not name.startswith("heads.")}


def test_without_adapters_their_names_are_left_out(tmp_path):
    backbone = backbone_of(tmp_path)
    found = published(backbone, table(tmp_path / "tokens"))
    assert not [name for name in found if ".lora_" in name]
    assert "lm.base_model.model.lm_head.base_layer.weight" in found


def test_adapters_on_the_blocks_alone_can_be_published(tmp_path):
    backbone = backbone_of(tmp_path)
    add_lora(backbone, BLOCKS, 4, 8.0, 0.0, seed=0)
    rules = VideoChatTpoWeights.from_model(backbone)
    assert rules.lora() == {"rank": 4, "alpha": 8.0, "dropout": 0.1}
    assert rules.options()["lora_output"] is False
    assert rules.added(table(tmp_path / "tokens")) == ()


def test_configuration_and_tokenizer_come_back_as_they_went(tmp_path):
    backbone = backbone_of(tmp_path)
    rules = VideoChatTpoWeights.from_model(backbone)
    away, back = tmp_path / "away", tmp_path / "back"
    for folder in (away, back):
        folder.mkdir()
    rules.write_files(away)
    rules.prepare(away, back)
    for name in ("videochat2.json", "tokenizer.json"):
        assert (back / name).read_bytes() == (away / name).read_bytes()
    assert read_config(back) == read_config(tmp_path / "tiny")


def test_a_qformer_that_a_recipe_put_there_is_the_one_that_is_described(tmp_path):
    choice = ConnectorChoice(QFormerConnector, QFormerOptions(**{**QFORMER, "queries": 7}))
    rules = VideoChatTpoWeights.from_model(backbone_of(tmp_path, choice))
    rules.write_files(tmp_path)
    assert read_config(tmp_path).connector.options["queries"] == 7
    found = {tensor.name: tensor for tensor in rules.tensors(table(tmp_path / "tokens"))}
    assert found["query_tokens"].shape == (1, 7, SIZES["qh"])


# ---- what cannot ----


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (ConnectorChoice(MlpConnector, MlpOptions()), "connector qformer, .*MlpConnector"),
        (
            ConnectorChoice(QFormerConnector, QFormerOptions(**QFORMER, vocabulary=30)),
            "a connector without instructions; this one has vocabulary: 30",
        ),
        (
            ConnectorChoice(QFormerConnector, QFormerOptions(**QFORMER, vision_layers=(-2,))),
            r"sees the last layer .* vision_layers: \[-2\]",
        ),
    ],
)
def test_another_connector_is_refused(tmp_path, choice, message):
    with pytest.raises(UsageError, match=f"^the format videochat_tpo holds .*{message}"):
        VideoChatTpoWeights.from_model(backbone_of(tmp_path, choice))


@pytest.mark.parametrize(
    ("llm", "message"),
    [
        ({"tie_word_embeddings": True}, r"MistralForCausalLM lacks lm_head\.weight"),
        (
            {"model_type": "qwen2"},
            r"Qwen2ForCausalLM has model\.layers\.0\.self_attn\.k_proj\.bias",
        ),
    ],
)
def test_an_llm_of_another_form_is_refused(tmp_path, llm, message):
    with pytest.raises(UsageError, match=f"LLM in the form of Mistral, .*{message}"):
        VideoChatTpoWeights.from_model(backbone_of(tmp_path, llm=llm))


@pytest.mark.parametrize(
    ("targets", "alpha", "message"),
    [
        (BLOCKS, 4.0, r"alpha = 2 x rank; here alpha is 1 x rank: merge them first"),
        (
            r"llm\..*\.q_proj",
            8.0,
            r"adapters on every linear .* differs in model\.layers\.0\.mlp\.down_proj",
        ),
    ],
)
def test_other_adapters_are_refused(tmp_path, targets, alpha, message):
    backbone = backbone_of(tmp_path)
    add_lora(backbone, targets, 4, alpha, 0.0, seed=0)
    with pytest.raises(UsageError, match=message):
        VideoChatTpoWeights.from_model(backbone)


def test_adapters_that_were_merged_are_in_the_way_no_longer(tmp_path):
    backbone = backbone_of(tmp_path)
    add_lora(backbone, r"llm\..*\.q_proj", 4, 4.0, 0.0, seed=0)
    with torch.no_grad():
        merge_lora(backbone)
    assert VideoChatTpoWeights.from_model(backbone).lora() is None
