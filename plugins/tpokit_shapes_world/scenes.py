"""Scenes of the shapes world: what is where and when, and the exact truth about it.

A scene is a handful of plain shapes on a square canvas, as one image or as a short clip in which
every object moves straight and is visible for one interval. Everything here is geometry; colours
and pixels are in :mod:`tpokit_shapes_world.painting`. All truth (masks, boxes, moments, saliency)
is computed from the outlines that are painted, so it is exact to the pixel.

Coordinates are pixels of the canvas, x to the right and y downwards; the centre of the pixel in
column ``i`` is at ``i + 0.5``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
_LAYOUT_TRIES = 200

Mask = NDArray[np.bool_]


class SceneError(ValueError):
    """Options that no scene can satisfy."""


@dataclass(frozen=True)
class SceneOptions:
    """How scenes are drawn; every length is a fraction of the side of the canvas.

    The defaults are chosen so that no constant answer scores: the best constant box reaches an
    Acc@0.5 below 0.15, the best constant moment of a 16-frame clip a mean IoU of about 0.25.
    """

    side: int = 64  # pixels, width and height
    frames: int = 1  # 1: an image; more: a clip
    fps: float = 8.0  # frames per second of a clip
    objects: tuple[int, int] = (2, 3)  # fewest and most, both possible
    radius: tuple[float, float] = (0.14, 0.24)
    distractor_share: float = 0.3  # chance that a further object resembles the first
    interval_frames: tuple[int, int] = (2, 5)  # fewest and most visible frames in a clip
    from_start: bool = False  # all objects are there in the first frame of a clip
    speed: tuple[float, float] = (0.03, 0.06)  # per frame, of what moves
    min_visible: float = 0.6  # least share of an object's area that others leave visible
    background_contrast: float = 0.35  # peak to peak, of a range of brightness of 1
    noise: float = 0.03  # standard deviation of each pixel and channel

    def __post_init__(self) -> None:
        """Report every impossible value at once."""
        problems = [
            message
            for wrong, message in (
                (self.side < 16, f"side is {self.side} pixels, at least 16 are needed"),
                (self.frames < 1, f"frames is {self.frames}, at least 1 is needed"),
                (self.fps <= 0, f"fps is {self.fps}, it must be positive"),
                (
                    not 1 <= self.objects[0] <= self.objects[1] <= len(SHAPES) * len(COLOURS),
                    f"objects is {self.objects}, not a range between 1 and 48",
                ),
                (
                    not 0 < self.radius[0] <= self.radius[1] < 0.5,
                    f"radius is {self.radius}, not a range between 0 and 0.5",
                ),
                (
                    not 1 <= self.interval_frames[0] <= self.interval_frames[1],
                    f"interval_frames is {self.interval_frames}, not a range from 1",
                ),
                (
                    self.frames > 1 and self.interval_frames[1] > self.frames,
                    f"interval_frames is {self.interval_frames}, but a clip has {self.frames}",
                ),
                (
                    not 0 <= self.min_visible <= 1,
                    f"min_visible is {self.min_visible}, not a share between 0 and 1",
                ),
            )
            if wrong
        ]
        if problems:
            raise SceneError("; ".join(problems))


@dataclass(frozen=True)
class SceneObject:
    """One shape with one colour on one straight way."""

    shape: str  # one of SHAPES
    colour: str  # one of COLOURS
    radius_px: float
    start_px: tuple[float, float]  # centre in its first visible frame, x and y
    motion: str = "still"  # one of MOTIONS
    speed_px: float = 0.0  # per frame
    first_frame: int = 0
    stop_frame: int = 1  # the first frame in which it is gone

    @property
    def name(self) -> str:
        """Colour and shape, such as "red ring"; unique in its scene."""
        return f"{self.colour} {self.shape}"

    def centre_px(self, frame: int) -> tuple[float, float]:
        """Where the centre is in a frame, x and y, also outside its visible interval."""
        step_x, step_y = MOTIONS[self.motion]
        way = self.speed_px * (frame - self.first_frame)
        return self.start_px[0] + step_x * way, self.start_px[1] + step_y * way


@dataclass(frozen=True)
class Scene:
    """What is seen, complete: painting it twice gives the same pixels."""

    seed: int
    index: int
    options: SceneOptions
    objects: tuple[SceneObject, ...]  # in painting order: a later one hides an earlier one
    masks: Mask = field(repr=False, compare=False)  # visible pixels [objects, frames, side, side]

    @property
    def duration_s(self) -> float:
        """Length of the clip in seconds (of an image: of one frame)."""
        return self.options.frames / self.options.fps

    def box_px(self, thing: int, frame: int = 0) -> tuple[int, int, int, int] | None:
        """Corners x0, y0, x1, y1 of the visible pixels, the right and lower edge exclusive.

        None where nothing of the object is visible in that frame.
        """
        return mask_box(self.masks[thing, frame])

    def moment_s(self, thing: int) -> tuple[float, float]:
        """Start and end in seconds of the interval in which the object is visible."""
        shown = self.objects[thing]
        return shown.first_frame / self.options.fps, shown.stop_frame / self.options.fps

    def saliency(self, thing: int) -> NDArray[np.float32]:
        """Share of the object's own area that is visible in each frame, ``[frames]`` in 0..1."""
        shares = np.zeros(self.options.frames, np.float32)
        shown = self.objects[thing]
        for frame in range(shown.first_frame, shown.stop_frame):
            whole = outline_mask(shown, frame, self.options.side).sum()
            shares[frame] = self.masks[thing, frame].sum() / max(whole, 1)
        return shares


