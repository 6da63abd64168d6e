"""Finding and loading models: each thing that can be wrong is one clear error."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.plugins.llava_onevision.tiny_onevision import build, write_tiny
from tpokit import CheckpointError, UsageError, pretrained
from tpokit_llava_onevision.backbone import LlavaOnevisionBackbone
from tpokit_llava_onevision.options import LlavaOnevisionOptions


@pytest.fixture
def folder(tmp_path):
    return write_tiny(tmp_path / "tiny")


def load(recipe_folder, **options):
    return LlavaOnevisionBackbone.build(LlavaOnevisionOptions(**options), recipe_folder)


def rewrite(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def rewrite_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_folder_is_relative_to_the_recipe(folder):
    backbone = load(folder.parent, model="tiny")
    assert backbone.identity()["name"] == "tiny"


def test_a_folder_inside_a_package(folder, monkeypatch):
    (folder.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder.parent.parent)
    package = folder.parent.name
    try:
        backbone = load(folder, model=f"package://{package}/tiny")
        assert backbone.width == 48
        with pytest.raises(UsageError, match=rf"package '{package}' has no folder 'small'"):
            load(folder, model=f"package://{package}/small")
    finally:
        sys.modules.pop(package, None)
    with pytest.raises(UsageError, match="package 'not_here' is not installed"):
        load(folder, model="package://not_here/tiny")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match=rf"'\./base': there is no folder {tmp_path}/base"):
        load(tmp_path, model="./base")


def test_a_hub_name_without_network_is_one_error(tmp_path):
    with pytest.raises(
        UsageError, match=r"'someone/something': there is no folder .*, and the hub gives no"
    ) as caught:
        load(tmp_path, model="someone/something", revision="abc")
    assert "at revision 'abc'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_revision_of_a_folder_has_no_meaning(folder):
    with pytest.raises(UsageError, match="revision 'main' means nothing"):
        load(folder.parent, model="tiny", revision="main")


def test_a_folder_without_a_model_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load(tmp_path, model="empty")
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load(tmp_path, model="empty")


def test_another_class_of_models_is_an_error(folder):
    rewrite(folder / "config.json", lambda config: config.update(model_type="qwen2_vl"))
    with pytest.raises(CheckpointError, match=r"of the class 'qwen2_vl'.*'llava_onevision' only"):
        build(folder)


def test_a_folder_without_weights_is_an_error_unless_they_are_random(tmp_path):
    folder = write_tiny(tmp_path / "tiny", weights=False)
    with pytest.raises(CheckpointError, match=r"no weights .*or set weights: random"):
        build(folder)
    assert build(folder, weights="random").rows == 200


def test_weights_of_another_width_name_the_tensor_and_both_shapes(folder):
    rewrite(folder / "config.json", lambda config: config["text_config"].update(hidden_size=64))
    with pytest.raises(
        CheckpointError,
        match=r"another width: .* is \[.*48.*\] in the file, .* makes it \[.*64.*\]",
    ):
        build(folder)


def test_missing_and_unknown_weights_are_named(folder):
    name = next(iter(load_file(folder / "model.safetensors")))
    rewrite_weights(folder, lambda tensors: tensors.update(stranger=torch.zeros(1)))
    with pytest.raises(CheckpointError, match="hold the unknown stranger"):
        build(folder)
    rewrite_weights(folder, lambda tensors: (tensors.pop("stranger"), tensors.pop(name)))
    with pytest.raises(CheckpointError, match=r"lack .* \(1 in all\)"):
        build(folder)


def test_a_broken_file_of_weights_is_an_error(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        build(folder)


def test_a_missing_tokenizer_is_an_error(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="tokenizer or processor files are missing or broken"):
        build(folder)


def test_a_missing_template_is_an_error(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="has no chat_template"):
        build(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_image_tokens", 25, "num_image_tokens is 25 in the processor, but 16 in the model"),
        ("vision_feature_select_strategy", "default", "is default in the processor, but full"),
        (
            "vision_aspect_ratio",
            "anyres_max_4",
            "is anyres_max_4 in the processor, but anyres_max_9",
        ),
    ],
)
def test_a_processor_that_does_not_fit_the_model_is_an_error(folder, name, value, message):
    rewrite(folder / "processor_config.json", lambda config: config.update({name: value}))
    with pytest.raises(CheckpointError, match=message):
        build(folder)


def test_settings_that_older_checkpoints_lack_come_from_the_model(folder):
    def strip(config):
        config.pop("num_image_tokens", None)
        config.pop("vision_feature_select_strategy", None)

    rewrite(folder / "processor_config.json", strip)
    assert "num_image_tokens 16" in build(folder).processor.settings()


def test_a_placeholder_behind_the_table_is_an_error(folder):
    rewrite(folder / "config.json", lambda config: config.update(video_token_index=200))
    with pytest.raises(CheckpointError, match=r"the video token has id 200, .* ends at 199"):
        build(folder)


def test_numbers_are_kept_in_the_format_that_was_asked_for(folder):
    assert build(folder).model.dtype == torch.float32
    assert build(folder, dtype="bfloat16").model.dtype == torch.bfloat16
    assert build(folder, dtype="auto").model.dtype == torch.float32
    assert build(folder, dtype="float16", weights="random").model.dtype == torch.float16


def test_attention_that_is_not_installed_is_an_error(folder):
    assert build(folder, attention="eager").model.config._attn_implementation == "eager"
    with pytest.raises(UsageError, match="attention 'flash_attention_2' cannot be used here"):
        build(folder, attention="flash_attention_2")


def test_random_weights_follow_the_callers_seed_and_so_does_their_name(folder):
    made = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        made.append(build(folder, weights="random"))
    first, same, other = (backbone.identity()["hash"] for backbone in made)
    assert first.startswith("random:")
    assert first == same != other
    for one, two in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_hash_names_the_weights(folder, monkeypatch):
    first = build(folder).identity()["hash"]
    assert build(folder).identity()["hash"] == first
    monkeypatch.setattr(pretrained, "_HASHED_WHOLE", 1000)
    monkeypatch.setattr(pretrained, "_SAMPLE", 2000)
    sampled = build(folder).identity()["hash"]
    assert sampled != first

    def change_last(tensors):
        tensors[max(tensors)] += 1

    rewrite_weights(folder, change_last)
    assert build(folder).identity()["hash"] != sampled
    monkeypatch.undo()
    assert build(folder).identity()["hash"] != first
