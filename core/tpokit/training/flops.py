"""How much arithmetic a model needs, for the model FLOPs utilisation (MFU) of a run.

MFU = FLOPs that the model needs for what it learnt from / (time x peak of the devices).

Source: arXiv 2204.02311 (PaLM), appendix B: for each token 6 N + 12 L H Q T, with N weights, L
layers, H heads of size Q, and T the length of its sequence; attention is counted as a whole
square, although half of it is masked. That is 2 N + 4 L H Q T forward and twice as much backward:
half of it for the gradients of activations and half for those of weights. Here each layer is
counted by what it does:

===================================================  ==========================
a layer of n weights, for each of its rows            FLOPs
===================================================  ==========================
forward                                               2 n
a gradient flows to its input                         2 n more
its weights are trained                               2 n more
attention of width H Q, for each pair of positions    4 H Q
a gradient flows through it                           8 H Q more
===================================================  ==========================

So a weight costs 6 if it is trained, 4 under an adapter, 2 in a part that runs without a graph.
We differ from PaLM in two points: the output layer and the vision tower count the rows that they
get, not the tokens of the text; and positions that only pad the text count nothing. What is
computed again (gradient checkpointing) counts nothing, as there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpokit.batch import Batch
from tpokit.model import TpoModel, positions_of
from tpokit.parts import part_of_parameters

_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "A40": 150e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
"""FLOPs a second in bfloat16 without sparsity, from the makers' data sheets; the first name that
stands in the device's counts.
"""
_NO_PRODUCTS = (nn.Embedding, nn.EmbeddingBag, nn.ConvTranspose1d, nn.ConvTranspose2d)
"""Modules with a matrix that is not multiplied with each row of what they give."""
_QUERIES = {"q_proj": 1, "query": 1, "qkv": 3, "qkv_proj": 3}
"""Layers that make the queries of self-attention, to how many times their width they give."""


def peak_flops(device: torch.device, precision: str) -> float | None:
    """What a device can do at most, in FLOPs a second; ``None`` if that is not known.

    Args:
        device: Where the model is.
        precision: Of its arithmetic; only ``bfloat16`` is known.
    """
    if device.type != "cuda" or precision != "bfloat16":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """Peak of a device by its name, in FLOPs a second in bfloat16."""
    words = f" {re.sub(r'[-_]', ' ', name)} "
    return next((peak for key, peak in _PEAKS.items() if f" {key} " in words), None)


@dataclass(frozen=True)
class _Layers:
    """Layers of repeated blocks, which all get as many rows: what each gives, weights of all of
    them and of those that are trained, and width of all attention whose queries they make.
    """

    part: str
    outputs: int
    weights: int
    trained: int
    attention: int


class FlopCount:
    """Adds up what a model needs between two lines of the log.

    A layer is a module with a matrix called ``weight``. Of those that stand at the same place in
    repeated blocks and have the same shape, one is looked at. Attention is known by the names of
    layers in `_QUERIES`; a model that calls them otherwise is counted without it. Where a tower
    puts several media into one row, they are taken to be as many as the samples and equally long,
    which is the least that it can be.

    Attributes:
        peak: Of the device, in FLOPs a second.
    """

    def __init__(self, model: TpoModel, peak: float) -> None:
        """Look at the layers; a wrapping engine may come later.

        Args:
            model: With its modes set.
            peak: Of the device, in FLOPs a second.
        """
        self.peak = peak
        self._handles = [
            module.register_forward_hook(self._hook(layers))
            for module, layers in _repeated_layers(model)
        ]
        self._total = 0.0
        self._of_tokens: Tensor | float = 0.0
        self._calls: list[tuple[_Layers, int, float, bool]] = []
        self._counting = False

    def start(self) -> None:
        """A forward pass of training follows; others, as those of gradient checkpointing in a
        backward pass, do not count.
        """
        self._counting = True

    def stop(self) -> None:
        """No forward pass of training follows."""
        self._counting = False

    def take(self, batch: Batch) -> None:
        """A forward pass has ended; ``batch`` was its micro-batch, on the device."""
        self.stop()
        for_token = for_pair = 0.0
        for layers, rows, sequences, flows in self._calls:
            each = 2.0 * layers.weights * (1 + flows) + 2.0 * layers.trained
            attention = 4.0 * layers.attention * (1 + 2 * flows)
            if layers.part == "llm" and rows == batch.ids.numel():
                for_token += each
                for_pair += attention
            else:
                apart = len(batch.samples) if sequences == 1 else sequences
                self._total += (each + attention * rows / max(apart, 1)) * rows
        self._calls.clear()
        within = positions_of(batch.mask)
        if batch.sequences is not None:
            within = batch.sequences.positions
        # 1 + 3 + 5 + ... is the square of the length of each sample
        pairs_of_token = (2 * within + 1).to(torch.float64) * for_pair
        self._of_tokens = self._of_tokens + ((pairs_of_token + for_token) * batch.mask).sum()

    def read(self) -> float:
        """FLOPs of this rank since the last reading."""
        total = self._total + float(self._of_tokens)
        self._total, self._of_tokens = 0.0, 0.0
        return total

    def remove(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, layers: _Layers) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if self._counting:
                flows = bool(inputs) and inputs[0].requires_grad
                sequences = output.shape[:-2].numel()
                self._calls.append((layers, output.numel() // layers.outputs, sequences, flows))

        return note


def _repeated_layers(model: TpoModel) -> Iterator[tuple[nn.Module, _Layers]]:
    """Each group of layers: one of them, and what they are together."""
    owners = part_of_parameters(model)
    parts = {id(parameter): owners[name] for name, parameter in model.named_parameters()}
    groups: dict[tuple[str, tuple[int, ...]], list[tuple[str, nn.Parameter]]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or isinstance(module, _NO_PRODUCTS) or parts[id(weight)] == "bridge":
            continue
        shape = tuple(getattr(weight, "ds_shape", weight.shape))  # whole, under ZeRO-3
        if len(shape) > 1:
            groups.setdefault((re.sub(r"\d+", "#", name), shape), []).append((name, weight))
    for (_, shape), members in groups.items():
        last, weight = members[-1]  # gradients need not reach the first one
        trained = sum(parameter.requires_grad for _, parameter in members)
        layers = _Layers(
            part=parts[id(weight)],
            outputs=shape[0],
            weights=math.prod(shape) * len(members),
            trained=math.prod(shape) * trained,
            attention=_attention_width(last, shape[0]) * len(members),
        )
        yield model.get_submodule(last), layers


def _attention_width(layer: str, outputs: int) -> int:
    """Heads times their size, of the attention whose queries a layer makes; 0 if it makes none.

    A layer with an adapter stands as ``base_layer`` in the one that has its name.
    """
    own = layer.removesuffix(".base_layer").rpartition(".")[2]
    return outputs // _QUERIES[own] if own in _QUERIES else 0
