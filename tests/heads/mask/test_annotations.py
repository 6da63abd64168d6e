"""Masks as they stand in annotations: every form, every rule, every message."""

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from tpokit import DataError
from tpokit.types import MediaInfo
from tpokit_jsonl.options import JsonlOptions
from tpokit_jsonl.source import JsonlSource
from tpokit_mask.annotations import UNKNOWN, read_annotation
from tpokit_mask.run_lengths import decode_run_lengths

IMAGE = MediaInfo("image", width=6, height=4)
VIDEO = MediaInfo("video", width=6, height=4, duration_s=2.0)


def square():
    """Rows 1 and 2 of columns 2 to 4 of an image of 4 x 6."""
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:5] = True
    return mask


def compressed(mask):
    found = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


RUNS = {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]}
POLYGONS = {"polygons": [[2, 1, 5, 1, 5, 3, 2, 3]], "size": [4, 6]}


def image(annotation, folder=None):
    return read_annotation(annotation, IMAGE, "own/a1", folder)


def video(*frames):
    return read_annotation({"frames": list(frames)}, VIDEO, "own/v1")


def png(path, numbers, mode="L"):
    picture = Image.fromarray(np.asarray(numbers))
    if mode == "P":
        picture.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    picture.save(path)
    return {"png": path.name}


# ---- forms ----


@pytest.mark.parametrize(
    "mask",
    [
        {"rle": compressed(square())},
        {"rle": {**compressed(square()), "counts": compressed(square())["counts"].encode()}},
        {"rle": RUNS},
        {"rle": {"size": (4, 6), "counts": tuple(RUNS["counts"])}},
        POLYGONS,
        [{"rle": RUNS}],
        [{"rle": RUNS}, None],
        [
            {"polygons": [[2, 1, 3, 1, 3, 3, 2, 3]], "size": [4, 6]},
            {"polygons": [[3, 1, 5, 1, 5, 3, 3, 3]], "size": [4, 6]},
        ],
    ],
)
def test_every_form_of_a_mask_gives_its_pixels(mask):
    for annotation in (mask, {"mask": mask}, {"frames": [{"mask": mask}]}):
        target = image(annotation)
        assert (target.height_px, target.width_px, target.kind) == (4, 6, "image")
        assert (target.mask(0) == square()).all()
        assert target.box(0) == (2 / 6, 1 / 4, 5 / 6, 3 / 4)
        assert target.frames[0].visible is None


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", np.uint8), ("P", np.uint8), ("16", np.uint16), ("1", np.bool_)]
)
def test_index_pngs_of_all_kinds_are_read(tmp_path, mode, kind):
    numbers = square().astype(kind)
    found = png(tmp_path / "a.png", numbers, mode)
    for mask in (found, {**found, "values": [1]}, {**found, "values": [1, 300]}):
        assert (image(mask, tmp_path).mask(0) == square()).all()
    assert not image({**found, "values": [2]}, tmp_path).mask(0).any()


def test_numbers_of_a_png_choose_the_object_and_255_is_one_like_any_other(tmp_path):
    numbers = np.zeros((4, 6), dtype=np.uint16)
    numbers[0], numbers[1], numbers[2] = 1, 255, 300
    found = png(tmp_path / "a.png", numbers)

    def rows(mask):
        return np.flatnonzero(image(mask, tmp_path).mask(0).all(1)).tolist()

    assert rows(found) == [0, 1, 2]
    assert rows({**found, "values": [1, 300]}) == [0, 2]
    assert rows({"png": str(tmp_path / "a.png"), "values": [255]}) == [1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(0, 10**6))
def test_compressed_run_lengths_are_decoded_as_pycocotools_encoded_them(height, width, share, seed):
    mask = np.random.default_rng(seed).random((height, width)) < share
    counts = compressed(mask)["counts"]
    assert (decode_run_lengths(height, width, counts, "x") == mask).all()


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), min_size=1, max_size=30))
def test_no_text_of_run_lengths_gives_anything_but_a_mask_of_the_size_or_a_message(counts):
    try:
        assert decode_run_lengths(5, 7, counts, "x").shape == (5, 7)
    except DataError as error:
        assert "broken RLE" in str(error)


# ---- frames ----


