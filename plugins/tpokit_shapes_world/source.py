"""The shapes world as a data source: files are written when a sample is first read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tpokit import DataError, DataSource, Media, Options, Sample, Turn
from tpokit_shapes_world.conversations import CLIP_MIXTURE, CONVERSATION_MIXTURE, converse
from tpokit_shapes_world.head_questions import MASK_MARKER, REGION_MARKER, TEMPORAL_MARKER
from tpokit_shapes_world.options import ShapesWorldOptions
from tpokit_shapes_world.painting import write_mp4, write_png
from tpokit_shapes_world.scenes import Scene, SceneError, SceneOptions, make_scene, mask_rle
from tpokit_shapes_world.turns import QuestionAnswer

_SPLITS = {"train": 0, "validation": 1, "test": 2}
_TRIES = 20


class ShapesWorld(DataSource):
    """Conversations, boxes, masks and moments about procedural scenes.

    Targets: task ``region``: the box of an object, four fractions of the image. Task ``temporal``:
    ``moments_s`` (start and end in seconds) and ``saliency`` (one value in [0, 1] a frame). Task
    ``mask``: ``frames``, one entry for each frame of the medium with ``mask`` (``rle``: COCO's run
    lengths, not compressed; None where the object is not visible) and, in a clip, ``time_s``.
    Given for the task ``mask``, in questions of the kind ``follow``: the box of an object in the
    first frame that shows it, four fractions of the image.
    """

    Options = ShapesWorldOptions

    def __init__(self, options: Options, folder: Path) -> None:
        """Prepare the scenes; nothing is drawn yet."""
        assert isinstance(options, ShapesWorldOptions)
        self._options = options
        interval = options.interval or (min(2, options.frames), min(5, options.frames))
        try:
            self.scene_options = SceneOptions(
                side=options.side,
                frames=options.frames,
                objects=options.objects,
                radius=options.radius,
                distractor_share=options.distractor_share,
                interval_frames=interval,
                from_start=options.from_start,
            )
        except SceneError as cause:
            raise DataError(f"shapes_world: {cause}") from cause
        default = CONVERSATION_MIXTURE if options.frames == 1 else CLIP_MIXTURE
        self._mixture = options.kinds or dict(default)
        self._seed = 3 * options.seed + _SPLITS[options.split]
        look = hashlib.blake2b(repr((self._seed, self.scene_options)).encode(), digest_size=6)
        root = folder / options.folder if options.folder else _cache()
        self.folder = root / f"{options.split}-{look.hexdigest()}"

    def __len__(self) -> int:
        """Number of scenes."""
        return self._options.scenes

    def scene(self, index: int) -> Scene:
        """The scene of a sample, with all its truth."""
        return make_scene(self._seed, index, self.scene_options)

    def read(self, index: int, random: np.random.Generator) -> Sample:
        """A conversation about scene ``index``; wording and objects are drawn by ``random``."""
        scene = self.scene(index)
        for _ in range(_TRIES):  # a scene may make a single kind of question impossible
            turns = converse(scene, random, self._mixture, self._options.turns)
            if turns:
                return Sample(
                    id=str(index),
                    turns=tuple(_turns(turns)),
                    media=(self._medium(scene),),
                    targets=_targets(scene, turns),
                    given=_given(scene, turns),
                )
        raise DataError(
            f"shapes_world: scene {index} allows no question of the kinds {sorted(self._mixture)}"
        )

    def _medium(self, scene: Scene) -> Media:
        """The file of a scene, written if it is not there."""
        image = scene.options.frames == 1
        path = self.folder / f"{scene.index:06d}{'.png' if image else '.mp4'}"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            (write_png if image else write_mp4)(scene, path)
        return Media("image" if image else "video", path)


def _turns(turns: Sequence[QuestionAnswer]) -> list[Turn]:
    said: list[Turn] = []
    for turn in turns:
        said += [Turn("user", turn.question), Turn("assistant", turn.answer)]
    return said


def _targets(scene: Scene, turns: Sequence[QuestionAnswer]) -> dict[str, tuple[Any, ...]]:
    found = {
        task: tuple(
            annotate(scene, thing)
            for turn in turns
            if marker in turn.answer
            for thing in turn.objects
        )
        for task, (marker, annotate) in _ANNOTATIONS.items()
    }
    return {task: targets for task, targets in found.items() if targets}


def _given(scene: Scene, turns: Sequence[QuestionAnswer]) -> dict[str, tuple[Any, ...]]:
    boxes = tuple(
        _box(scene, thing)
        for turn in turns
        if MASK_MARKER in turn.question
        for thing in turn.objects
    )
    return {"mask": boxes} if boxes else {}


def _box(scene: Scene, thing: int) -> tuple[float, ...]:
    """Box in the first frame that shows the object, as fractions of the canvas."""
    frame = scene.objects[thing].first_frame
    corners = scene.box_px(thing, frame)
    assert corners is not None, "every object shows at least min_visible of its area"
    return tuple(corner / scene.options.side for corner in corners)


def _moment(scene: Scene, thing: int) -> dict[str, Any]:
    return {"moments_s": [scene.moment_s(thing)], "saliency": scene.saliency(thing).tolist()}


def _masks(scene: Scene, thing: int) -> dict[str, Any]:
    """Visible pixels in every frame."""
    masks = [{"rle": mask_rle(mask)} if mask.any() else None for mask in scene.masks[thing]]
    if scene.options.frames == 1:
        return {"frames": [{"mask": masks[0]}]}
    return {
        "frames": [
            {"time_s": frame / scene.options.fps, "mask": mask} for frame, mask in enumerate(masks)
        ]
    }


_ANNOTATIONS = {  # task to its marker in an answer and to what is right of one object
    "region": (REGION_MARKER, _box),
    "temporal": (TEMPORAL_MARKER, _moment),
    "mask": (MASK_MARKER, _masks),
}


def _cache() -> Path:
    return Path.home() / ".cache" / "tpokit" / "shapes_world"
