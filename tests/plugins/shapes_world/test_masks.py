"""Questions for masks: exact targets, boxes that are given, words that the tiny base knows."""

import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco
from tokenizers import Tokenizer

from tests.plugins.shapes_world.drawn import draw
from tpokit import MediaNeed, PluginError
from tpokit.data.media import read_media
from tpokit.plugins import Plugins
from tpokit_shapes_world.options import KIND_NAMES, ShapesWorldOptions
from tpokit_shapes_world.questions import KINDS
from tpokit_shapes_world.scenes import COLOURS, SHAPES, SceneOptions, make_scene, mask_rle
from tpokit_shapes_world.source import ShapesWorld

# pycocotools 2 is written for numpy 1 here; what it gives is right
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ON_IMAGES = {"mask": 0.6, "two_masks": 0.4}
ON_CLIPS = {"mask": 1.0, "two_masks": 1.0, "track": 1.0, "follow": 1.0}
MASK_KINDS = tuple(ON_CLIPS)
IMAGE = {"kinds": {**ON_IMAGES, "region": 0.5, "colour": 0.5}, "turns": (1, 4), "side": 32}
CLIP = {"kinds": {**ON_CLIPS, "moment": 1.0}, "turns": (1, 4), "frames": 7, "side": 32}
TRACKING = {**CLIP, "interval": (4, 6), "from_start": True}


def decode(target, shape):
    """Masks of a target as pixels, ``[frames, h, w]``, by the reference implementation."""
    empty = {"size": list(shape), "counts": [shape[0] * shape[1]]}
    runs = [entry["mask"]["rle"] if entry["mask"] else empty for entry in target["frames"]]
    return np.moveaxis(coco.decode(coco.frPyObjects(runs, *shape)), -1, 0)


def asked(turns):
    """Places of the objects whose masks are asked for, in reading order."""
    return [place for turn in turns if turn.kind in MASK_KINDS for place in turn.objects]


@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_decode_to_the_mask_they_were_made_of(mask):
    rle = mask_rle(mask)
    assert rle["size"] == list(mask.shape)
    assert sum(rle["counts"]) == mask.size
    assert all(count > 0 for count in rle["counts"][1:])
    np.testing.assert_array_equal(coco.decode([coco.frPyObjects(rle, *mask.shape)])[..., 0], mask)


@pytest.mark.parametrize("options", [IMAGE, CLIP, TRACKING], ids=["image", "clip", "tracking"])
def test_targets_are_the_masks_of_the_renderer(tmp_path, options):
    hidden = 0
    for scene, turns, sample in draw(tmp_path, 60, seed=3, **options):
        places = asked(turns)
        targets = sample.targets.get("mask", ())
        assert len(targets) == len(places)
        for place, target in zip(places, targets, strict=True):
            masks = decode(target, scene.masks.shape[2:])
            np.testing.assert_array_equal(masks, scene.masks[place])
            hidden += sum(entry["mask"] is None for entry in target["frames"])
    assert (hidden > 0) == ("frames" in options)


@pytest.mark.parametrize("options", [IMAGE, CLIP], ids=["image", "clip"])
def test_marks_and_annotations_agree_in_number(tmp_path, options):
    for _, _, sample in draw(tmp_path, 60, seed=4, **options):
        said = {
            role: " ".join(turn.text for turn in sample.turns if turn.role == role)
            for role in ("user", "assistant")
        }
        for task in ("region", "temporal", "mask"):
            assert said["assistant"].count(f"<{task}>") == len(sample.targets.get(task, ()))
            assert said["user"].count(f"<{task}>") == len(sample.given.get(task, ()))


def test_the_mask_of_an_image_needs_no_time_and_those_of_a_clip_have_one_each(tmp_path):
    (image,) = draw(tmp_path, 1, kinds={"mask": 1.0}, turns=(1, 1))
    assert [set(entry) for entry in image.sample.targets["mask"][0]["frames"]] == [{"mask"}]
    (clip,) = draw(tmp_path, 1, kinds={"track": 1.0}, turns=(1, 1), frames=4)
    times = [entry["time_s"] for entry in clip.sample.targets["mask"][0]["frames"]]
    assert times == [0, 1 / 8, 2 / 8, 3 / 8]


def test_the_frames_of_a_written_clip_are_shown_when_its_masks_say(tmp_path):
    options = ShapesWorldOptions(frames=5, kinds={"track": 1.0}, side=32, folder=tmp_path)
    sample = ShapesWorld(options, tmp_path).read(0, np.random.default_rng(0))
    view = read_media(sample.media[0], {"head": MediaNeed(rate=8.0)})["head"]
    times = [entry["time_s"] for entry in sample.targets["mask"][0]["frames"]]
    assert view.times_s == pytest.approx(times)