def test_frames_know_masks_boxes_and_absence():
    target = video(
        {"time_s": 0.0, "mask": {"rle": RUNS}},
        {"time_s": 0.5, "mask": None},
        {"time_s": 1.0, "box": [0.5, 0.25, 1.0, 0.5]},
        {"time_s": 1.5, "box": None},
        {"time_s": 1.75, "mask": {"rle": RUNS}, "box": [0.25, 0.25, 0.75, 0.75]},
    )
    assert [frame.visible for frame in target.frames] == [None, False, True, False, None]
    assert [None if (m := target.mask(k)) is None else int(m.sum()) for k in range(5)] == [
        *(6, 0, None, 0, 6)
    ]
    assert target.box(1) is None
    assert target.box(2) == (0.5, 0.25, 1.0, 0.5)
    assert target.box(3) is None
    assert target.box(4) == (0.25, 0.25, 0.75, 0.75)  # what is given goes before the tight one


@pytest.mark.parametrize(
    "mask", [None, [], {"polygons": [], "size": [4, 6]}, {"rle": {"size": [4, 6], "counts": [24]}}]
)
def test_an_empty_mask_says_that_the_object_is_not_visible(mask):
    for target in (image({"mask": mask}), image({"mask": mask, "box": None})):
        assert not target.mask(0).any()
        assert target.box(0) is None
        assert target.result().frames[0].box is None


def test_the_right_result_has_all_annotated_frames():
    target = video(
        {"time_s": 0.0, "mask": {"rle": RUNS}},
        {"time_s": 0.5, "mask": None},
        {"time_s": 1.0, "box": [0.5, 0.25, 1.0, 0.5]},
    )
    track = target.result()
    assert (track.kind, track.height_px, track.width_px) == ("video", 4, 6)
    assert [frame.time_s for frame in track.frames] == [0.0, 0.5, 1.0]
    assert [frame.box for frame in track.frames] == [(2, 1, 5, 3), None, (3, 1, 6, 2)]
    assert track.frames[2].rle is None
    assert (track.mask(0) == square()).all()


def test_a_target_can_be_hashed_and_sent_to_a_worker(tmp_path):
    found = png(tmp_path / "a.png", square().astype(np.uint8))
    target = image([{"rle": RUNS}, POLYGONS, found], tmp_path)
    copied = pickle.loads(pickle.dumps(target))
    assert copied == target
    assert hash(copied) == hash(target)
    assert len(pickle.dumps(target)) < 2000


def test_what_nobody_knows_has_no_frame_and_no_result():
    for media in (IMAGE, VIDEO):
        target = read_annotation(UNKNOWN, media, "own/t1")
        assert target.frames == ()
        assert target.nearest([0.0, 0.5]) == [None, None]
        assert target.result().frames == ()


# ---- nearest ----


def test_wanted_times_find_the_nearest_annotated_frame_within_half_a_step():
    target = video(*({"time_s": t, "mask": None} for t in (0.0, 0.5, 1.0, 2.0)))
    assert target.nearest([0.0, 0.2, 0.3, 0.75, 1.2, 1.25, 1.3, 1.7, 1.8, 2.25]) == [
        *(0, 0, 1, 1, 2, 2, None, None, 3, 3)
    ]
    assert target.nearest([]) == []
    assert target.nearest([9.0]) == [None]


def test_a_video_with_one_annotated_frame_is_known_there_alone():
    target = video({"time_s": 0.5, "mask": None})
    assert target.nearest([0.0, 0.4995, 0.5005, 0.6]) == [None, 0, 0, None]


def test_an_image_is_known_at_all_times():
    assert image({"rle": RUNS}).nearest([0.0, 3.0]) == [0, 0]


