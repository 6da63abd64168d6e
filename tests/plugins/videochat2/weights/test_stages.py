"""Rules for VideoChat2's own files, which hold no LLM."""

import json

import pytest

from tests.plugins.videochat2.released_bridge import SIZES, tiny_folder
from tests.plugins.videochat2.weights.stage_files import llm_tensors, stage, write_llm
from tpokit import CheckpointError, TokenTable, UsageError
from tpokit.interfaces import OF_LLM, Place
from tpokit_videochat2.config import read_config
from tpokit_videochat2.tokenizer import load_tokenizer
from tpokit_videochat2.weights.stages import VideoChat2Weights

NO_TOKENS = TokenTable(50, {}, {})


def shapes_of(number=3, family="mistral", llm=True):
    own = {name: tuple(tensor.shape) for name, tensor in stage(number, family).items()}
    base = {OF_LLM + name: tuple(tensor.shape) for name, tensor in llm_tensors().items()}
    return {**own, **(base if llm else {})}


@pytest.mark.parametrize("family", ["mistral", "llama", "phi"])
@pytest.mark.parametrize("number", [2, 3])
def test_every_tensor_of_files_and_llm_is_known(family, number):
    shapes = shapes_of(number, family)
    rules = VideoChat2Weights.from_published(shapes)
    tensors = {tensor.name: tensor for tensor in rules.tensors(NO_TOKENS)}
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes
    nowhere = [name for name, tensor in tensors.items() if not tensor.places]
    assert nowhere == ["qformer.bert.embeddings.position_ids"]
    assert (rules.lora() is not None) == (number == 3)


def test_projection_llm_and_adapters_find_their_places():
    rules = VideoChat2Weights.from_published(shapes_of(family="llama"))
    places = {tensor.name: tensor.places for tensor in rules.tensors(NO_TOKENS)}
    inside = "model.layers.1.mlp.up_proj"
    assert places["llama_proj.weight"] == (Place("backbone.connector.projection.weight"),)
    assert places[f"llm::{inside}.weight"] == (Place(f"backbone.llm.{inside}.weight"),)
    adapter = f"{inside}.lora_A.default.weight"
    assert places[f"llama_model.base_model.model.{adapter}"] == (Place(f"backbone.llm.{adapter}"),)
    text = "qformer.bert.embeddings.word_embeddings.weight"
    assert places[text] == (Place("backbone.connector.qformer.embeddings.word_embeddings.weight"),)


def test_adapters_have_the_rank_of_the_files():
    rules = VideoChat2Weights.from_published(shapes_of())
    assert rules.lora() == {"rank": 4, "alpha": 8.0, "dropout": 0.1}
    assert rules.options() == {"dtype": "auto", "lora_output": True}


def test_without_the_llm_it_is_said_how_to_give_it():
    with pytest.raises(
        CheckpointError, match=r"not the LLM: give the folder .* llama .*--llm FOLD"
    ):
        VideoChat2Weights.from_published(shapes_of(family="llama", llm=False))


def test_files_of_the_tpo_release_are_none_of_these():
    assert VideoChat2Weights.from_published({"project_up.weight": (8, 8)}) is None


def test_a_model_is_not_published_so():
    with pytest.raises(UsageError, match=r"holds no LLM, .* videochat_tpo holds all of it"):
        VideoChat2Weights.from_model(None)


# ---- configuration and tokenizer ----


@pytest.fixture
def folders(tmp_path):
    """Of the published files, of the LLM, and of the backbone to be."""
    source, llm, backbone = (tmp_path / name for name in ("source", "llm", "backbone"))
    for folder in (source, llm, backbone):
        folder.mkdir()
    write_llm(llm)
    return source, llm, backbone


def test_the_llm_brings_its_configuration_and_tokenizer(folders):
    source, llm, backbone = folders
    usual_heads = {
        "vision_encoder.encoder.patch_embed.proj.weight": (64, 3, 1, 32, 32),
        "query_tokens": (1, 5, 128),
    }
    rules = VideoChat2Weights.from_published({**shapes_of(), **usual_heads})
    rules.prepare(source, backbone, llm)
    config = read_config(backbone)
    assert config.llm == json.loads((llm / "config.json").read_text())
    assert config.connector.options["vocabulary"] == SIZES["qv"] + 1
    assert config.connector.options["positions"] == 24
    assert (config.vision.heads, config.connector.options["heads"]) == (1, 2)
    assert len(load_tokenizer(backbone)) == 50


def test_a_configuration_beside_the_files_counts(folders):
    source, llm, backbone = folders
    tiny_folder(source)
    (source / "tokenizer.json").unlink()
    VideoChat2Weights.from_published(shapes_of()).prepare(source, backbone, llm)
    assert read_config(backbone) == read_config(source)


def test_a_tokenizer_of_instructions_is_taken_along(folders):
    source, llm, backbone = folders
    tiny_folder(source)
    tiny_folder(source / "instruction_tokenizer")
    VideoChat2Weights.from_published(shapes_of()).prepare(source, backbone, llm)
    assert len(load_tokenizer(backbone / "instruction_tokenizer")) == 50


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "cannot be read"), ("[]", "is no configuration of an LLM")],
)
def test_a_configuration_of_the_llm_that_is_missing_or_broken_is_named(folders, content, message):
    source, llm, backbone = folders
    (llm / "config.json").unlink()
    if content is not None:
        (llm / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"llm/config\.json.* {message}"):
        VideoChat2Weights.from_published(shapes_of()).prepare(source, backbone, llm)


def test_a_tokenizer_with_more_words_than_the_llm_is_refused(folders):
    source, llm, backbone = folders
    tiny_folder(source)
    write_llm(llm, words=60)
    with pytest.raises(CheckpointError, match=r"has 60 words, but the word table .* has 50"):
        VideoChat2Weights.from_published(shapes_of()).prepare(source, backbone, llm)
