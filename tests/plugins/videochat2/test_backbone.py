"""The VideoChat2 backbone: building, refusing, saving, and one call of tower and connector."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.plugins.videochat2.released_bridge import tiny_folder
from tpokit import CheckpointError, DataError, UsageError
from tpokit.batch import Batch
from tpokit.data.media import read_media
from tpokit.interfaces import ConnectorChoice
from tpokit.types import Media
from tpokit_videochat2.backbone import VideoChat2Backbone
from tpokit_videochat2.connectors.mlp import MlpConnector
from tpokit_videochat2.connectors.options import MlpOptions
from tpokit_videochat2.options import VideoChat2Options

CONNECTOR = ConnectorChoice(MlpConnector, MlpOptions())


def build(folder, choice=None, **options):
    torch.manual_seed(0)
    chosen = VideoChat2Options(**{"model": str(folder), "weights": "random", **options})
    return VideoChat2Backbone.build(chosen, folder, choice)


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path / "model")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model and what it was."""
    folder = tmp_path_factory.mktemp("saved")
    backbone = build(tiny_folder(folder / "model"))
    backbone.save(folder / "whole")
    return folder / "whole", backbone


def images(folder, count):
    """Views of images of different sizes."""
    views = []
    for index in range(count):
        path = folder / f"{index}.png"
        shape = (40 + index, 50, 3)
        colours = np.random.default_rng(index).integers(0, 255, shape, dtype=np.uint8)
        Image.fromarray(colours).save(path)
        views.append(read_media(Media("image", path), {"backbone": None})["backbone"])
    return views


def batch_of(backbone, views, texts):
    """Views as the media of one sample each; rows padded on the right."""
    processor = backbone.processor
    ids = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest = max(map(len, ids))
    nothing = torch.empty(0, dtype=torch.long)
    return Batch(
        ids=torch.tensor([row + [0] * (longest - len(row)) for row in ids]),
        mask=torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids]),
        labels=nothing,
        learnt=None,
        tokens=None,
        slots={},
        given={},
        targets={},
        contexts={},
        questions=None,
        media=processor.collate_media([[view] for view in views]),
        counts={},
        samples=tuple(f"s/{row}" for row in range(len(ids))),
    )


def test_a_saved_model_is_loaded_bit_by_bit_with_the_same_name_again(saved):
    folder, backbone = saved
    again, once_more = (build(folder, weights="pretrained") for _ in range(2))
    kept = dict(backbone.named_parameters())
    assert kept.keys() == dict(again.named_parameters()).keys()
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, kept[name]), name
    assert again.identity() == once_more.identity()
    assert not any(parameter.is_meta for parameter in again.parameters())