@pytest.mark.parametrize("rate", [6, 24, 29.97, 10])
def test_rounding_of_times_does_not_matter(rate):
    count = 200
    frames = [{"time_s": k / rate, "mask": None} for k in range(count)]
    target = video(*frames)
    assert target.nearest([round(k / rate, 5) for k in range(count)]) == list(range(count))
    # in the middle the earlier one, on both sides of rounding
    assert target.nearest([(k + 0.5) / rate for k in range(count - 1)]) == list(range(count - 1))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"rle": RUNS["counts"]}, r"own/a1: broken RLE: \[9, .* an RLE has 'size', \[height, wid"),
        ({"rle": {"counts": "x"}}, "broken RLE: .* an RLE has 'size', .* and 'counts', and noth"),
        (
            {"rle": {**RUNS, "size": [6, 4]}},
            r"has 6 x 4 pixels \(height x width\), but the medium has 4 x 6; size is \[height, wi",
        ),
        ({"rle": {**RUNS, "size": [8, 12]}}, "own/a1: the mask has 8 x 12 pixels .* has 4 x 6$"),
        ({"rle": {**RUNS, "size": "4x6"}}, r"the size of a mask is '4x6'; it is \[height, width"),
        ({"rle": {**RUNS, "counts": ""}}, "broken RLE: counts are ''; they are a text"),
        ({"rle": {**RUNS, "counts": None}}, "broken RLE: counts are None"),
        ({"rle": {**RUNS, "counts": [9, 2.5, 12.5]}}, "RLE: the run 2.5 is not a whole number"),
        ({"polygons": [[0, 0, 1, 1, 2]], "size": [4, 6]}, "polygon 1: has 5 numbers; .* even"),
        (
            {"polygons": [[0, 0, 3, 0, 3, 3], [0, 0, 1, 1]], "size": [4, 6]},
            "own/a1, polygon 2: has 2 corners; a polygon needs at least 3",
        ),
        ({"polygons": [[0, 0, 1, 1, 2, math.nan]], "size": [4, 6]}, "list of finite numbers x, y"),
        ({"polygons": [[0, 0, 1, 1, 2, "3"]], "size": [4, 6]}, "polygon 1: .* is no polygon"),
        ({"polygons": [0, 0, 1, 1, 2, 3], "size": [4, 6]}, "polygon 1: 0 is no polygon"),
        ({"polygons": {}, "size": [4, 6]}, "'polygons' is {}; it is a list of"),
        ({"polygons": [[0, 0, 1, 1, 2, 1e9]], "size": [4, 6]}, "y = 1e\\+09 is far outside"),
        ({"polygons": [[0, 0, 1, 1, 2, 3]], "size": [4, 7]}, "the mask has 4 x 7 pixels"),
        ({"polygons": [[0, 0, 1, 1, 2, 3]]}, "is no mask; a mask is {'rle'"),
        ({"png": 3}, "'png' is 3; it is the path of an index PNG"),
        ({"png": "a.png", "values": 1}, "'values' is 1; it is a list of the numbers that the"),
        ({"png": "a.png", "values": [-1]}, r"'values' is \[-1\]"),
        ({"png": "a.png", "values": []}, r"'values' is \[\]"),
        ({"png": "a.png", "colour": 1}, "is no mask; a mask is"),
        ("x", "own/a1: 'x' is no mask; a mask is {'rle'"),
        ({"mask": {"rle": RUNS}, "score": 1}, "an annotated frame has no 'score'; it has time_s"),
        ({"mask": None, "box": [0, 0, 1, 1]}, "the mask is empty, but there is a box; which is"),
        ({"box": [0, 0, 3, 2]}, r"own/a1: the box \[0, 0, 3, 2\] leaves the image"),
        ({"frames": [{"mask": None}] * 2}, "an image has one frame, there are 2 in 'frames'"),
        ({"frames": [{"mask": None, "time_s": 3}]}, "an image has no time, found time_s = 3"),
        ({"frames": []}, r"'frames' is \[\]; it is a list of one or more .* {'unknown': true}"),
        ({"frames": {}}, "'frames' is {}; it is a list of one or more"),
        ({"frames": [3]}, "frame 1: 3 is no annotated frame; one is such as"),
        ({"frames": [{}]}, "frame 1: has neither 'mask' nor 'box'"),
        ({"frames": [{"mask": None}], "fps": 3}, "has no 'fps' beside 'frames'"),
        ({"unknown": True, "mask": None}, "a target that is not known is {'unknown': true} and"),
        ({"unknown": False}, "{'unknown': False}: a target that is not known is"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_decoded(annotation, message):
    with pytest.raises(DataError, match=message):
        image(annotation)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([{"mask": None}], "frame 1: time_s is None; it is a number of seconds from the start"),
        ([{"time_s": -1, "mask": None}], "time_s is -1; it is a number of seconds"),
        ([{"time_s": math.inf, "mask": None}], "time_s is inf"),
        (
            [{"time_s": 1, "mask": None}, {"time_s": 1, "mask": None}],
            "the times of the frames do not rise: 1 s comes after 1 s",
        ),
        (
            [{"time_s": 1, "mask": None}, {"time_s": 1.5, "mask": {"rle": {**RUNS, "size": [1]}}}],
            r"own/v1, frame 2 at 1.5 s: the size of a mask is \[1\]",
        ),
    ],
)
def test_what_is_wrong_with_a_frame_of_a_video_is_said_with_its_time(frames, message):
    with pytest.raises(DataError, match=message):
        video(*frames)


