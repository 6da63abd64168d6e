"""Which tensors of a model stand in which file, and how they are made whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from tpokit.errors import CheckpointError
from tpokit.lora import is_lora
from tpokit.model import TpoModel
from tpokit.parts import part_of_parameters

_LORA_SUFFIX = "-lora"


def file_tensors(model: TpoModel, name: str) -> dict[str, Tensor]:
    """The tensors of a file, by saved name.

    Args:
        model: The tensors are the model's own.
        name: A part (``bridge``, ``connector``, a task), or a part with ``-lora`` for its adapters.

    Returns:
        Parameters and the buffers that belong to the state. A name does not tell whether its layer
        has an adapter: ``q_proj.weight``, not ``q_proj.base_layer.weight``.
    """
    part = name.removesuffix(_LORA_SUFFIX)
    adapters = name != part
    owners = part_of_parameters(model)
    parameters: dict[str, Tensor] = {
        saved_name(full): parameter
        for full, parameter in model.named_parameters()
        if owners[full] == part and is_lora(full) == adapters
    }
    return parameters if adapters else {**parameters, **part_buffers(model, part)}


def saved_name(name: str) -> str:
    """Name of a parameter as if its layer had no adapter."""
    return name.replace(".base_layer.", ".")


def part_buffers(model: TpoModel, part: str) -> dict[str, Tensor]:
    """Buffers of a part that belong to its state, by name."""
    if part == "bridge":
        members: list[nn.Module | nn.Parameter] = [model.bridge]
    elif part in model.heads:
        members = [model.head(part)]
    else:
        members = model.backbone.parts().get(part, [])
    own = {
        id(buffer)
        for member in members
        if isinstance(member, nn.Module)
        for buffer in member.buffers()
    }
    state = model.state_dict(keep_vars=True)
    return {
        saved_name(full): buffer
        for full, buffer in model.named_buffers()
        if id(buffer) in own and full in state
    }


def trained_tensors(model: TpoModel) -> dict[str, Tensor]:
    """What a stage may change: parameters that take gradients, and buffers of their parts, by saved
    name.
    """
    owners = part_of_parameters(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, Tensor] = {saved_name(name): p for name, p in trained.items()}
    for part in sorted({owners[name] for name in trained}):
        found.update(part_buffers(model, part))
    return found


def trained_state(
    wanted: Mapping[str, Tensor], gather: Callable[[Tensor], Tensor | None] | None = None
) -> dict[str, Tensor]:
    """Whole copies of tensors on the CPU, gathered by name where an engine has cut them up.

    All ranks must call this; what each gets is up to ``gather``.

    Args:
        wanted: Tensors of a model by saved name, the same on all ranks.
        gather: Makes one tensor whole, on the ranks that need it; default: they are whole.

    Raises:
        CheckpointError: A tensor did not come out whole.
    """
    whole: dict[str, Tensor] = {}
    for name in sorted(wanted):
        tensor = wanted[name]
        found = tensor.detach().to("cpu", copy=True) if gather is None else gather(tensor)
        if found is None:
            continue
        if list(found.shape) != declared_shape(tensor):
            raise CheckpointError(
                f"{name} could not be gathered: it came out with shape {list(found.shape)}, "
                f"declared is {declared_shape(tensor)}"
            )
        whole[name] = found
    return whole


def declared_shape(tensor: Tensor) -> list[int]:
    """Shape of a whole tensor; one that ZeRO-3 has cut up remembers it."""
    return list(getattr(tensor, "ds_shape", tensor.shape))
