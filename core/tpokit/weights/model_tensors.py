"""Parameters and saved buffers of a model by name, empty or real, and how they are replaced."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from tpokit.checkpoints.tensors import saved_name
from tpokit.interfaces.weights import Shape
from tpokit.lora import add_lora
from tpokit.model import TpoModel, build_model
from tpokit.parts import part_of_parameters
from tpokit.plugins import Plugins
from tpokit.recipe import Recipe


class _Holder(NamedTuple):
    """A tensor, its saved name, and the module that holds it as an attribute."""

    name: str
    module: nn.Module
    attribute: str
    tensor: Tensor

    def put(self, tensor: Tensor) -> _Holder:
        """Hold another tensor instead."""
        if isinstance(tensor, nn.Parameter):
            self.module.register_parameter(self.attribute, tensor)
        else:
            self.module.register_buffer(self.attribute, tensor)
        return self._replace(tensor=tensor)


class ModelTensors:
    """What of a model is saved, by saved name (see `tpokit.checkpoints.tensors.saved_name`).

    A tensor that several modules share is one, under the name by which torch lists it first; its
    other names are understood.

    Attributes:
        shapes: Name to shape, each tensor once.
    """

    def __init__(self, model: TpoModel) -> None:
        """List them, and let modules share again what they shared before the model was emptied."""
        groups: dict[Hashable, list[_Holder]] = {}
        for full, tensor in model.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor):  # the rest is the state of a module of somebody's own
                path, _, attribute = full.rpartition(".")
                holder = _Holder(saved_name(full), model.get_submodule(path), attribute, tensor)
                groups.setdefault(_memory(holder), []).append(holder)
        self._names = {other.name: group[0].name for group in groups.values() for other in group}
        self._holders = {
            group[0].name: [holder.put(group[0].tensor) for holder in group]
            for group in groups.values()
        }
        owners = part_of_parameters(model)
        self._parts = {saved_name(name): part for name, part in owners.items()}
        self.shapes: Mapping[str, Shape] = {
            name: tuple(group[0].tensor.shape) for name, group in self._holders.items()
        }

    def name(self, name: str) -> str | None:
        """The name under which a tensor is listed; ``None``: there is none."""
        return self._names.get(name)

    def part(self, name: str) -> str:
        """The part that it belongs to (see `tpokit.parts`); of a buffer its owner."""
        words = name.split(".")
        return self._parts.get(name, words[1] if words[0] == "heads" else words[0])

    def get(self, name: str) -> Tensor:
        """The tensor that is listed under a name."""
        return self._holders[name][0].tensor.detach()

    def put(self, name: str, tensor: Tensor) -> None:
        """Put another tensor in place of the one that is listed under a name."""
        parameter = isinstance(self._holders[name][0].tensor, nn.Parameter)
        new = nn.Parameter(tensor, requires_grad=False) if parameter else tensor
        self._holders[name] = [holder.put(new) for holder in self._holders[name]]


def _memory(holder: _Holder) -> Hashable:
    """The same for tensors that are one: emptying a model gives each module a parameter object of
    its own, but over one storage.
    """
    tensor = holder.tensor
    if not tensor.numel():
        return holder.name
    storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    return storage.cdata, tensor.storage_offset(), tuple(tensor.shape)


def empty_model(recipe: Recipe, plugins: Plugins, lora: bool) -> TpoModel:
    """The model of a recipe with all parameters on the meta device: shapes without numbers.

    Args:
        recipe: Whose backbone and heads need no files of weights.
        plugins: Where its names are looked up.
        lora: Put adapters on the LLM, as the recipe has them.
    """
    with init_empty_weights(include_buffers=False):
        model = build_model(recipe, plugins)
        if lora:
            add_recipe_lora(model, recipe)
    return model


def add_recipe_lora(model: TpoModel, recipe: Recipe) -> None:
    """Put adapters on the LLM, as a recipe has them."""
    targets, lora = model.backbone.lora_targets(), recipe.lora
    add_lora(model.backbone, targets, lora.rank, lora.alpha, lora.dropout, recipe.seed)