def scene_generator(seed: int, index: int, purpose: str) -> np.random.Generator:
    """The random generator of one purpose in one scene, independent of all others."""
    return np.random.default_rng([seed, index, zlib.crc32(purpose.encode())])


def make_scene(seed: int, index: int, options: SceneOptions | None = None) -> Scene:
    """Draw the scene number ``index`` of the world ``seed``; the same numbers, the same scene.

    Looks and positions are drawn again until every object shows at least ``min_visible`` of its
    area in every frame of its interval, and no two objects of one colour overlap (their edge would
    be invisible).

    Raises:
        SceneError: So many or so large objects that no such layout was found.
    """
    options = options or SceneOptions()
    generator = scene_generator(seed, index, "layout")
    count = int(generator.integers(options.objects[0], options.objects[1] + 1))
    for _ in range(_LAYOUT_TRIES):
        looks = _draw_looks(generator, count, options.distractor_share)
        objects = [_place(generator, shape, colour, options) for colour, shape in looks]
        objects = [objects[place] for place in generator.permutation(count)]
        outlines = _outlines(objects, options)
        masks = _hide(outlines)
        whole = np.maximum(outlines.sum((2, 3)), 1)
        shown = masks.sum((2, 3)) / whole + ~outlines.any((2, 3))
        if (shown >= options.min_visible).all() and not _blurred(objects, outlines):
            return Scene(seed, index, options, tuple(objects), masks)
    raise SceneError(
        f"scene {index} of seed {seed}: no layout of {count} objects of radius {options.radius} "
        f"shows {options.min_visible:.0%} of each; ask for fewer, smaller or more hidden objects"
    )


def outline_mask(thing: SceneObject, frame: int, side: int) -> Mask:
    """Pixels ``[side, side]`` of an object in a frame as if nothing hid it."""
    centre_x, centre_y = thing.centre_px(frame)
    places = np.arange(side, dtype=np.float32) + 0.5
    across = ((places - centre_x) / thing.radius_px)[None, :]  # [1, side], 1 is one radius
    along = ((places - centre_y) / thing.radius_px)[:, None]  # [side, 1]
    wide, high = np.abs(across), np.abs(along)
    distance = across**2 + along**2
    outline: dict[str, Callable[[], Mask]] = {
        "square": lambda: np.maximum(wide, high) <= 0.85,
        "triangle": lambda: (along <= 0.8) & (wide <= (along + 1) / 1.8),
        "cross": lambda: np.where(wide <= 0.36, high <= 1, (high <= 0.36) & (wide <= 1)),
        "diamond": lambda: wide + high <= 1.05,
        "ring": lambda: (distance <= 1) & (distance >= 0.55**2),
        "circle": lambda: distance <= 1,
    }
    return outline[thing.shape]()


