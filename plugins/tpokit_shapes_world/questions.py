"""Every kind of question about a scene, with its answer, from the scene's truth.

Each function draws one question of its kind, or gives None where the scene makes every drawn
question ambiguous (two rings, two centres side by side). The answer to a conversation question
follows from the question and the scene alone, so it can be scored by exact match. Questions for
heads are in :mod:`tpokit_shapes_world.head_questions`. Every word of a question or answer is one of
:mod:`tpokit_shapes_world.vocabulary`: the tiny base knows no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from tpokit_shapes_world.head_questions import (
    ask_follow,
    ask_mask,
    ask_moment,
    ask_region,
    ask_track,
    ask_two_masks,
    ask_two_regions,
)
from tpokit_shapes_world.scenes import COLOURS, MOTIONS, SHAPES, Scene, SceneObject
from tpokit_shapes_world.turns import Ask, QuestionAnswer, pick, turn
from tpokit_shapes_world.vocabulary import NUMBERS, plural

_MARGIN = 0.06  # of the side: closer centres are neither left nor right of each other
_MAP_CELLS = 4  # rows and columns of the map of an image
_MAP_SHARE = 0.15  # of a cell's pixels: what covers less is not named


def _centre(scene: Scene, thing: SceneObject) -> tuple[float, float]:
    """Centre in the first visible frame as fractions of the side, x and y."""
    x, y = thing.start_px
    return x / scene.options.side, y / scene.options.side


def _rank(scene: Scene, axis: int) -> list[SceneObject] | None:
    """All objects from left to right (axis 0) or top to bottom (1); None if two are too close."""
    ranked = sorted(scene.objects, key=lambda thing: thing.start_px[axis])
    gaps = [later.start_px[axis] - earlier.start_px[axis] for earlier, later in pairwise(ranked)]
    return ranked if min(gaps, default=scene.options.side) >= _MARGIN * scene.options.side else None


def _ask_colour(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    thing = scene.objects[pick(generator, scene)[0]]
    if sum(other.shape == thing.shape for other in scene.objects) > 1:
        return None
    wordings = (
        f"what colour is the {thing.shape}",
        f"which colour has the {thing.shape}",
        f"tell me the colour of the {thing.shape}",
    )
    return turn(generator, "colour", wordings, thing.colour)


def _ask_shape(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    thing = scene.objects[pick(generator, scene)[0]]
    if sum(other.colour == thing.colour for other in scene.objects) > 1:
        return None
    wordings = (
        f"what shape is the {thing.colour} thing",
        f"what is the {thing.colour} thing",
        f"tell me the shape of the {thing.colour} thing",
    )
    return turn(generator, "shape", wordings, f"a {thing.shape}")


def _ask_count(scene: Scene, generator: np.random.Generator) -> QuestionAnswer:
    what = int(generator.integers(3))
    thing = scene.objects[pick(generator, scene)[0]]
    absent = generator.random() < 0.15  # now and then something that is not there
    if what == 0:
        name, number = "things", len(scene.objects)
    elif what == 1:
        colour = str(generator.choice(COLOURS)) if absent else thing.colour
        name = f"{colour} things"
        number = sum(other.colour == colour for other in scene.objects)
    else:
        shape = str(generator.choice(SHAPES)) if absent else thing.shape
        name, number = plural(shape), sum(other.shape == shape for other in scene.objects)
    wordings = (f"how many {name} are there", f"how many {name} do you see")
    return turn(generator, "count", wordings, NUMBERS[number])


def _ask_existence(scene: Scene, generator: np.random.Generator) -> QuestionAnswer:
    thing = scene.objects[pick(generator, scene)[0]]
    names = {other.name for other in scene.objects}
    name = thing.name
    if generator.random() < 0.5:
        near = [f"{thing.colour} {shape}" for shape in SHAPES]
        near += [f"{colour} {thing.shape}" for colour in COLOURS]
        name = str(generator.choice([other for other in near if other not in names]))
    wordings = (f"is there a {name}", f"do you see a {name}", f"can you see a {name} here")
    return turn(generator, "existence", wordings, "yes" if name in names else "no")


def _ask_relation(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    if len(scene.objects) < 2:
        return None
    first, second = (scene.objects[place] for place in pick(generator, scene, 2))
    axis = int(generator.integers(2))
    gap = _centre(scene, first)[axis] - _centre(scene, second)[axis]
    if abs(gap) < _MARGIN:
        return None
    words = (("left of", "right of"), ("above", "below"))[axis]
    true = words[int(gap > 0)]
    if generator.random() < 0.5:
        asked = words[int(generator.integers(2))]
        wordings: tuple[str, ...] = (
            f"is the {first.name} {asked} the {second.name}",
            f"can you say that the {first.name} is {asked} the {second.name}",
        )
        return turn(generator, "relation", wordings, "yes" if asked == true else "no")
    choice = ("left or right of", "above or below")[axis]
    wordings = (f"is the {first.name} {choice} the {second.name}",)
    return turn(generator, "relation", wordings, true.removesuffix(" of"))


def _ask_half(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    """Which side, half or quarter: on purpose close to the words of a region question."""
    thing = scene.objects[pick(generator, scene)[0]]
    x, y = _centre(scene, thing)
    what = int(generator.integers(3))
    level, side = "upper" if y < 0.5 else "lower", "left" if x < 0.5 else "right"
    doubt = (abs(x - 0.5), abs(y - 0.5), min(abs(x - 0.5), abs(y - 0.5)))[what]
    if doubt < _MARGIN / 2:
        return None
    name = thing.name
    if what == 0:
        wordings: tuple[str, ...] = (
            f"on which side is the {name}",
            f"where is the {name} , left or right",
            f"find the side of the {name}",
        )
        return turn(generator, "half", wordings, f"on the {side}")
    if what == 1:
        wordings = (
            f"in which half is the {name} , upper or lower",
            f"where is the {name} , in the upper or the lower half",
        )
        return turn(generator, "half", wordings, f"in the {level} half")
    wordings = (
        f"in which quarter is the {name}",
        f"tell me the quarter where the {name} is",
        f"show me in which quarter the {name} is",
    )
    return turn(generator, "half", wordings, f"in the {level} {side} quarter")


def _ask_cell(scene: Scene, generator: np.random.Generator) -> QuestionAnswer:
    """Where on a board of eight by eight: a place in words, finer than halves and quarters."""
    thing = scene.objects[pick(generator, scene)[0]]
    column, row = (NUMBERS[1 + min(int(8 * at), 7)] for at in _centre(scene, thing))
    wordings = (
        f"in which column and row is the {thing.name}",
        f"tell me the column and row of the {thing.name}",
    )
    return turn(generator, "cell", wordings, f"column {column} row {row}")


def _ask_beside(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    thing = scene.objects[pick(generator, scene)[0]]
    axis, direction = int(generator.integers(2)), int(generator.integers(2))
    ranked = _rank(scene, axis)
    if ranked is None:
        return None
    place = ranked.index(thing)
    found = ranked[place + 1 :] if direction else ranked[:place]
    word = (("left of", "right of"), ("above", "below"))[axis][direction]
    names = " and ".join(f"the {other.name}" for other in found) or "nothing"
    wordings = (f"what is {word} the {thing.name}", f"which things are {word} the {thing.name}")
    return turn(generator, "beside", wordings, names)


def _ask_extreme(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    axis, last = int(generator.integers(2)), int(generator.integers(2))
    ranked = _rank(scene, axis)
    if ranked is None:
        return None
    word = (("leftmost", "rightmost"), ("highest", "lowest"))[axis][last]
    wordings = (f"what is the {word} thing", f"which thing is the {word}")
    return turn(generator, "extreme", wordings, f"the {ranked[-last].name}")


def _ask_listing(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    ranked = _rank(scene, 0)
    if ranked is None:
        return None
    wordings = (
        "list all things from left to right",
        "what do you see from left to right",
        "name all things from left to right",
    )
    answer = " and ".join(f"a {thing.name}" for thing in ranked)
    return turn(generator, "listing", wordings, answer)


def _ask_layout(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    """The listing with a coarse column and row of each object: three by three."""
    ranked = _rank(scene, 0)
    if ranked is None:
        return None
    parts = []
    for thing in ranked:
        x, y = (min(int(3 * at), 2) for at in _centre(scene, thing))
        parts.append(
            f"{thing.name} {('left', 'middle', 'right')[x]} {('top', 'middle', 'bottom')[y]}"
        )
    wordings = (
        "describe the picture",
        "what is in this picture and where",
    )
    return turn(generator, "layout", wordings, " , ".join(parts))


def _map_cells(scene: Scene) -> list[SceneObject | None]:
    """What covers most of each cell of a coarse grid, row after row; None for next to nothing."""
    cell = scene.options.side // _MAP_CELLS
    inside = _MAP_CELLS * cell
    grid = scene.masks[:, 0, :inside, :inside]
    grid = grid.reshape(len(grid), _MAP_CELLS, cell, _MAP_CELLS, cell)
    covered = grid.mean((2, 4)).reshape(len(grid), -1)  # [objects, cells]
    return [
        scene.objects[place] if covered[place, number] >= _MAP_SHARE else None
        for number, place in enumerate(covered.argmax(0))
    ]


def _ask_colour_map(scene: Scene, generator: np.random.Generator) -> QuestionAnswer:
    """One word for each cell: the densest question, it teaches a model to see first of all.

    One wording and no question mark, so that a word of the answer is always as far from its cell.
    """
    words = [thing.colour if thing else "none" for thing in _map_cells(scene)]
    return QuestionAnswer("colour_map", "name the colour row after row", " ".join(words))


def _ask_shape_map(scene: Scene, generator: np.random.Generator) -> QuestionAnswer:
    """As :func:`_ask_colour_map`, with shapes."""
    words = [thing.shape if thing else "none" for thing in _map_cells(scene)]
    return QuestionAnswer("shape_map", "name the shape row after row", " ".join(words))


def _ask_motion(scene: Scene, generator: np.random.Generator) -> QuestionAnswer:
    thing = scene.objects[pick(generator, scene)[0]]
    answer = "it stays still" if thing.motion == "still" else thing.motion
    wordings = (
        f"which way does the {thing.name} move",
        f"tell me which way the {thing.name} moves",
    )
    return turn(generator, "motion", wordings, answer)


def _ask_mover(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    motion = str(generator.choice(list(MOTIONS)))
    movers = [thing for thing in scene.objects if thing.motion == motion]
    if len(movers) > 1:
        return None
    verb = "stays still" if motion == "still" else f"moves {motion}"
    answer = f"the {movers[0].name}" if movers else "nothing"
    return turn(generator, "mover", (f"what {verb}", f"which thing {verb}"), answer)


def _ask_order(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    if len(scene.objects) < 2:
        return None
    first, second = (scene.objects[place] for place in pick(generator, scene, 2))
    if abs(first.first_frame - second.first_frame) < 2:
        return None
    earlier = first if first.first_frame < second.first_frame else second
    if generator.random() < 0.5:
        wordings: tuple[str, ...] = (f"what comes first , the {first.name} or the {second.name}",)
        return turn(generator, "order", wordings, f"the {earlier.name}")
    before = bool(generator.integers(2))
    wordings = (f"is the {first.name} seen {'before' if before else 'after'} the {second.name}",)
    return turn(generator, "order", wordings, "yes" if (earlier is first) == before else "no")


KINDS: Mapping[str, Ask] = MappingProxyType(
    {
        "colour": _ask_colour,
        "shape": _ask_shape,
        "count": _ask_count,
        "existence": _ask_existence,
        "relation": _ask_relation,
        "half": _ask_half,
        "cell": _ask_cell,
        "beside": _ask_beside,
        "extreme": _ask_extreme,
        "listing": _ask_listing,
        "layout": _ask_layout,
        "colour_map": _ask_colour_map,
        "shape_map": _ask_shape_map,
        "region": ask_region,
        "two_regions": ask_two_regions,
        "motion": _ask_motion,
        "mover": _ask_mover,
        "order": _ask_order,
        "moment": ask_moment,
        "mask": ask_mask,
        "two_masks": ask_two_masks,
        "track": ask_track,
        "follow": ask_follow,
    }
)
