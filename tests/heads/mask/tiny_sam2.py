"""The very small SAM 2 of tests/golden/sam2, from constructor values and stored weights."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tpokit_mask.sam2_port import FeatureMaps, Sam2, Sam2Sizes, build, resize_frames

GOLDEN = Path(__file__).parents[2] / "golden" / "sam2"


@cache
def facts() -> dict[str, Any]:
    """Sizes, cases and tolerances."""
    return json.loads((GOLDEN / "tiny.json").read_text())


@cache
def stored() -> dict[str, Tensor]:
    """All stored tensors but the weights, by name."""
    return load_file(GOLDEN / "tiny_images.safetensors") | load_file(
        GOLDEN / "tiny_videos.safetensors"
    )


@cache
def tiny_weights() -> dict[str, Tensor]:
    """The stored weights, float16."""
    return load_file(GOLDEN / "tiny_weights_1.safetensors") | load_file(
        GOLDEN / "tiny_weights_2.safetensors"
    )


def tiny_sizes(**changes: Any) -> Sam2Sizes:
    """The sizes of the stored model."""
    config = facts()["config"]
    sizes = {
        "image_size": config["image_size"],
        "width": config["d_model"],
        "memory_width": config["mem_dim"],
        "trunk_width": config["embed_dim"],
        "trunk_heads": config["num_heads"],
        "stages": tuple(config["stages"]),
        "global_blocks": tuple(config["global_att_blocks"]),
        "windows": tuple(config["window_spec"]),
        "background": config["bkg"][0],
        "memory_layers": config["mem_layers"],
        "feed_forward": config["ff"],
        "fuser_layers": config["fuser_layers"],
        "dropout": config["dropout"],
        "memories": config["num_maskmem"],
    }
    return Sam2Sizes(**{**sizes, **changes})


def tiny_sam2(postprocessing: bool = False, **changes: Any) -> Sam2:
    """The stored model, in eval mode, all of it trainable."""
    with torch.random.fork_rng():
        sam2 = build(tiny_sizes(**changes), postprocessing=postprocessing)
    sam2.model.load_state_dict(tiny_weights())
    return sam2.eval()


def tiny_clip() -> Tensor:
    """The four frames, uint8 ``[4, 3, 128, 128]``."""
    return resize_frames(stored()["frames_u8"], 128)


def tiny_maps(sam2: Sam2) -> FeatureMaps:
    """Features of the four frames."""
    return sam2.encode(tiny_clip())


def prompts(name: str) -> Tensor:
    """Prompt tokens of the three objects, ``[3, n, 48]``, as a case names them."""
    tokens = stored()[name.removesuffix("[:, :1]")].clone()
    return tokens[:, :1] if name.endswith("[:, :1]") else tokens


def targets() -> Tensor:
    """True masks of the clip, bool ``[4, 3, 128, 128]``: frames, objects."""
    return unpacked(stored()["targets_bits"], 128, 128)


def unpacked(bits: Tensor, height: int, width: int) -> Tensor:
    """Masks from bits, the highest of a byte first: ``[.., bytes]`` to bool ``[.., h, w]``."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8)
    flat = (bits[..., None] >> shifts & 1).flatten(-2)[..., : height * width]
    return flat.bool().reshape(*bits.shape[:-1], height, width)


def close(ours: Tensor, name: str) -> None:
    """Equal to a stored output, at the stated tolerance."""
    torch.testing.assert_close(ours, stored()[name], atol=1e-3, rtol=1e-3, msg=lambda m: name + m)
