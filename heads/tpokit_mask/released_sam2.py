"""Names and shapes of the weights of a SAM 2, and its sizes from them, without building one: the
package would draw 224 million random numbers for a large one.

Source: facebookresearch/sam2, sam2/modeling; the tests compare with models that it builds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate, pairwise

from tpokit.errors import CheckpointError, UsageError
from tpokit.interfaces import Shape, Shapes
from tpokit_mask.sam2.sizes import Sam2Sizes

Named = Iterator[tuple[str, Shape]]

LARGE = Sam2Sizes(
    image_size=1024,
    width=256,
    memory_width=64,
    trunk_width=144,
    trunk_heads=2,
    stages=(2, 6, 36, 4),
    global_blocks=(23, 33, 43),
    windows=(8, 4, 16, 8),
    background=7,
    memory_layers=4,
    feed_forward=2048,
    fuser_layers=2,
    dropout=0.1,
    memories=7,
    version="2.0",
)
"""The model ``sam2_hiera_large``."""
_USUAL = (LARGE, Sam2Sizes())
"""Models from which is taken what shapes do not tell, by the number of their blocks."""
_INNER = 2048  # of the mask decoder
_HIDDEN = 256  # of its prediction of IoU
_TRUNK, _BLOCKS = "image_encoder.trunk.", "image_encoder.trunk.blocks."
_ONLY_IN_2_1 = "no_obj_embed_spatial"


def sizes_of(shapes: Shapes) -> Sam2Sizes:
    """Sizes of a model from the shapes of its weights.

    What shapes do not tell (heads and windows of the image encoder, which of its blocks see the
    whole image, the side of images) is as in a model with as many blocks in each stage.

    Raises:
        CheckpointError: A tensor that tells sizes is missing, or no known model has such stages.
    """
    blocks = _count(shapes, _BLOCKS)
    starts = [block for block in range(blocks) if f"{_BLOCKS}{block}.proj.weight" in shapes]
    stages = tuple(end - start for start, end in pairwise([0, *starts, blocks]))
    like = next((sizes for sizes in _USUAL if sizes.stages == stages), None)
    if like is None:
        known = " or ".join(str(list(sizes.stages)) for sizes in _USUAL)
        raise CheckpointError(
            f"SAM 2 with {list(stages)} blocks in its stages: it must have {known}"
        )
    memory = _shape(shapes, "maskmem_tpos_enc")
    try:
        return replace(
            like,
            width=_shape(shapes, "no_mem_embed")[-1],
            memory_width=memory[-1],
            trunk_width=_shape(shapes, f"{_TRUNK}patch_embed.proj.weight")[0],
            windows=(_shape(shapes, f"{_TRUNK}pos_embed_window")[-1], *like.windows[1:]),
            background=_shape(shapes, f"{_TRUNK}pos_embed")[-1],
            memory_layers=_count(shapes, "memory_attention.layers."),
            feed_forward=_shape(shapes, "memory_attention.layers.0.linear1.weight")[0],
            fuser_layers=_count(shapes, "memory_encoder.fuser.layers."),
            memories=memory[0],
            version="2.1" if _ONLY_IN_2_1 in shapes else "2.0",
        )
    except UsageError as cause:
        raise CheckpointError(str(cause)) from cause


def sam2_shapes(sizes: Sam2Sizes) -> Mapping[str, Shape]:
    """Name to shape of all weights of a model."""
    return dict(_all(sizes))


def _all(sizes: Sam2Sizes) -> Named:
    width, memory = sizes.width, sizes.memory_width
    yield "maskmem_tpos_enc", (sizes.memories, 1, 1, memory)
    yield "no_mem_embed", (1, 1, width)
    yield "no_mem_pos_enc", (1, 1, width)
    yield "no_obj_ptr", (1, width)
    if sizes.version == "2.1":
        yield _ONLY_IN_2_1, (1, memory)
        yield from _layer("obj_ptr_tpos_proj", memory, width)
    yield from _layer("mask_downsample", 1, 1, 4, 4)
    yield from _mlp("obj_ptr_proj", width, width, width, width)
    yield from _image_encoder(sizes)
    yield from _memory_attention(sizes)
    yield from _memory_encoder(sizes)
    yield from _prompt_encoder(width)
    yield from _mask_decoder(width)


def _image_encoder(sizes: Sam2Sizes) -> Named:
    first, window = sizes.trunk_width, sizes.windows[0]
    yield f"{_TRUNK}pos_embed", (1, first, sizes.background, sizes.background)
    yield f"{_TRUNK}pos_embed_window", (1, first, window, window)
    yield from _layer(f"{_TRUNK}patch_embed.proj", first, 3, 7, 7)
    starts = set(accumulate(sizes.stages[:3]))
    width = first
    for block in range(sum(sizes.stages)):
        name, seen = f"{_BLOCKS}{block}", width
        if block in starts:
            width *= 2
            yield from _layer(f"{name}.proj", width, seen)
        yield from _norm(f"{name}.norm1", seen)
        yield from _layer(f"{name}.attn.qkv", 3 * width, seen)
        yield from _layer(f"{name}.attn.proj", width, width)
        yield from _norm(f"{name}.norm2", width)
        yield from _mlp(f"{name}.mlp", width, 4 * width, width)
    for level in range(4):
        name = f"image_encoder.neck.convs.{level}.conv"
        yield from _layer(name, sizes.width, width >> level, 1, 1)


def _memory_attention(sizes: Sam2Sizes) -> Named:
    width, inner = sizes.width, sizes.feed_forward
    for layer in range(sizes.memory_layers):
        name = f"memory_attention.layers.{layer}"
        yield from _attention(f"{name}.self_attn", width, width, width)
        yield from _attention(f"{name}.cross_attn_image", width, width, sizes.memory_width)
        yield from _layer(f"{name}.linear1", inner, width)
        yield from _layer(f"{name}.linear2", width, inner)
        for number in (1, 2, 3):
            yield from _norm(f"{name}.norm{number}", width)
    yield from _norm("memory_attention.norm", width)


def _memory_encoder(sizes: Sam2Sizes) -> Named:
    width = sizes.width
    masks = "memory_encoder.mask_downsampler.encoder"
    for step, (seen, made) in enumerate(pairwise((1, 4, 16, 64, 256))):
        yield from _layer(f"{masks}.{3 * step}", made, seen, 3, 3)
        yield from _norm(f"{masks}.{3 * step + 1}", made)
    yield from _layer(f"{masks}.12", width, 256, 1, 1)
    yield from _layer("memory_encoder.pix_feat_proj", width, width, 1, 1)
    for layer in range(sizes.fuser_layers):
        name = f"memory_encoder.fuser.layers.{layer}"
        yield f"{name}.gamma", (width,)
        yield from _layer(f"{name}.dwconv", width, 1, 7, 7)
        yield from _norm(f"{name}.norm", width)
        yield from _layer(f"{name}.pwconv1", 4 * width, width)
        yield from _layer(f"{name}.pwconv2", width, 4 * width)
    yield from _layer("memory_encoder.out_proj", sizes.memory_width, width, 1, 1)


def _prompt_encoder(width: int) -> Named:
    name = "sam_prompt_encoder"
    yield f"{name}.pe_layer.positional_encoding_gaussian_matrix", (2, width // 2)
    embeddings = [*(f"point_embeddings.{kind}" for kind in range(4)), "not_a_point_embed"]
    for embedding in (*embeddings, "no_mask_embed"):
        yield f"{name}.{embedding}.weight", (1, width)
    masks = f"{name}.mask_downscaling"
    for step, (seen, made) in enumerate(pairwise((1, 4, 16))):
        yield from _layer(f"{masks}.{3 * step}", made, seen, 2, 2)
        yield from _norm(f"{masks}.{3 * step + 1}", made)
    yield from _layer(f"{masks}.6", width, 16, 1, 1)


def _mask_decoder(width: int) -> Named:
    name, half = "sam_mask_decoder", width // 2
    for layer in range(2):
        block = f"{name}.transformer.layers.{layer}"
        yield from _attention(f"{block}.self_attn", width, width, width)
        yield from _attention(f"{block}.cross_attn_token_to_image", width, half, width)
        yield from _attention(f"{block}.cross_attn_image_to_token", width, half, width)
        yield from _mlp(f"{block}.mlp", width, _INNER, width)
        for number in (1, 2, 3, 4):
            yield from _norm(f"{block}.norm{number}", width)
    yield from _attention(f"{name}.transformer.final_attn_token_to_image", width, half, width)
    yield from _norm(f"{name}.transformer.norm_final_attn", width)
    for token, count in (("iou_token", 1), ("mask_tokens", 4), ("obj_score_token", 1)):
        yield f"{name}.{token}.weight", (count, width)
    middle, fine = width // 4, width // 8
    for step, seen, made in ((0, width, middle), (3, middle, fine)):
        yield f"{name}.output_upscaling.{step}.weight", (seen, made, 2, 2)
        yield f"{name}.output_upscaling.{step}.bias", (made,)
    yield from _norm(f"{name}.output_upscaling.1", middle)
    yield from _layer(f"{name}.conv_s0", fine, width, 1, 1)
    yield from _layer(f"{name}.conv_s1", middle, width, 1, 1)
    for mask in range(4):
        yield from _mlp(f"{name}.output_hypernetworks_mlps.{mask}", width, width, width, fine)
    yield from _mlp(f"{name}.iou_prediction_head", width, _HIDDEN, _HIDDEN, 4)
    yield from _mlp(f"{name}.pred_obj_score_head", width, width, width, 1)


def _attention(name: str, width: int, inner: int, seen: int) -> Named:
    """Queries of ``width``, keys and values of ``seen``, all brought to ``inner`` and back."""
    for kind, columns in (("q", width), ("k", seen), ("v", seen)):
        yield from _layer(f"{name}.{kind}_proj", inner, columns)
    yield from _layer(f"{name}.out_proj", width, inner)


def _mlp(name: str, *widths: int) -> Named:
    for layer, (seen, made) in enumerate(pairwise(widths)):
        yield from _layer(f"{name}.layers.{layer}", made, seen)


def _layer(name: str, *shape: int) -> Named:
    """Weight and bias of a linear layer or a convolution."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _norm(name: str, width: int) -> Named:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _shape(shapes: Shapes, name: str) -> Shape:
    if not shapes.get(name):
        raise CheckpointError(f"the weights of SAM 2 lack {name}; are all files here?")
    return shapes[name]


def _count(shapes: Shapes, prefix: str) -> int:
    numbers = {
        name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)
    }
    return len(numbers)
