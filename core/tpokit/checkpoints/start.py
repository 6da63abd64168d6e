"""Starting a run from a saved model: its weights, as far as both models have them, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tpokit.atomic import whole_folder
from tpokit.checkpoints.store import (
    LORA,
    check_base,
    described,
    fill_model,
    read_tensors,
    saved_folder,
    saved_recipe,
)
from tpokit.checkpoints.tensors import declared_shape, file_tensors
from tpokit.errors import CheckpointError
from tpokit.lora import add_lora
from tpokit.model import TpoModel
from tpokit.recipe import Recipe

_BRIDGE = "bridge"


@dataclass(frozen=True)
class Start:
    """What a model took from a saved one.

    Attributes:
        folder: Of the saved model itself.
        files: Names of its files that were taken, without ``.safetensors``.
        fresh: Heads that the saved model does not have, and tokens of the bridge that it does not
            have although it has their head.
        left_out: Heads that the model does not have.
    """

    folder: Path
    files: tuple[str, ...]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        return f"starts from {self.folder}: {taken(self.files, self.fresh, self.left_out)}"


def taken(loaded: Sequence[str], fresh: Sequence[str] = (), left_out: Sequence[str] = ()) -> str:
    """In words: what was loaded, what is new, what was not used."""
    named = {"loaded": loaded, "fresh": fresh, "left out": left_out}
    return "; ".join(f"{what} {', '.join(names)}" for what, names in named.items() if names)


def load_start(model: TpoModel, recipe: Recipe, source: Path, base: Mapping[str, str]) -> Start:
    """Put the weights of a saved model into one that was just built, in place, part by part.

    Parts of the backbone and heads go by their names, rows of the bridge by their tokens.

    Args:
        model: Just built, from the same base.
        recipe: Of the model; for its adapters.
        source: A run, a stage, a merged or an imported model.
        base: What the backbone's ``identity`` says.

    Raises:
        CheckpointError: Another base, adapters of another size, or tensors of another shape; the
            model is unchanged but for empty adapters.
    """
    folder = saved_folder(source)
    about = described(folder)
    check_base(about, folder, base)
    files: list[str] = about["files"]
    parts = [name for name in files if name == LORA or name in model.backbone.parts()]
    heads = [task for task in model.heads if task in files]
    left_out = [name for name in files if name not in {_BRIDGE, *parts, *heads}]
    if LORA in parts:
        _add_adapters(model, recipe, folder)
    pairs = list(_bridge_pairs(model, about["tokens"], folder))
    for name in [*parts, *heads]:
        wanted = file_tensors(model, name)
        found = read_tensors(folder / f"{name}.safetensors", wanted)
        pairs += [(wanted[key], tensor) for key, tensor in found.items()]
    with torch.no_grad():
        for parameter, tensor in pairs:
            parameter.copy_(tensor)
    fresh = [task for task in model.heads if task not in heads]
    fresh += _fresh_tokens(model, heads, about["tokens"])
    return Start(folder, (_BRIDGE, *parts, *heads), tuple(fresh), tuple(left_out))


def save_start(
    model: TpoModel, recipe: Recipe, folder: Path, start: Start, base: Mapping[str, str]
) -> None:
    """Keep the model that a run starts from in a folder of its own, whole or not at all, so that
    the run needs the saved one no more.
    """
    files = sorted({*start.files, *model.heads})
    about = {"base": dict(base), "stage": "", "modes": {}}
    with whole_folder(folder, lambda: f"{start.folder} is untouched") as partial:
        fill_model(model, partial, recipe.dump(), files, about)


def _add_adapters(model: TpoModel, recipe: Recipe, folder: Path) -> None:
    ours, theirs = recipe.lora, saved_recipe(folder).lora
    if (ours.rank, ours.alpha) != (theirs.rank, theirs.alpha):
        raise CheckpointError(
            f"init_from: {folder} has adapters of rank {theirs.rank} and alpha {theirs.alpha:g}, "
            f"but lora: asks for rank {ours.rank} and alpha {ours.alpha:g}; write those of the "
            "saved model, or merge it first by tpokit weights merge"
        )
    targets = model.backbone.lora_targets()
    add_lora(model.backbone, targets, ours.rank, ours.alpha, ours.dropout, recipe.seed)


def _bridge_pairs(
    model: TpoModel, tokens: Sequence[str], folder: Path
) -> Iterator[tuple[Tensor, Tensor]]:
    """The bridge's tensors and what they become: rows of tokens that both models have come from the
    saved one.
    """
    path = folder / f"{_BRIDGE}.safetensors"
    found = read_tensors(path)
    for name, ours in file_tensors(model, _BRIDGE).items():
        theirs = found.get(name)
        if theirs is None or theirs.shape[1:] != ours.shape[1:]:
            shape = "is missing" if theirs is None else f"has shape {list(theirs.shape)}"
            raise CheckpointError(
                f"{path} does not fit: {name} {shape}; the model's has {declared_shape(ours)}"
            )
        rows = {token: row for token, row in zip(tokens, theirs, strict=False)}
        together = ours.detach().clone()
        for index, token in enumerate(list(model.tokens.ids)[: len(ours)]):
            if token in rows:
                together[index] = rows[token]
        yield ours, together


def _fresh_tokens(model: TpoModel, heads: Sequence[str], saved: Sequence[str]) -> list[str]:
    """Tokens of loaded heads that the saved model does not have."""
    named = [(model.tokens.tasks[task].trigger, *model.tokens.tasks[task].slots) for task in heads]
    return [token for tokens in named for token in tokens if token not in saved]
