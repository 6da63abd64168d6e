"""Building SAM 2 and loading its weights: every size, nothing left behind, clear refusals."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase
from omegaconf import OmegaConf
from safetensors.torch import save_file

import tpokit
from tests.heads.mask.tiny_sam2 import facts, tiny_sam2, tiny_sizes, tiny_weights
from tpokit_mask.sam2.package import FOLDER
from tpokit_mask.sam2_port import RELEASED, Sam2Sizes, Tracking, build, track

PATCHES = "image_encoder.trunk.patch_embed.proj.weight"


def test_the_released_sizes_are_those_of_the_packages_configuration_files():
    assert set(RELEASED) == {
        f"{family}_hiera_{size}"
        for family in ("sam2", "sam2.1")
        for size in ("tiny", "small", "base_plus", "large")
    }
    for name, released in RELEASED.items():
        model = OmegaConf.load(FOLDER / released.config).model
        trunk = model.image_encoder.trunk
        # base_plus has the stages that the package takes if none are given
        blocks = sum(trunk.get("stages", (2, 3, 16, 3)))
        assert (trunk.embed_dim, blocks) == (released.trunk_width, released.trunk_blocks), name
        assert model.get("no_obj_embed_spatial", False) == (released.version == "2.1"), name
        # what tracking takes for granted in all of them
        assert model.pred_obj_scores and model.fixed_no_obj_ptr and model.use_obj_ptrs_in_encoder
        assert model.multimask_output_for_tracking and not model.get("soft_no_obj_ptr", False)
        assert model.directly_add_no_mem_embed and model.use_high_res_features_in_sam


@pytest.mark.parametrize(
    ("name", "parameters"), [("sam2.1_hiera_tiny", 38_962_498), ("sam2_hiera_tiny", 38_945_986)]
)
def test_a_released_size_is_built_for_images_of_any_size(name, parameters):
    with torch.random.fork_rng():
        sam2 = build(name, image_size=64).eval().set_trained("nothing")
    assert sum(value.numel() for value in sam2.parameters()) == parameters
    assert (sam2.image_size, sam2.width) == (64, 256)
    tokens = torch.zeros(2, 3, 256, requires_grad=True)
    maps = sam2.encode(torch.zeros(3, 3, 64, 64, dtype=torch.uint8))
    frames = track(sam2, maps, tokens, torch.arange(3).expand(2, 3), Tracking(gated=False))
    assert [masks.logits.shape for masks in frames] == [(2, m, 16, 16) for m in (1, 3, 3)]
    frames[2].logits.sum().backward()
    assert tokens.grad.isfinite().all()


def test_the_stored_small_model_is_built_from_its_sizes():
    assert Sam2Sizes() == tiny_sizes()  # which are the defaults
    assert len(tiny_sam2().model.state_dict()) == len(tiny_weights())
    stated = facts()["parameters"]
    assert sum(value.numel() for value in tiny_sam2().state_dict().values()) == stated


def test_hydra_is_left_as_it_was(tmp_path):
    assert not GlobalHydra.instance().is_initialized()  # though sam2 was imported
    build(Sam2Sizes())
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        own = GlobalHydra.instance().hydra
        build(Sam2Sizes())
        assert GlobalHydra.instance().hydra is own
        assert str(VersionBase.instance().getbase()) == "1.3"


def test_the_sizes_can_be_had_without_torch():
    code = "import sys, tpokit_mask.sam2.sizes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sizes_that_cannot_be_are_refused_with_all_that_is_wrong():
    with pytest.raises(tpokit.UsageError) as refused:
        Sam2Sizes(image_size=100, width=50, memory_width=20, global_blocks=(2, 9))
    assert str(refused.value) == (
        "sizes of SAM 2: width must be a multiple of 16, not 50; memory_width must be a multiple "
        "of 4 that divides width 50, not 20; global_blocks (2, 9) must lie in 0..4 and not open a "
        "stage (1, 2, 4); image_size must be a multiple of 32, a quarter of it one of the first "
        "window 8, not 100"
    )
    with pytest.raises(
        tpokit.UsageError, match="memories must be at least 1, not 0; stages must be"
    ):
        Sam2Sizes(stages=(1, 1, 2), windows=(8, 4, 4), memories=0)
    with pytest.raises(tpokit.UsageError, match=r"image_size must be a multiple of 32.*not 80"):
        build("sam2.1_hiera_tiny", image_size=80)


def test_an_unknown_size_is_refused_with_a_near_one():
    with pytest.raises(tpokit.UsageError, match=r"'sam2.1_tiny'; did you mean 'sam2.1_hiera_tiny'"):
        build("sam2.1_tiny")


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_are_loaded_and_no_random_number_is_drawn(tmp_path, ending):
    path = tmp_path / f"weights.{ending}"
    if ending == "pt":
        torch.save({"model": tiny_weights()}, path)
    else:
        save_file(tiny_weights(), path)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    sam2 = build(tiny_sizes(), checkpoint=path, image_size=256)
    assert torch.equal(torch.rand(1), expected)
    assert sam2.image_size == 256
    for name, value in sam2.model.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, tiny_weights()[name].float())


def refusal(path: Path, **changes) -> str:
    with pytest.raises(tpokit.CheckpointError) as refused:
        build(tiny_sizes(**changes), checkpoint=path)
    return str(refused.value).replace(str(path), "FILE")


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert refusal(tmp_path / "sam2.pt") == (
        "no file FILE; weights of SAM 2 are a .safetensors, or one as published, such as "
        "sam2.1_hiera_tiny.pt"
    )


def test_weights_of_another_size_are_recognised(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(tiny_weights(), path)
    message = refusal(path, width=64)
    assert "FILE looks like a SAM 2.1 of its own size (5 blocks from 8 channels)" in message
    assert "does not fit a model of Sam2Sizes(image_size=128, width=64" in message
    assert "has no_mem_embed as [1, 1, 48] instead of [1, 1, 64]" in message
    small = {
        f"image_encoder.trunk.blocks.{block}.norm1.bias": torch.zeros(96) for block in range(16)
    }
    small |= {PATCHES: torch.zeros(96, 3, 7, 7), "maskmem_tpos_enc": torch.zeros(7, 1, 1, 64)}
    save_file(small, path)
    assert refusal(path).startswith("FILE looks like sam2_hiera_small, which does not fit a model")
    save_file({**small, "no_obj_embed_spatial": torch.zeros(1, 64)}, path)
    assert refusal(path).startswith("FILE looks like sam2.1_hiera_small, which does not fit")


def test_weights_that_are_not_whole_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    lacking = {name: value for name, value in tiny_weights().items() if "conv_s" not in name}
    save_file({**lacking, "extra": torch.zeros(1)}, path)
    message = refusal(path)
    assert message.endswith(
        "it lacks sam_mask_decoder.conv_s0.weight, lacks sam_mask_decoder.conv_s0.bias and 3 more"
    )


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_broken_file_is_refused(tmp_path, name):
    path = tmp_path / name
    torch.save({"model": tiny_weights()}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for content in (b"", b"<html>not found</html>", whole[: len(whole) // 2], bytes(range(256))):
        path.write_bytes(content)
        assert refusal(path).startswith("FILE is broken or no file of weights: ")


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"state_dict": {}, "epoch": 3}, path)
    assert refusal(path) == (
        "FILE is no checkpoint of SAM 2: it must hold the weights under 'model', but is a dict "
        "with state_dict, epoch"
    )
    torch.save([1, 2], path)
    assert refusal(path).endswith("but is a list")
    torch.save({"model": {"head.weight": torch.zeros(2)}}, path)
    assert "holds no weights of SAM 2: it lacks image_encoder.trunk" in refusal(path)
    assert refusal(path).endswith("and begins with head.weight")


def test_nothing_of_a_file_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    assert refusal(tmp_path / "evil.pt").startswith("FILE is broken or no file of weights: ")
    assert not (tmp_path / "run").exists()