@pytest.mark.parametrize("options", [CLIP, TRACKING], ids=["anywhere", "from the start"])
def test_a_given_box_is_tight_around_the_object_where_it_is_first_seen(tmp_path, options):
    options = {**options, "kinds": {"follow": 1.0, "track": 0.5}}
    found = 0
    for scene, turns, sample in draw(tmp_path, 30, **options):
        places = [turn.objects[0] for turn in turns if turn.kind == "follow"]
        boxes = sample.given.get("mask", ())
        assert len(boxes) == len(places)
        for place, box in zip(places, boxes, strict=True):
            frame = int(scene.masks[place].any((1, 2)).argmax())
            assert frame == 0 or "from_start" not in options
            assert np.multiply(box, scene.options.side).tolist() == list(scene.box_px(place, frame))
            found += 1
    assert found > 20


def test_objects_asked_for_together_differ_and_are_named_in_the_order_of_their_masks(tmp_path):
    for scene, turns, _ in draw(tmp_path, 40, kinds={"two_masks": 1.0}):
        for turn in turns:
            first, second = (scene.objects[place].name for place in turn.objects)
            assert first != second
            for text in (turn.question, turn.answer):
                assert 0 <= text.index(first) < text.index(second)


def wordings(scene, kinds, tries=40):
    """Questions and answers of each kind about one scene."""
    generator = np.random.default_rng(0)
    drawn = {kind: [KINDS[kind](scene, generator) for _ in range(tries)] for kind in kinds}
    return {kind: [turn for turn in turns if turn is not None] for kind, turns in drawn.items()}


def outline(text):
    """A question without what differs from object to object, and without its question mark."""
    return re.sub(f"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", "X", text).rstrip("?")


def test_no_word_is_unknown_to_the_tiny_base():
    file = resources.files("tpokit_shapes_world") / "base" / "tokenizer.json"
    tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    tokenizer.add_special_tokens(["<region>", "<temporal>", "<mask>"])
    for index in range(4):
        scene = make_scene(0, index, SceneOptions(frames=16))
        for kind, turns in wordings(scene, KINDS).items():
            assert turns or kind not in MASK_KINDS
            for text in {part for turn in turns for part in (turn.question, turn.answer)}:
                pieces = tokenizer.encode(text).tokens
                assert "<unk>" not in pieces, text
                assert pieces == text.replace("?", " ?").split()


def test_no_other_kind_has_the_questions_or_the_first_words_of_the_answers_of_masks():
    for index in range(4):
        scene = make_scene(0, index, SceneOptions(frames=16))
        turns = wordings(scene, KINDS)
        questions = {kind: {outline(turn.question) for turn in turns[kind]} for kind in KINDS}
        begun = {kind: {turn.answer.split()[0] for turn in turns[kind]} for kind in KINDS}
        for kind in MASK_KINDS:
            for other in set(KINDS) - {kind}:
                assert not questions[kind] & questions[other]
            for other in set(KINDS) - set(MASK_KINDS):
                assert not begun[kind] & begun[other]


def test_objects_are_visible_as_long_and_as_early_as_asked_for():
    options = ShapesWorldOptions(frames=8, interval=(6, 8), from_start=True)
    source = ShapesWorld(options, Path())
    shown = [source.scene(index).masks.any((2, 3)) for index in range(40)]
    lengths = {int(length) for masks in shown for length in masks.sum(1)}
    assert lengths == {6, 7, 8}
    assert all(masks[:, 0].all() for masks in shown)


def test_by_default_objects_come_and_go_as_ever():
    assert ShapesWorld(ShapesWorldOptions(frames=16), Path()).scene_options == SceneOptions(
        frames=16, interval_frames=(2, 5), from_start=False
    )
    short = ShapesWorld(ShapesWorldOptions(frames=3), Path()).scene_options
    assert short.interval_frames == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"frames": 8, "interval": [6, 9]},
            r"interval is \[6, 9\]; .* from 1 to the 8 of 'frames'",
        ),
        ({"frames": 8, "interval": [5, 4]}, r"interval is \[5, 4\]; it must be \[fewest, most\]"),
        ({"frames": 8, "interval": [0, 4]}, r"interval is \[0, 4\]; it must be \[fewest, most\]"),
        ({"kinds": {"mask": 1, "follow": 1}}, "follow can only be asked about clips; 'frames'"),
    ],
)
def test_options_that_fit_no_scene_are_refused(options, message):
    plugins = Plugins.load()
    with pytest.raises(PluginError, match=message):
        plugins.options(plugins.spec("source", "shapes_world"), options)


def test_an_image_has_no_question_about_a_way_through_a_clip():
    scene = make_scene(0, 0)
    generator = np.random.default_rng(0)
    assert KINDS["track"](scene, generator) is None
    assert KINDS["follow"](scene, generator) is None


def test_every_kind_can_be_asked_for_and_is_documented():
    assert set(KIND_NAMES) == set(KINDS)
    page = (Path(__file__).parents[3] / "docs" / "shapes_world.md").read_text()
    for name in (*KIND_NAMES, *ShapesWorldOptions.model_fields):
        assert f"`{name}`" in page, name
