"""Whether a stage that teaches heads and LLM together also lets the LLM talk.

Trained on calls alone, an LLM forgets conversation within some hundred steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tpokit.data.mixing import generator
from tpokit.errors import DataError, UsageError
from tpokit.interfaces import DataSource
from tpokit.near_misses import listed
from tpokit.recipe import Recipe, StageEntry

_LOOKED_AT = 50  # samples of each data entry


def check_conversation(
    recipe: Recipe, stages: Iterable[StageEntry], sources: Mapping[str, DataSource]
) -> None:
    """See that every stage that trains heads and the LLM has conversation in its mix.

    Args:
        recipe: That is about to be trained.
        stages: Those of its stages that are.
        sources: By name of the data entry.

    Raises:
        UsageError: All samples that were looked at (the first ones of each data entry) call heads,
            and the stage does not say ``without_conversation: true``.
    """
    talking: dict[str, bool] = {}
    for stage in stages:
        trained = {part for part, mode in stage.modes.items() if mode != "frozen"}
        heads = trained & set(recipe.heads)
        if stage.without_conversation or not heads or "llm" not in trained:
            continue
        for name in stage.plan.entries:
            if name not in talking:
                talking[name] = _talks(sources[name], name, recipe.seed)
            if talking[name]:
                break
        else:
            raise UsageError(
                f"stage {stage.name!r} trains llm and {listed(heads)}, but its mix has no "
                f"conversation: the first {_LOOKED_AT} samples of {listed(stage.plan.entries)} all "
                "call heads, and a model that learns only that forgets how to talk; add a data "
                "entry with conversation, or say without_conversation: true in the stage"
            )


def _talks(source: DataSource, name: str, seed: int) -> bool:
    """Whether one of the first samples calls no head, as far as one can tell: if none of them can
    be read, training stops and says why.
    """
    tell = False
    for index in range(min(len(source), _LOOKED_AT)):
        try:
            sample = source.read(index, generator(seed, 0, f"{name}/{index}", "look"))
        except DataError:
            continue
        tell = True
        if not sample.calls:
            return True
    return not tell
