"""Building SAM 2 of any size from the package's own configuration files.

Source of the settings: facebookresearch/sam2, sam2/configs and sam2/build_sam.py. There models are
built by way of hydra's global state, here from the files, which are read and changed directly.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tpokit.errors import UsageError
from tpokit_mask.sam2.checkpoints import load_weights
from tpokit_mask.sam2.package import FOLDER, untouched_hydra
from tpokit_mask.sam2.parts import Sam2
from tpokit_mask.sam2.sizes import RELEASED, Sam2Sizes, image_size_problems

_RELEASED_IMAGE_SIZE = 1024
_RELEASED_FIRST_WINDOW = 8
_STRIDE = 16  # pixels in a cell of the coarsest features, in all models
_POSTPROCESSING = {
    "sam_mask_decoder_extra_args": {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    },
    "binarize_mask_from_pts_for_mem_enc": True,
}


def build(
    size: str | Sam2Sizes,
    *,
    image_size: int | None = None,
    checkpoint: Path | None = None,
    postprocessing: bool = False,
) -> Sam2:
    """A SAM 2, in train mode, as torch builds modules, with all parameters trainable.

    Args:
        size: Name of a released one (`RELEASED`), or sizes.
        image_size: Side of images in pixels, if not that of ``size`` (released: 1024).
        checkpoint: File of weights; ``None``: random ones, drawn from the global generator.
        postprocessing: What sam2's own predictors do by default outside training: where the single
            mask is unsteady, the best of the three takes its place, and masks of prompted frames
            are remembered as yes or no. (Filling holes, their third, needs their CUDA extension.)

    Raises:
        UsageError: There is no such size, or ``image_size`` does not fit it.
        CheckpointError: See `load_weights`.
    """
    model = configuration(size, image_size=image_size, postprocessing=postprocessing)
    # random numbers that a checkpoint is about to replace must not move the global generator
    with untouched_hydra(), torch.random.fork_rng(devices=[]) if checkpoint else nullcontext():
        built = instantiate(model, _recursive_=True, _convert_="all")
    if checkpoint is not None:
        named = size if isinstance(size, str) else f"a model of {size}"
        load_weights(built, checkpoint, named)
    return Sam2(built)


def configuration(
    size: str | Sam2Sizes, *, image_size: int | None = None, postprocessing: bool = False
) -> DictConfig:
    """Settings of a SAM 2 in the package's own terms, ready to be instantiated.

    Args:
        size, image_size, postprocessing: As for `build`.

    Raises:
        UsageError: There is no such size, or ``image_size`` does not fit it.
    """
    if isinstance(size, Sam2Sizes):
        sizes = size if image_size is None else replace(size, image_size=image_size)
        released = "sam2.1_hiera_tiny" if sizes.version == "2.1" else "sam2_hiera_tiny"
        side, changes = sizes.image_size, _own_sizes(sizes)
    else:
        _check_released(size, image_size)
        released, side, changes = size, image_size or _RELEASED_IMAGE_SIZE, {}
    model = OmegaConf.load(FOLDER / RELEASED[released].config).model
    for part in (changes, _image_size(side), _POSTPROCESSING if postprocessing else {}):
        model = OmegaConf.merge(model, part)
    return model


def _check_released(name: str, image_size: int | None) -> None:
    if name not in RELEASED:
        near = get_close_matches(name, RELEASED, n=1)
        raise UsageError(
            f"no SAM 2 of size {name!r}; {f'did you mean {near[0]!r}? ' if near else ''}"
            f"(released: {', '.join(RELEASED)})"
        )
    problems = [] if image_size is None else image_size_problems(image_size, _RELEASED_FIRST_WINDOW)
    if problems:
        raise UsageError(f"{name}: {problems[0]}")


def _image_size(side: int) -> dict[str, Any]:
    """Settings for a side of images in pixels.

    Rotary tables are built for it at once: sam2 would build them anew in the first pass, and were
    that under inference mode, no later pass could train.
    """
    tables = {"feat_sizes": [side // _STRIDE, side // _STRIDE]}
    layer = {"self_attention": tables, "cross_attention": tables}
    return {"image_size": side, "memory_attention": {"layer": layer}}


def _own_sizes(sizes: Sam2Sizes) -> dict[str, Any]:
    """Settings for sizes of one's own, over those of a released model."""
    width, memory_width = sizes.width, sizes.memory_width
    attention = {"embedding_dim": width, "dropout": sizes.dropout}
    return {
        "image_encoder": {
            "trunk": {
                "embed_dim": sizes.trunk_width,
                "num_heads": sizes.trunk_heads,
                "stages": list(sizes.stages),
                "global_att_blocks": list(sizes.global_blocks),
                "window_spec": list(sizes.windows),
                "window_pos_embed_bkg_spatial_size": [sizes.background, sizes.background],
            },
            "neck": {
                "d_model": width,
                "position_encoding": {"num_pos_feats": width},
                "backbone_channel_list": [sizes.trunk_width * times for times in (8, 4, 2, 1)],
            },
        },
        "memory_attention": {
            "d_model": width,
            "num_layers": sizes.memory_layers,
            "layer": {
                "d_model": width,
                "dim_feedforward": sizes.feed_forward,
                "dropout": sizes.dropout,
                "self_attention": attention,
                "cross_attention": {**attention, "kv_in_dim": memory_width},
            },
        },
        "memory_encoder": {
            "in_dim": width,
            "out_dim": memory_width,
            "position_encoding": {"num_pos_feats": memory_width},
            "mask_downsampler": {"embed_dim": width},
            "fuser": {"num_layers": sizes.fuser_layers, "layer": {"dim": width}},
        },
        "num_maskmem": sizes.memories,
    }
