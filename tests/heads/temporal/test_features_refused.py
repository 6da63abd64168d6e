"""Dual encoders and calls that cannot be used: one clear message each."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor

from tests.heads.temporal.tiny_encoders import (
    call,
    extractor,
    features,
    frames,
    saved_models,
    shared,
    video,
)
from tpokit import CheckpointError, DataError, Media, UsageError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return saved_models(tmp_path_factory.mktemp("models"), "clip", "xclip", "siglip2", "vit")


def test_an_empty_question_and_a_picture_are_refused(folders, tmp_path):
    reader = shared(folders["clip"])
    with pytest.raises(DataError, match=r"^moments/1: the question is empty; it must say what to"):
        reader.prepare(call(video(tmp_path), frames(4), "  "))
    picture = Media("image", tmp_path / "a.png")
    with pytest.raises(DataError, match="moments are found in a video, but its first medium is an"):
        reader.prepare(call(picture, frames(1)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere", "features.model '/nowhere': there is no folder /nowhere"),
        ("../nowhere/at/all", "there is no folder"),
        ("nobody/nothing", "there is no folder /nobody/nothing, and the hub gives no repository"),
    ],
)
def test_a_model_that_is_not_there_is_named(model, message):
    with pytest.raises(UsageError, match=message):
        extractor(model)


def test_a_folder_without_weights_or_with_a_revision_is_refused(folders, tmp_path):
    shutil.copy(folders["clip"] / "config.json", tmp_path)
    with pytest.raises(UsageError, match=r"must hold config.json and weights \(\*.safetensors or"):
        extractor(tmp_path)
    with pytest.raises(UsageError, match=r"is a local folder, so revision 'main' means nothing"):
        shared(folders["clip"], revision="main")


def test_a_model_with_one_side_only_is_refused_before_its_weights_are_read(folders, tmp_path):
    shutil.copytree(folders["vit"], tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(UsageError, match=r"is of the class 'vit', which does not encode both"):
        extractor(tmp_path / "vit")


def test_a_model_of_changing_resolution_is_refused(folders):
    with pytest.raises(UsageError, match=r"Siglip2ImageProcessor.* choose a model of fixed resol"):
        shared(folders["siglip2"])


def test_an_image_processor_that_keeps_the_shape_is_refused(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path / "clip")
    CLIPImageProcessor(size={"shortest_edge": 16}, do_center_crop=False).save_pretrained(
        tmp_path / "clip"
    )
    with pytest.raises(UsageError, match="does not resize and crop to one size"):
        extractor(tmp_path / "clip")


def test_weights_that_are_not_all_there_are_refused(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    weights = load_file(path)
    del weights["visual_projection.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack visual_projection.weight \(1 in all"):
        extractor(tmp_path / "clip")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be loaded from"):
        extractor(tmp_path / "clip")


def test_a_folder_without_image_processor_is_refused(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match="its image processor cannot be loaded from"):
        extractor(tmp_path / "clip")


def test_a_wrong_number_of_frames_for_an_encoder_of_videos_is_refused(folders):
    with pytest.raises(UsageError, match=r"frames_per_clip is 8, but .* was made for 4 frames"):
        shared(folders["xclip"], frames_per_clip=8)


def test_weights_in_the_older_format_are_read_too(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    seen = call(video(tmp_path), frames(4))
    found = features(extractor(tmp_path / "clip"), seen)
    assert torch.equal(found.clips, features(shared(folders["clip"]), seen).clips)
