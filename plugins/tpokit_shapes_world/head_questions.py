"""Questions that a head answers: where, when, which pixels, and where it goes.

An answer contains markers where a head's trigger goes, and no numbers of a box. Each function draws
one question, or gives None where the scene allows none of its kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tpokit_shapes_world.scenes import Scene
from tpokit_shapes_world.turns import QuestionAnswer, pick, turn

REGION_MARKER, TEMPORAL_MARKER, MASK_MARKER = "<region>", "<temporal>", "<mask>"

# {one}, {other}: names of objects; {mark}: the marker of the head
_REGION = (
    "where is the {one}",
    "find the {one}",
    "show me the {one}",
    "point to the {one}",
    "locate the {one}",
    "can you show me where the {one} is",
)
_REGION_ANSWERS = ("it is here {mark}", "here it is {mark}", "here is the {one} {mark}")
_TWO_REGIONS = (
    "where are the {one} and the {other}",
    "find the {one} and the {other}",
    "show me the {one} and the {other}",
)
# not "the ... is here": answers in words begin like that ("the red ring and the blue cross")
_TWO_REGIONS_ANSWERS = ("here is the {one} {mark} and here is the {other} {mark}",)
_MOMENT = (
    "when is the {one} visible",
    "when do you see the {one}",
    "tell me when the {one} is seen",
)
_MOMENT_ANSWERS = ("it is visible here {mark}",)
_MASK = (
    "segment the {one}",
    "can you segment the {one}",
    "mask the {one}",
    "cut out the {one}",
    "show me the mask of the {one}",
)
# "this" begins no other answer, so the first word decides between box and mask
_MASK_ANSWERS = ("this is the mask {mark}", "this is its mask {mark}", "this is the {one} {mark}")
_TWO_MASKS = (
    "segment the {one} and the {other}",
    "can you segment the {one} and the {other}",
    "mask the {one} and the {other}",
)
_TWO_MASKS_ANSWERS = ("this is the {one} {mark} and this is the {other} {mark}",)
_TRACK = (
    "follow the {one}",
    "track the {one}",
    "can you follow the {one}",
    "can you track the {one}",
    "follow the {one} through the clip",
)
_TRACK_ANSWERS = ("i follow it {mark}", "i track it {mark}", "i follow the {one} {mark}")
_FOLLOW = (
    "follow the thing at {mark}",
    "track the thing at {mark}",
    "can you follow what is in {mark}",
    "track the object in {mark}",
    "follow the thing at {mark} through the clip",
)
_FOLLOW_ANSWERS = ("i follow it {mark}", "i track it {mark}")


def ask_region(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    """Where an object is, for a box."""
    return _asked("region", scene, generator, 1, REGION_MARKER, _REGION, _REGION_ANSWERS)


def ask_two_regions(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    """Where two objects are."""
    return _asked(
        "two_regions", scene, generator, 2, REGION_MARKER, _TWO_REGIONS, _TWO_REGIONS_ANSWERS
    )


def ask_moment(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    """When an object is visible."""
    return _asked("moment", scene, generator, 1, TEMPORAL_MARKER, _MOMENT, _MOMENT_ANSWERS)


def ask_mask(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    """Which pixels are an object's."""
    return _asked("mask", scene, generator, 1, MASK_MARKER, _MASK, _MASK_ANSWERS)


def ask_two_masks(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    """Which pixels are those of two objects."""
    return _asked("two_masks", scene, generator, 2, MASK_MARKER, _TWO_MASKS, _TWO_MASKS_ANSWERS)


def ask_track(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    """Where an object goes in a clip."""
    if scene.options.frames == 1:
        return None
    return _asked("track", scene, generator, 1, MASK_MARKER, _TRACK, _TRACK_ANSWERS)


def ask_follow(scene: Scene, generator: np.random.Generator) -> QuestionAnswer | None:
    """As :func:`ask_track`, but the object is not named: its box is given."""
    if scene.options.frames == 1:
        return None
    return _asked("follow", scene, generator, 1, MASK_MARKER, _FOLLOW, _FOLLOW_ANSWERS)


def _asked(
    kind: str,
    scene: Scene,
    generator: np.random.Generator,
    count: int,
    mark: str,
    questions: Sequence[str],
    answers: Sequence[str],
) -> QuestionAnswer | None:
    """A question about ``count`` objects; None if there are not so many."""
    if len(scene.objects) < count:
        return None
    places = tuple(pick(generator, scene, count))
    names = [scene.objects[place].name for place in places]
    words = {"one": names[0], "other": names[-1], "mark": mark}
    answer = answers[int(generator.integers(len(answers))) if len(answers) > 1 else 0]
    wordings = [question.format(**words) for question in questions]
    return turn(generator, kind, wordings, answer.format(**words), places)
