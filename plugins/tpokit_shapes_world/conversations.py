"""Dialogues about a scene: turns of several kinds, drawn by a mixture.

A conversation turn is answered in words alone; a region, moment or mask turn calls a head: the
marker ``<region>``, ``<temporal>`` or ``<mask>`` in its answer stands where the head's trigger
goes. Some conversation questions look much like region questions ("in which half is the red
ring"), so that calling the right head is a real decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tpokit_shapes_world.questions import KINDS
from tpokit_shapes_world.scenes import Scene
from tpokit_shapes_world.turns import QuestionAnswer

CONVERSATION_MIXTURE: Mapping[str, float] = MappingProxyType(
    {
        "colour": 1.0,
        "shape": 1.0,
        "count": 1.0,
        "existence": 1.0,
        "relation": 1.5,
        "half": 1.5,
        "beside": 0.5,
        "extreme": 0.5,
        "listing": 0.5,
        "layout": 0.5,
    }
)
REGION_MIXTURE: Mapping[str, float] = MappingProxyType({"region": 0.7, "two_regions": 0.3})
CLIP_MIXTURE: Mapping[str, float] = MappingProxyType({"motion": 1.0, "mover": 1.0, "order": 1.0})
MOMENT_MIXTURE: Mapping[str, float] = MappingProxyType({"moment": 1.0})


def converse(
    scene: Scene,
    generator: np.random.Generator,
    mixture: Mapping[str, float] | None = None,
    turns: tuple[int, int] = (1, 3),
    opening: str | None = None,
) -> tuple[QuestionAnswer, ...]:
    """Draw a dialogue about one scene, no question twice.

    Args:
        scene: What is asked about.
        generator: Draws kinds, objects and wordings.
        mixture: Relative share of each kind in the turns; ``CONVERSATION_MIXTURE`` of images or
            ``CLIP_MIXTURE`` of clips by default.
        turns: Fewest and most turns, both possible; fewer only if the scene allows no more.
        opening: Kind of one more turn before these; left out if the scene does not allow it.

    Raises:
        ValueError: The mixture names a kind that does not exist.
    """
    if mixture is None:
        mixture = CONVERSATION_MIXTURE if scene.options.frames == 1 else CLIP_MIXTURE
    unknown = sorted({*mixture, *([opening] if opening else [])} - set(KINDS))
    if unknown:
        raise ValueError(f"no kind of question named {unknown}; there are {sorted(KINDS)}")
    kinds = list(mixture)
    shares = np.array([mixture[kind] for kind in kinds], float)
    wanted = int(generator.integers(turns[0], turns[1] + 1))
    first = KINDS[opening](scene, generator) if opening else None
    dialogue = [first] if first else []
    wanted += len(dialogue)
    for _ in range(20 * wanted):
        if len(dialogue) == wanted:
            break
        kind = kinds[int(generator.choice(len(kinds), p=shares / shares.sum()))]
        turn = KINDS[kind](scene, generator)
        if turn is not None and all(turn.question != earlier.question for earlier in dialogue):
            dialogue.append(turn)
    return tuple(dialogue)