def mask_box(mask: Mask) -> tuple[int, int, int, int] | None:
    """Tight box of a mask ``[h, w]``: x0, y0, x1, y1 in pixels, the last two exclusive."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not columns.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_rle(mask: Mask) -> dict[str, list[int]]:
    """COCO's run lengths of a mask ``[h, w]``, not compressed.

    ``size`` is [h, w]; ``counts`` has the lengths of the runs down one column after the other, the
    first of pixels outside: 0 if the first pixel is inside.
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff(changes, prepend=0, append=flat.size)
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _draw_looks(
    generator: np.random.Generator, count: int, distractor_share: float
) -> list[tuple[str, str]]:
    """Colour and shape of each object, no pair twice; the first one is what others resemble."""
    looks: list[tuple[str, str]] = []
    while len(looks) < count:
        colour, shape = str(generator.choice(COLOURS)), str(generator.choice(SHAPES))
        if looks and generator.random() < distractor_share:
            if generator.random() < 0.5:
                colour = looks[0][0]
            else:
                shape = looks[0][1]
        if (colour, shape) not in looks:
            looks.append((colour, shape))
    return looks


def _place(
    generator: np.random.Generator, shape: str, colour: str, options: SceneOptions
) -> SceneObject:
    """Put an object somewhere, on a way that stays inside the canvas while it is visible."""
    side = options.side
    radius = generator.uniform(*options.radius) * side
    if options.frames == 1:
        centre = generator.uniform(radius, side - radius, 2)
        return SceneObject(shape, colour, float(radius), (float(centre[0]), float(centre[1])))
    length = int(generator.integers(options.interval_frames[0], options.interval_frames[1] + 1))
    latest = 0 if options.from_start else options.frames - length
    first = int(generator.integers(0, latest + 1))
    motion = str(generator.choice(list(MOTIONS)))
    room = (side - 2 * radius) / max(length - 1, 1)  # the longest step that stays inside
    speed = min(generator.uniform(*options.speed) * side, room) if motion != "still" else 0.0
    start = []
    for direction in MOTIONS[motion]:
        way = direction * speed * (length - 1)
        low, high = radius - min(way, 0), side - radius - max(way, 0)
        start.append(float(generator.uniform(low, max(low, high))))
    place = (start[0], start[1])
    return SceneObject(
        shape, colour, float(radius), place, motion, float(speed), first, first + length
    )


def _outlines(objects: Sequence[SceneObject], options: SceneOptions) -> Mask:
    """Pixels of each object as if alone, ``[objects, frames, side, side]``."""
    outlines = np.zeros((len(objects), options.frames, options.side, options.side), bool)
    for number, thing in enumerate(objects):
        for frame in range(thing.first_frame, thing.stop_frame):
            outlines[number, frame] = outline_mask(thing, frame, options.side)
    return outlines


def _hide(outlines: Mask) -> Mask:
    """What remains visible of each outline ``[objects, ...]`` behind all later ones."""
    visible = outlines.copy()
    taken = np.zeros(outlines.shape[1:], bool)
    for number in reversed(range(len(outlines))):
        visible[number] &= ~taken
        taken |= outlines[number]
    return visible


def _blurred(objects: Sequence[SceneObject], outlines: Mask) -> bool:
    """Whether two objects of one colour overlap in some frame."""
    return any(
        objects[first].colour == objects[second].colour
        and bool((outlines[first] & outlines[second]).any())
        for first in range(len(objects))
        for second in range(first)
    )
