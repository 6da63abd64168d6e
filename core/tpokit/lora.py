"""LoRA through PEFT; the one file that knows peft.

PEFT's layer adds the update to what the base layer gives in three passes over it (product, scaling,
sum) and under autocast copies its input twice, to float32 and back. `LoraLinear` does it in one and
keeps no copy of the input, which layers that read the same input would each keep for their backward
passes. All else is PEFT's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn

from tpokit.errors import UsageError

ADAPTER = "default"


class Onto(nn.Linear):
    """A linear layer that adds its product to something."""

    def forward(self, input: Tensor, onto: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """The product alone, or ``onto + scale x product``.

        Args:
            input: ``[..., r]``.
            onto: ``[..., d]``; left as it is.
            scale: Of the product.
        """
        if onto is None:
            return super().forward(input)
        rows = onto.shape[:-1].numel()
        sums, factors = onto.reshape(rows, onto.shape[-1]), input.reshape(rows, input.shape[-1])
        return torch.addmm(sums, factors, self.weight.t(), alpha=scale).view(onto.shape)


class LoraLinear(Linear):  # type: ignore[misc] # peft is not typed
    """PEFT's layer over a linear one, quicker where there is one adapter that is not merged."""

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Make an adapter; its second matrix adds to the output by itself, so that an engine that
        gathers weights around the call of a module finds it called.
        """
        super().update_layer(adapter_name, *args, **kwargs)
        second = self.lora_B[adapter_name]
        onto = Onto(second.in_features, second.out_features, bias=False, device="meta")
        onto.weight = second.weight
        self.lora_B[adapter_name] = onto

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``[..., d]`` to ``[..., e]``."""
        adapters = self.active_adapters
        if args or kwargs or self.merged or self.disable_adapters or len(adapters) != 1:
            return self._as_peft(x, *args, **kwargs)
        (adapter,) = adapters
        second = self.lora_B[adapter]
        if x.dtype != second.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            return self._as_peft(x)
        update = self.lora_A[adapter](self.lora_dropout[adapter](x))
        found: Tensor = second(update, self.base_layer(x), self.scaling[adapter])
        return found

    def _as_peft(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = super().forward(x, *args, **kwargs)
        return found


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
    config._register_custom_module({nn.Linear: LoraLinear})
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
