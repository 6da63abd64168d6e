"""Published names of vision tower and connector, their shapes, and their places in ours.

The same in all files of the family. Sources: OpenGVLab/Ask-Anything, video_chat2/models/blip2;
OpenGVLab/TPO, inference/model.safetensors.index.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tpokit.interfaces import Place, Published, Shape
from tpokit_videochat2.weights.sizes import QFormerSizes, VisionSizes

Row = tuple[str, str, Shape]
"""Published name, ours, shape."""

_NO_INSTRUCTION = "only an instruction needs it, and the release never gives one"
_POSITION_IDS = "0, 1, 2, ..., which need not be stored"


def placed(rows: Iterable[Row], theirs: str, ours: str) -> Iterator[Published]:
    """Tensors that go whole to one place each.

    Args:
        rows: Names without their prefixes.
        theirs, ours: These.
    """
    for name, place, shape in rows:
        yield Published(theirs + name, shape, (Place(ours + place),))


def vision_tensors(sizes: VisionSizes) -> Iterator[Published]:
    """All of the vision tower."""
    width, side = sizes.width, sizes.patch
    first: list[Row] = [
        ("patch_embed.proj.weight", "patch_embed.weight", (width, 3, 1, side, side)),
        ("patch_embed.proj.bias", "patch_embed.bias", (width,)),
    ]
    theirs, ours = "vision_encoder.encoder.", "backbone.vision."
    yield from placed(first, theirs, ours)
    block = list(_block(width, sizes.inner))
    for number in range(sizes.layers):
        yield from placed(block, f"{theirs}blocks.{number}.", f"{ours}blocks.{number}.")


def connector_tensors(
    sizes: QFormerSizes, projection: str, hidden: int, text_side: bool
) -> Iterator[Published]:
    """The norm behind the vision tower, the Q-Former, and the projection to the LLM.

    Args:
        sizes: Of the Q-Former.
        projection: Published name of the projection.
        hidden: Width of the LLM.
        text_side: Whether ours reads instructions.
    """
    width, ours = sizes.width, "backbone.connector."
    rows: list[Row] = [
        *_both("vision_layernorm", "norm", (sizes.vision,)),
        ("query_tokens", "queries", (1, sizes.queries, width)),
        *_linear(projection, "projection", hidden, width),
    ]
    if sizes.extra:
        rows.append(("extra_query_tokens", "extra_queries", (1, sizes.extra, width)))
    yield from placed(rows, "", ours)
    bert, qformer = "qformer.bert.", f"{ours}qformer."
    norm = _both("embeddings.LayerNorm", "embeddings.layernorm", (width,))
    yield from placed(norm, bert, qformer)
    for layer in range(sizes.layers):
        theirs, place = f"{bert}encoder.layer.{layer}.", f"{qformer}encoder.layer.{layer}."
        yield from placed(_query_side(sizes, layer), theirs, place)
        yield from _text_only(_feed_forward(sizes, ""), theirs, place, text_side)
    if sizes.words:
        tables: list[Row] = [
            _same("embeddings.word_embeddings.weight", (sizes.words, width)),
            _same("embeddings.position_embeddings.weight", (sizes.positions, width)),
        ]
        yield from _text_only(tables, bert, qformer, text_side)
        name, shape = f"{bert}embeddings.position_ids", (1, sizes.positions)
        yield Published(name, shape, unused=_POSITION_IDS, optional=True, dtype="int64")


def _text_only(rows: Iterable[Row], theirs: str, ours: str, used: bool) -> Iterator[Published]:
    if used:
        yield from placed(rows, theirs, ours)
        return
    for name, _, shape in rows:
        yield Published(theirs + name, shape, unused=_NO_INSTRUCTION, optional=True)


def _block(width: int, inner: int) -> Iterator[Row]:
    """One block of the vision tower."""
    for number in (1, 2):
        yield from _both(f"norm{number}", f"layer_norm{number}", (width,))
    yield "attn.qkv.weight", "self_attn.qkv.weight", (3 * width, width)
    for bias in ("q_bias", "v_bias"):
        yield f"attn.{bias}", f"self_attn.qkv.{bias}", (width,)
    yield from _linear("attn.proj", "self_attn.projection", width, width)
    yield from _linear("mlp.fc1", "mlp.fc1", inner, width)
    yield from _linear("mlp.fc2", "mlp.fc2", width, inner)


def _query_side(sizes: QFormerSizes, layer: int) -> Iterator[Row]:
    """What the queries need of one layer of the Q-Former."""
    width = sizes.width
    yield from _attention("attention", width, width)
    if sizes.crosses(layer):
        yield from _attention("crossattention", width, sizes.vision)
    yield from _feed_forward(sizes, "_query")


def _attention(name: str, width: int, seen: int) -> Iterator[Row]:
    for kind in ("query", "key", "value"):
        columns = width if kind == "query" else seen
        yield from _linear(f"{name}.self.{kind}", f"{name}.attention.{kind}", width, columns)
    yield from _linear(f"{name}.output.dense", f"{name}.output.dense", width, width)
    yield from _both(f"{name}.output.LayerNorm", f"{name}.output.LayerNorm", (width,))


def _feed_forward(sizes: QFormerSizes, side: str) -> Iterator[Row]:
    width, inner = sizes.width, sizes.inner
    for name, rows, columns in (
        (f"intermediate{side}.dense", inner, width),
        (f"output{side}.dense", width, inner),
    ):
        yield from _linear(name, name, rows, columns)
    yield from _both(f"output{side}.LayerNorm", f"output{side}.LayerNorm", (width,))


def _linear(theirs: str, ours: str, rows: int, columns: int) -> Iterator[Row]:
    yield f"{theirs}.weight", f"{ours}.weight", (rows, columns)
    yield f"{theirs}.bias", f"{ours}.bias", (rows,)


def _both(theirs: str, ours: str, shape: Shape) -> Iterator[Row]:
    """Weight and bias of a norm."""
    for kind in ("weight", "bias"):
        yield f"{theirs}.{kind}", f"{ours}.{kind}", shape


def _same(name: str, shape: Shape) -> Row:
    return name, name, shape
