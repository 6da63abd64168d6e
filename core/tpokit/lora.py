"""LoRA through PEFT; the one file that knows peft."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from tpokit.errors import UsageError

ADAPTER = "default"


def add_lora(
    model: nn.Module, targets: str, rank: int, alpha: float, dropout: float, seed: int
) -> None:
    """Put fresh adapters on linear layers, in place; a model that has them keeps them.

    Args:
        model: The backbone.
        targets: One regular expression for the full names of the layers. A list of plain names
            would also hit the vision tower, whose attention has a ``q_proj`` too.
        rank, alpha, dropout: As in PEFT; the update is scaled by alpha / rank.
        seed: Of the fresh matrices.

    Raises:
        UsageError: The expression fits no layer.
    """
    if has_lora(model):
        return
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
        except ValueError as cause:
            raise UsageError(
                f"LoRA: the expression {targets!r} fits no layer of {type(model).__name__}: {cause}"
            ) from cause


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Layers with adapters, by name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def has_lora(model: nn.Module) -> bool:
    """Whether any layer has an adapter."""
    return next(lora_layers(model), None) is not None


def is_lora(name: str) -> bool:
    """Whether a parameter name is one of an adapter."""
    return ".lora_" in name


def merge_lora(model: nn.Module) -> None:
    """Add the adapters to their layers and take them away, in place."""
    for _, layer in lora_layers(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of rounding when merging; asked for here
            layer.merge()
    remove_lora(model)


def remove_lora(model: nn.Module) -> None:
    """Take the adapters away and leave their layers as they are, in place."""
    for name, layer in list(lora_layers(model)):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
