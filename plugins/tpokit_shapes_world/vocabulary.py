"""The closed word list of the shapes world: every word of its questions and answers.

The order is part of the released tiny model (a word's place is its id), so words are only ever
added at the end.
"""

from __future__ import annotations

from tpokit_shapes_world.scenes import COLOURS, SHAPES

PAD, UNKNOWN = "<pad>", "<unk>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
IMAGE, VIDEO = "<image>", "<video>"
SPECIAL_WORDS = (PAD, UNKNOWN, TURN_START, TURN_END, IMAGE, VIDEO)

ROLES = ("system", "user", "assistant")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLACES = (
    *("left", "right", "up", "down", "upper", "lower", "top", "bottom", "middle", "above"),
    *("below", "leftmost", "rightmost", "highest", "lowest", "half", "quarter", "side"),
    *("column", "row"),
)
PLURALS = tuple(f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES)
THINGS = ("thing", "things", "picture", "image", "clip", "video", "colour", "shape")
FUNCTION_WORDS = (
    *("a", "an", "the", "is", "are", "was", "it", "its", "this", "that", "there", "here", "in"),
    *("on", "at", "of", "to", "from", "and", "or", "not", "no", "yes", "nothing", "none", "all"),
    *("what", "which", "where", "when", "how", "many", "does", "do", "can", "you", "me", "i"),
    *("see", "seen", "say", "tell", "name", "list", "describe", "find", "show", "point", "locate"),
    *("move", "moves", "stay", "stays", "still", "way", "visible", "appears", "comes", "before"),
    *("after", "first", "last", "with", "has", "have", "please", "be", "helpful"),
)
PUNCTUATION = ("?", ".", ",", ":", "!")
LATER_WORDS = (
    *("segment", "mask", "cut", "out", "follow", "track", "through", "box", "whole", "object"),
)
"""Words that came after the tiny model was trained: it knows them as strange ones, each by a row of
its table that was never used, and learns with its heads what they mean."""

WORDS = (
    *SPECIAL_WORDS,
    *ROLES,
    *COLOURS,
    *SHAPES,
    *PLURALS,
    *NUMBERS,
    *PLACES,
    *THINGS,
    *FUNCTION_WORDS,
    *PUNCTUATION,
    *LATER_WORDS,
)


def plural(shape: str) -> str:
    """The plural of one of the shapes."""
    return PLURALS[SHAPES.index(shape)]