def test_a_loaded_model_computes_what_the_saved_one_did(saved, tmp_path):
    folder, backbone = saved
    again = build(folder, weights="pretrained").eval()
    views = images(tmp_path, 2)
    texts = ["w3 " + "<unk> " * 8 + "w4", "<unk> " * 8 + "w5 w6"]
    found = []
    for model in (backbone.eval(), again):
        batch = batch_of(model, views, texts)
        embeds = model.embed(batch, idle_vision=False)
        positions = torch.arange(embeds.shape[1]).expand(2, -1)
        found.append(model.logits(model.decode(embeds, batch.mask, positions)[0])[batch.mask])
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_weights_are_loaded_in_the_number_format_that_is_asked_for(saved):
    folder, _ = saved
    half = build(folder, weights="pretrained", dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert (
        half.vision.encode_frames(torch.zeros(1, 3, 224, 224, dtype=torch.bfloat16))
        .isfinite()
        .all()
    )


def test_padding_with_the_id_of_the_media_token_is_no_place_for_media(folder, tmp_path):
    backbone = build(folder)
    batch = batch_of(backbone, images(tmp_path, 1), ["<unk> " * 8 + "w3", "w4"])
    embeds = backbone.embed(batch, idle_vision=False)
    assert torch.equal(embeds[1], backbone.embed_ids(batch.ids)[1])
    assert not torch.equal(embeds[0, :8], backbone.embed_ids(batch.ids)[0, :8])


def test_another_number_of_placeholders_is_an_error_with_all_numbers(folder, tmp_path):
    backbone = build(folder)
    batch = batch_of(backbone, images(tmp_path, 1), ["<unk> " * 7])
    with pytest.raises(DataError, match=r"give 8 tokens, 8 were expected .* text has 7 .* s/0"):
        backbone.embed(batch, idle_vision=False)


def test_without_media_all_parts_take_part_only_if_they_must_keep_step(folder):
    backbone = build(folder)
    batch = batch_of(backbone, [], ["w3 w4"])
    still = backbone.embed(batch, idle_vision=False)
    assert torch.equal(still, backbone.embed(batch, idle_vision=True))
    backbone.embed(batch, idle_vision=True).sum().backward()
    for part in ("vision", "connector"):
        assert all(p.grad is not None for p in getattr(backbone, part).parameters())


def test_a_frozen_tower_keeps_no_graph_and_the_connector_learns(folder, tmp_path):
    backbone = build(folder)
    backbone.vision.requires_grad_(False)
    batch = batch_of(backbone, images(tmp_path, 1), ["<unk> " * 8])
    backbone.embed(batch, idle_vision=False).square().sum().backward()
    assert all(parameter.grad is None for parameter in backbone.vision.parameters())
    assert all(parameter.grad is not None for parameter in backbone.connector.parameters())


def test_adapters_go_on_the_layers_of_the_llm_and_as_released_on_its_output(folder):
    import re

    for output, expected in ((True, 2 * 7 + 1), (False, 2 * 7)):
        backbone = build(folder, lora_output=output)
        targets = re.compile(backbone.lora_targets())
        hit = [name for name, _ in backbone.named_modules() if targets.fullmatch(name)]
        assert len(hit) == expected
        assert all(name.startswith("llm.") for name in hit)


def test_features_of_single_frames_are_cells_of_a_grid(folder):
    backbone = build(folder)
    frames = torch.randn(3, 3, 224, 224)
    found = backbone.encode_frames(frames, grid=2)
    assert found.shape == (3, 4 * backbone.vision_width)
    alone = backbone.encode_frames(frames[:1], grid=2)
    torch.testing.assert_close(found[:1], alone)
    assert backbone.encode_frames(None, grid=1).shape == (1, backbone.vision_width)


def test_recomputing_activations_changes_no_gradient(folder, tmp_path):
    batch = batch_of(build(folder), images(tmp_path, 1), ["<unk> " * 8 + "w3"])
    gradients = []
    for recompute in (False, True):
        backbone = build(folder).train()
        if recompute:
            backbone.gradient_checkpointing_enable()
        for module in backbone.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        embeds = backbone.embed(batch, idle_vision=False)
        positions = torch.arange(embeds.shape[1])[None]
        backbone.decode(embeds, batch.mask, positions)[0].square().sum().backward()
        gradients.append(backbone.vision.patch_embed.weight.grad)
    torch.testing.assert_close(*gradients)


# ---- another connector ----


def test_another_connector_is_saved_beside_the_model_and_found_again(folder, tmp_path):
    backbone = build(folder, CONNECTOR)
    backbone.save(tmp_path / "whole")
    again = build(tmp_path / "whole", CONNECTOR, weights="pretrained")
    for found, kept in zip(again.parameters(), backbone.parameters(), strict=True):
        assert torch.equal(found, kept)
    with pytest.raises(CheckpointError, match=r"lack connector\..*a recipe must name it"):
        build(tmp_path / "whole", weights="pretrained")


def test_the_models_own_connector_under_its_own_name_keeps_its_weights(saved):
    from tpokit_videochat2.config import read_config
    from tpokit_videochat2.own_connector import own_connector

    folder, backbone = saved
    own = own_connector(read_config(folder).connector)
    again = build(folder, ConnectorChoice(own.factory, own.options), weights="pretrained")
    assert torch.equal(again.connector.queries, backbone.connector.queries)


# ---- what is refused ----


def test_a_folder_without_our_configuration_says_how_to_get_one(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(CheckpointError, match=r"no videochat2\.json; .*tpokit weights import"):
        build(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llm": {"model_type": "no such"}}, "llm: .*no such"),
        ({"llm": {"hidden_size": 8}}, "llm: must have a model_type"),
        (
            {"vision": {"hidden_size": 10, "heads": 4}},
            "hidden_size 10 is not a multiple of heads 4",
        ),
        ({"vision": {"image_size": 20}}, "image_size 20 is not a multiple of patch_size 16"),
        ({"connector": {"plugin": "qformer", "options": {"layrs": 2}}}, "connector.options.layrs"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_wrong_configuration_is_named(folder, change, message):
    path = folder / "videochat2.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        build(folder)


def changed(saved, tmp_path, change):
    """A copy of a saved model with other weights."""
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(saved[0], folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("connector.queries"), r"lack connector\.queries"),
        (lambda t: t.update(strange=torch.zeros(1)), "hold the unknown strange"),
        (lambda t: t.update({"vision.patch_embed.bias": torch.zeros(3)}), r"bias as \[3\] instead"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        build(changed(saved, tmp_path, change), weights="pretrained")


def test_a_file_that_was_cut_short_is_named(saved, tmp_path):
    folder = changed(saved, tmp_path, lambda tensors: None)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not whole"):
        build(folder, weights="pretrained")


def test_a_folder_without_weights_says_what_helps(folder):
    with pytest.raises(CheckpointError, match=r"has no weights .*set weights: random"):
        build(folder, weights="pretrained")


def test_frames_and_rate_exclude_each_other():
    with pytest.raises(ValueError, match="frames and rate cannot both be given"):
        VideoChat2Options(model="m", frames=4, rate=1.0)


def test_an_instruction_for_a_connector_that_reads_none_is_refused(folder):
    with pytest.raises(UsageError, match="the connector reads no instruction"):
        build(folder, instruction="system")