def test_a_video_needs_frames():
    with pytest.raises(DataError, match=r"own/v1: .* has no 'frames'; a target in a video is such"):
        read_annotation({"rle": RUNS}, VIDEO, "own/v1")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([9, 2, 2, 2, 2, 2], r"its runs add up to 19 pixels, but a mask of 4 x 6 .* has 24"),
        ([9, 2, 2, 2, 2, 2, 5, 7], "its runs add up to 31 pixels"),
        ([-3, 27], "run 1 has -3 pixels, but a mask of 4 x 6 .* has 0 to 24"),
        ([2**80], "a run has 1208925819614629174706176 pixels"),
        ("9\x00", "character 2 is .*; compressed counts have characters from '0' to 'o'"),
        ("9é", "character 2 is 'é'"),
        ("o", "the text ends within a number; is it cut off"),
        ("oooooooooooo0", "a number in the text is longer than any run"),
        (compressed(square())["counts"][:-1], "add up to 19 pixels|ends within"),
        ("H", "run 1 has -8 pixels"),
    ],
)
def test_broken_run_lengths_are_refused_when_they_are_decoded(counts, message):
    target = image({"rle": {"size": [4, 6], "counts": counts}})
    with pytest.raises(DataError, match=f"own/a1: broken RLE: .*{message}"):
        target.mask(0)


def test_broken_and_missing_pngs_are_refused_when_they_are_decoded(tmp_path):
    target = image({"png": "no.png"}, tmp_path)
    with pytest.raises(DataError, match=r"own/a1: there is no mask .*no\.png"):
        target.mask(0)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n123")
    with pytest.raises(DataError, match=r"the mask .*broken\.png cannot be read as a picture"):
        image({"png": "broken.png"}, tmp_path).mask(0)
    Image.new("RGB", (6, 4)).save(tmp_path / "colour.png")
    with pytest.raises(DataError, match="of mode RGB, whose colours name no object; right is one"):
        image({"png": "colour.png"}, tmp_path).mask(0)
    Image.new("L", (4, 6)).save(tmp_path / "other.png")
    with pytest.raises(DataError, match=r"other\.png: the mask has 6 x 4 pixels .* has 4 x 6"):
        image({"png": "other.png"}, tmp_path).mask(0)


def test_a_mask_that_turns_out_empty_contradicts_its_box():
    target = video({"time_s": 1, "mask": {"rle": {**RUNS, "counts": [24]}}, "box": [0, 0, 1, 1]})
    with pytest.raises(DataError, match="own/v1, frame 1 at 1 s: the mask is empty, but there is"):
        target.mask(0)


# ---- our JSONL ----


def test_masks_of_all_forms_come_through_our_jsonl(tmp_path):
    (tmp_path / "masks").mkdir()
    png(tmp_path / "masks" / "a.png", square().astype(np.uint8) * 3)
    line = {"question": "Which one?", "answer": "<mask> <mask> <mask> <mask>", "image": "a.jpg"}
    masks = [
        {"rle": compressed(square())},
        {"mask": POLYGONS},
        {"png": "masks/a.png", "values": [3]},
        [{"rle": RUNS}, None],
    ]
    lines = [
        {**line, "targets": {"mask": masks}},
        {**line, "targets": {"mask": masks}, "box_unit": "pixels", "width": 6, "height": 4},
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = JsonlSource(JsonlOptions(annotations="own.jsonl"), tmp_path)
    for index in range(2):
        sample = source.read(index, np.random.default_rng(0))
        assert sample.calls == ["mask"] * 4
        for annotation in sample.targets["mask"]:
            assert (image(annotation).mask(0) == square()).all()


def test_boxes_of_frames_in_pixels_come_through_our_jsonl(tmp_path):
    line = {
        "question": "Follow <mask>.",
        "answer": "<mask>",
        "video": "a.mp4",
        "given": {"mask": [[3, 1, 6, 2]]},
        "targets": {"mask": [{"frames": [{"time_s": 0, "box": [3, 1, 6, 2]}]}]},
        "box_unit": "pixels",
        **{"width": 6, "height": 4},
    }
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    source = JsonlSource(JsonlOptions(annotations="own.jsonl"), tmp_path)
    sample = source.read(0, np.random.default_rng(0))
    target = read_annotation(sample.targets["mask"][0], VIDEO, "own/v1")
    assert target.box(0) == (0.5, 0.25, 1.0, 0.5)
    assert sample.given["mask"] == ([0.5, 0.25, 1.0, 0.5],)
