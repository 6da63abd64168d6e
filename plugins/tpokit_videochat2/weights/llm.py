"""Published names of an LLM in the form of Mistral and Llama, with adapters, and their places."""

from __future__ import annotations

from collections.abc import Iterator

from tpokit.interfaces import Place, Published, Shape
from tpokit_videochat2.weights.names import Row, placed
from tpokit_videochat2.weights.sizes import LlmSizes, LoraSizes

OURS = "backbone.llm."
BASE = "lm.base_model.model."
"""What stands before the names of transformers in VideoChat-TPO."""
_NORMS = ("input_layernorm", "post_attention_layernorm")
_HELD = ".base_layer"
"""There, in the names of layers with an adapter."""


def block_tensors(sizes: LlmSizes, lora: LoraSizes | None) -> Iterator[Published]:
    """All blocks and the norm behind them; the word table and output layer are apart."""
    for layer in range(sizes.layers):
        inside = f"model.layers.{layer}."
        norms = [(f"{name}.weight", f"{name}.weight", (sizes.width,)) for name in _NORMS]
        yield from placed(norms, BASE + inside, OURS + inside)
        for name, shape in linear_shapes(sizes).items():
            yield from _linear(f"{inside}{name}", shape, lora)
    last = "model.norm.weight"
    yield Published(BASE + last, (sizes.width,), (Place(OURS + last),))


def our_names(layers: int) -> set[str]:
    """Names of all parameters of such an LLM, without prefix and adapters."""
    blocks = {
        f"model.layers.{layer}.{name}.weight"
        for layer in range(layers)
        for name in (*_NORMS, *linear_shapes(LlmSizes(1, 1, 1, 1, 1, 1)))
    }
    return blocks | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def linear_shapes(sizes: LlmSizes) -> dict[str, Shape]:
    """Linear layers of a block."""
    width, inner = sizes.width, sizes.inner
    return {
        "self_attn.q_proj": (sizes.query, width),
        "self_attn.k_proj": (sizes.key, width),
        "self_attn.v_proj": (sizes.key, width),
        "self_attn.o_proj": (width, sizes.query),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }


def _linear(name: str, shape: Shape, lora: LoraSizes | None) -> Iterator[Published]:
    """A layer and, if there are any, its two adapter matrices."""
    yield Published(f"{BASE}{name}{_HELD}.weight", shape, (Place(f"{OURS}{name}.weight"),))
    if lora is not None:
        adapters: list[Row] = [
            (f"lora_{kind}.default.weight",) * 2 + (size,)
            for kind, size in (("A", (lora.rank, shape[1])), ("B", (shape[0], lora.rank)))
        ]
        yield from placed(adapters, f"{BASE}{name}.", f"{OURS}{name}.")
