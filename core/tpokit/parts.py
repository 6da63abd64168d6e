"""Parts of a model and what a stage does with each: ``full``, ``lora`` or ``frozen``.

Parts are ``vision``, ``connector``, ``llm`` (the backbone's), ``bridge``, and each head by its
task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tpokit.errors import TpokitError, UsageError
from tpokit.lora import add_lora, has_lora, is_lora, merge_lora
from tpokit.model import TpoModel
from tpokit.recipe_schema import BACKBONE_PARTS, Mode


@dataclass(frozen=True)
class PartRow:
    """One line of the table that is shown before a stage.

    Attributes:
        part: Name of the part.
        mode: What the stage does with it.
        parameters: How many numbers it has, adapters included.
        trained: How many of them the stage changes.
        learning_rate: Peak learning rate, ``None`` if nothing is trained.
    """

    part: str
    mode: Mode
    parameters: int
    trained: int
    learning_rate: float | None


def part_of_parameters(model: TpoModel) -> dict[str, str]:
    """Full name of every parameter to its part.

    Raises:
        TpokitError: The backbone leaves a parameter without a part or puts it in two.
    """
    owner: dict[int, str] = {}
    groups: dict[str, list[nn.Module | nn.Parameter]] = {
        **model.backbone.parts(),
        "bridge": [model.bridge],
    }
    groups.update({task: [model.head(task)] for task in model.heads})
    for part, members in groups.items():
        for member in members:
            for parameter in [member] if isinstance(member, nn.Parameter) else member.parameters():
                if owner.setdefault(id(parameter), part) != part:
                    raise TpokitError(
                        f"a parameter is in two parts: {owner[id(parameter)]} and {part}"
                    )
    names = {name: owner.get(id(parameter)) for name, parameter in model.named_parameters()}
    lost = [name for name, part in names.items() if part is None]
    if lost:
        raise TpokitError(f"parameters without a part: {', '.join(lost[:5])}")
    return {name: part for name, part in names.items() if part is not None}


def set_modes(
    model: TpoModel,
    modes: Mapping[str, Mode],
    lora: Any,
    seed: int,
    patterns: Mapping[str, str] | None = None,
) -> None:
    """Make a model ready for a stage: adapters, what requires a gradient, which task losses are
    taken.

    Args:
        model: Changed in place.
        modes: Part to mode; one that is not named is frozen.
        lora: ``rank``, ``alpha`` and ``dropout`` of adapters.
        seed: Of fresh adapters.
        patterns: Part to a regular expression; of such a part only parameters with a match in
            their name, as its owner calls them, are trained.

    Raises:
        UsageError: ``lora`` on a part that has no target layers, or a pattern that matches nothing.
    """
    for part, mode in modes.items():
        if mode == "lora" and part != "llm":
            raise UsageError(f"part {part!r} cannot be trained with lora; only llm can")
    if modes.get("llm") == "lora":
        add_lora(
            model.backbone, model.backbone.lora_targets(), lora.rank, lora.alpha, lora.dropout, seed
        )
    elif modes.get("llm") == "full" and has_lora(model.backbone):
        merge_lora(model.backbone)  # a full stage goes on from what the adapters had learnt
    owners = part_of_parameters(model)
    chosen = {part: _matching(owners, part, pattern) for part, pattern in (patterns or {}).items()}
    for name, parameter in model.named_parameters():
        part = owners[name]
        mode = modes.get(part, "frozen")
        full = mode == "full" and name in chosen.get(part, owners)
        parameter.requires_grad_(full or (mode == "lora" and is_lora(name)))
    model.trained_tasks = frozenset(
        task for task in model.heads if modes.get(task, "frozen") != "frozen"
    )


def _matching(owners: Mapping[str, str], part: str, pattern: str) -> set[str]:
    """Full names of the parameters of a part that a pattern matches."""
    start = {part: f"heads.{part}.", "bridge": "bridge."} | dict.fromkeys(
        BACKBONE_PARTS, "backbone."
    )
    short = {name: name.removeprefix(start[part]) for name, p in owners.items() if p == part}
    found = {name for name, seen in short.items() if re.search(pattern, seen)}
    if not found:
        some = list(short.values())[:: max(1, len(short) // 4)]
        raise UsageError(
            f"train.{part}.only: {pattern!r} matches no parameter of {part!r}; "
            f"some of its {len(short)} are {', '.join(some)}"
        )
    return found


def part_table(
    model: TpoModel, modes: Mapping[str, Mode], rates: Mapping[str, float]
) -> list[PartRow]:
    """The table of parts of a stage, in the order vision, connector, llm, bridge, heads."""
    parts = part_of_parameters(model)
    sizes: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        counted = sizes.setdefault(parts[name], [0, 0])
        numel = getattr(parameter, "ds_numel", parameter.numel())
        counted[0] += numel
        counted[1] += numel if parameter.requires_grad else 0
    rows = []
    for part, (total, trained) in sizes.items():
        mode = modes.get(part, "frozen")
        rows.append(PartRow(part, mode, total, trained, rates.get(part) if trained else None))
    order = ["vision", "connector", "llm", "bridge", *model.heads]
    return sorted(rows, key=lambda row: order.index(row.part))


def parameter_groups(
    model: TpoModel, rates: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups, one for each part and kind of parameter that is trained, in canonical
    order.

    Vectors (norms, biases) and the bridge's rows do not decay.
    """
    parts = part_of_parameters(model)
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = parts[name]
        decays = len(getattr(parameter, "ds_shape", parameter.shape)) > 1 and part != "bridge"
        group = groups.setdefault(
            (part, decays),
            {
                "params": [],
                "lr": rates[part],
                "weight_decay": weight_decay if decays else 0.0,
                "part": part,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
