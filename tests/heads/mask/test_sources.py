"""What all sources of masks have in common: questions, windows, given boxes, splits without labels;
and MeViS, Ref-YouTube-VOS and SA-V, on files written here in the published layouts.
"""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pydantic import ValidationError

from tpokit import DataError, Media
from tpokit.types import MediaInfo
from tpokit_mask.annotations import UNKNOWN, read_annotation
from tpokit_mask.sources.mevis import MevisSource
from tpokit_mask.sources.options import (
    DavisOptions,
    LasotOptions,
    MevisOptions,
    RefYoutubeVosOptions,
    SavOptions,
)
from tpokit_mask.sources.ref_youtube_vos import RefYoutubeVosSource
from tpokit_mask.sources.sa_v import SavSource
from tpokit_mask.templates import ANSWERS, BOX_QUESTIONS, EXPRESSION_QUESTIONS

HEIGHT, WIDTH = 4, 6


def generator(seed=0):
    return np.random.default_rng(seed)


def rle(*columns):
    """Whole columns of pixels."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[:, list(columns)] = 1
    found = coco.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode()}


def write_frames(folder, names):
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{name}.jpg")


def write_masks(folder, masks):
    """Name of a frame to the value of each column."""
    folder.mkdir(parents=True)
    for name, columns in masks.items():
        numbers = np.repeat(np.array([columns], dtype=np.uint8), HEIGHT, axis=0)
        Image.fromarray(numbers).save(folder / f"{name}.png")


def target_of(sample):
    """The one target of a sample, as the mask head reads it."""
    (annotation,) = sample.targets["mask"]
    return read_annotation(annotation, MediaInfo("video", WIDTH, HEIGHT, 9.0), sample.id)


def columns_of(target):
    return [np.flatnonzero(target.mask(k).any(0)).tolist() for k in range(len(target.frames))]


def times_of(sample):
    return [frame["time_s"] for frame in sample.targets["mask"][0]["frames"]]


# ---- MeViS ----

NAMES = [f"{number:05d}" for number in range(6)]
MASKS = {
    "10": [None, rle(0), rle(0, 1), None, rle(1), rle(2)],
    "12": [None, rle(5), None, None, rle(5), rle(5)],
    "13": [None] * 6,
}
EXPRESSIONS = {
    "0": {"exp": " the two cats that turn ", "obj_id": [0, 2], "anno_id": [10, 12]},
    "1": {"exp": "the cat", "obj_id": [2], "anno_id": [12]},
    "2": {"exp": "nobody", "obj_id": [3], "anno_id": [13]},
}


def mevis(folder, expressions=EXPRESSIONS, masks=MASKS, frames=NAMES, names=NAMES, **options):
    split = folder / "mevis" / "train"
    write_frames(split / "JPEGImages" / "v1", frames)
    meta = {"videos": {"v1": {"expressions": expressions, "vid_id": 3, "frames": names}}}
    (split / "meta_expressions.json").write_text(json.dumps(meta))
    if masks is not None:
        text = masks if isinstance(masks, str) else json.dumps(masks)
        (split / "mask_dict.json").write_text(text)
    return MevisSource(MevisOptions(folder="mevis/train", **options), folder)


def test_an_expression_of_mevis_means_all_its_objects_together(tmp_path):
    source = mevis(tmp_path)
    samples = [source.read(index, generator()) for index in range(len(source))]
    assert [sample.id for sample in samples] == ["v1/0", "v1/1", "v1/2"]
    sample = samples[0]
    folder = tmp_path / "mevis" / "train" / "JPEGImages" / "v1"
    assert sample.media == (Media("video", folder, rate=6.0),)
    assert sample.calls == ["mask"]
    assert sample.given == {}
    assert " the two cats that turn" in sample.turns[0].text
    assert times_of(sample) == [k / 6 for k in range(6)]
    assert columns_of(target_of(sample)) == [[], [0, 5], [0, 1], [], [1, 5], [2, 5]]
    assert columns_of(target_of(samples[1])) == [[], [5], [], [], [5], [5]]
    assert columns_of(target_of(samples[2])) == [[]] * 6


def test_masks_of_mevis_are_found_in_place_however_the_file_is_written(tmp_path):
    source = mevis(tmp_path, masks=json.dumps(MASKS, indent=2))
    assert columns_of(target_of(source.read(0, generator())))[1] == [0, 5]
    assert len(pickle.dumps(source)) < 3000
    again = pickle.loads(pickle.dumps(source)).read(1, generator())
    assert columns_of(target_of(again))[5] == [5]


def test_a_split_without_labels_is_read_for_prediction(tmp_path):
    unlabelled = {"0": {"exp": "the cat"}}
    source = mevis(tmp_path, unlabelled, masks=None, labelled=False, window=2)
    sample = source.read(0, generator())
    assert sample.id == "v1/0"
    assert sample.calls == ["mask"]
    assert sample.targets == {"mask": (UNKNOWN,)}
    assert sample.media[0].start_s is None
    assert target_of(sample).frames == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": None}, r"mask_dict\.json: there is no such file; a split .* labelled: false"),
        ({"masks": ""}, r"mask_dict\.json: the file is empty"),
        ({"masks": "[]"}, r'mask_dict\.json: expected an object such as {"10"'),
        ({"expressions": []}, "video v1: needs 'expressions', an object, and 'frames', a list"),
        ({"expressions": {}}, "there is no expression"),
        ({"expressions": {"0": "x"}}, "expression 0: expected an object with 'exp', found 'x'"),
        ({"names": [1]}, "video v1: names of frames must be texts"),
    ],
)
def test_what_is_wrong_with_files_of_mevis_is_said_when_they_are_opened(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        mevis(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": NAMES[:4]}, "expression 0: 2 of 6 frames are not in .*v1, the first is '00004"),
        ({"names": NAMES[::-1]}, "the frames are not listed in the order of their names"),
        ({"expressions": {"0": {"exp": " ", "anno_id": [10]}}}, "'exp' must be a text, found ' '"),
        (
            {"expressions": {"0": {"exp": "a"}}},
            "'anno_id' must be whole numbers, found None; a spl",
        ),
        ({"expressions": {"0": {"exp": "a", "anno_id": [9]}}}, "anno_id 9 is not in .*mask_dict"),
        (
            {"masks": {"10": [None], "12": [None]}},
            "anno_id 10 has masks for 1 frames, the video ha",
        ),
        ({"masks": '{"10": [{]}'}, r"mask_dict\.json, 10: this is not JSON"),
    ],
)
def test_what_is_wrong_with_an_expression_of_mevis_is_said_with_its_place(
    tmp_path, changes, message
):
    source = mevis(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        source.read(0, generator())


def test_meta_expressions_must_have_videos(tmp_path):
    split = tmp_path / "mevis"
    split.mkdir()
    (split / "meta_expressions.json").write_text("[]")
    with pytest.raises(DataError, match="needs 'videos', an object of videos"):
        MevisSource(MevisOptions(folder="mevis"), tmp_path)


# ---- windows ----


def test_a_window_begins_where_the_object_is_visible_and_has_whole_windows_first(tmp_path):
    source = mevis(tmp_path, window=2)
    starts = set()
    for seed in range(30):
        sample = source.read(0, generator(seed))
        (media,) = sample.media
        times = times_of(sample)
        assert media.start_s == times[0]
        assert media.end_s == pytest.approx(times[0] + 2 / 6)
        assert len(times) == 2
        starts.add(round(times[0] * 6))
    assert starts == {1, 2, 4}  # visible on 1, 2, 4 and 5; behind 5 there is no whole window


def test_a_window_that_does_not_fit_is_shorter_and_one_without_the_object_is_somewhere(tmp_path):
    source = mevis(tmp_path, window=5)
    sample = source.read(0, generator())
    assert times_of(sample) == [k / 6 for k in range(1, 6)]
    assert len(times_of(mevis(tmp_path / "b", window=9).read(0, generator()))) in {5, 4, 2, 1}
    nobody = source.read(2, generator())
    assert columns_of(target_of(nobody)) == [[]] * len(times_of(nobody))


def test_windows_and_wordings_are_drawn_by_the_given_generator_alone(tmp_path):
    source = mevis(tmp_path, window=2)
    state = np.random.get_state()[1].tolist()
    samples = [source.read(0, generator(seed)) for seed in range(20)]
    assert samples == [source.read(0, generator(seed)) for seed in range(20)]
    assert len({sample.turns for sample in samples}) > 5
    assert np.random.get_state()[1].tolist() == state


# ---- Ref-YouTube-VOS ----

FIFTHS = ["00000", "00005", "00010"]
PNGS = {"00000": [0, 1, 1, 0, 2, 2], "00005": [1, 0, 0, 0, 0, 2], "00010": [0, 0, 0, 0, 0, 2]}


def youtube(folder, frames=FIFTHS, masks=PNGS, obj_id="1", **options):
    write_frames(folder / "train" / "JPEGImages" / "v1", frames)
    write_masks(folder / "train" / "Annotations" / "v1", masks)
    meta = folder / "meta_expressions" / "train"
    meta.mkdir(parents=True)
    expression = {"exp": "a dog to the left"} | ({} if obj_id is None else {"obj_id": obj_id})
    videos = {"v1": {"expressions": {"0": expression}, "frames": FIFTHS}}
    (meta / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    return RefYoutubeVosSource(
        RefYoutubeVosOptions(
            annotations="meta_expressions/train/meta_expressions.json", folder="train", **options
        ),
        folder,
    )


@pytest.mark.parametrize("obj_id", ["1", 1, [1]])
def test_an_expression_of_ref_youtube_vos_is_about_the_pixels_with_its_number(tmp_path, obj_id):
    sample = youtube(tmp_path, obj_id=obj_id).read(0, generator())
    assert sample.id == "v1/0"
    assert sample.media == (Media("video", tmp_path / "train/JPEGImages/v1", rate=6.0),)
    assert times_of(sample) == [0, 1 / 6, 2 / 6]
    assert columns_of(target_of(sample)) == [[1, 2], [0], []]


def test_a_folder_with_all_frames_has_as_many_more_a_second(tmp_path):
    everything = [f"{number:05d}" for number in range(13)]
    sample = youtube(tmp_path, frames=everything, window=2).read(0, generator(1))
    assert sample.media[0].rate == 30.0
    assert times_of(sample) in ([0, 5 / 30], [5 / 30, 10 / 30])


def test_a_frame_without_a_mask_is_an_error_when_it_is_looked_at(tmp_path):
    sample = youtube(tmp_path, masks={"00000": PNGS["00000"]}).read(0, generator())
    assert columns_of_first(sample) == [1, 2]
    with pytest.raises(DataError, match=r"frame 2 at 0\.166667 s: there is no mask .*00005\.png"):
        target_of(sample).mask(1)


def columns_of_first(sample):
    return np.flatnonzero(target_of(sample).mask(0).any(0)).tolist()


def test_ref_youtube_vos_without_labels_needs_neither_masks_nor_objects(tmp_path):
    sample = youtube(tmp_path, obj_id=None, labelled=False).read(0, generator())
    assert sample.targets == {"mask": (UNKNOWN,)}
    assert "a dog to the left" in sample.turns[0].text


# ---- SA-V ----


def sav(folder, kind="manual", masklets=None, **changes):
    below = folder / "sa_v" / "sav_000"
    below.mkdir(parents=True, exist_ok=True)
    if masklets is None:
        empty = rle()
        masklets = [[rle(0), empty], [rle(1), rle(4, 5)], [rle(2), rle(5)], [rle(3), empty]]
    found = {
        "video_id": "sav_000001",
        "video_frame_count": 16.0,
        "masklet": masklets,
        "masklet_id": [0, 7],
        "masklet_first_appeared_frame": [0.0, 1.0],
        "masklet_num": 2,
        **changes,
    }
    path = below / f"sav_000001_{kind}.json"
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    return path


def open_sav(folder, **options):
    return SavSource(SavOptions(folder="sa_v", **options), folder)


def test_objects_of_sa_v_are_tracked_from_their_box_on_their_first_frame(tmp_path):
    path = sav(tmp_path)
    sav(tmp_path, "auto")
    source = open_sav(tmp_path)
    first, second = (source.read(index, generator()) for index in range(len(source)))
    assert [first.id, second.id] == ["sav_000001/0", "sav_000001/7"]
    video = path.with_name("sav_000001.mp4")
    assert first.media == (Media("video", video),)
    assert first.given == {"mask": ((0, 0, 1 / 6, 1),)}
    assert times_of(first) == [k * 4 / 24 for k in range(4)]  # frame k is frame 4 k of the video
    assert second.media == (Media("video", video, start_s=4 / 24),)
    assert second.given == {"mask": ((4 / 6, 0, 1, 1),)}
    assert columns_of(target_of(second)) == [[4, 5], [5], []]
    assert second.turns[0].text.count("<mask>") == 1
    assert second.calls == ["mask"]
    assert len(open_sav(tmp_path, masklets="auto")) == 2


def test_windows_of_sa_v_have_annotated_frames_in_the_middle_of_their_parts(tmp_path):
    sav(tmp_path)
    source = open_sav(tmp_path, window=2)
    starts = set()
    for seed in range(20):
        sample = source.read(0, generator(seed))
        (media,) = sample.media
        times = times_of(sample)
        part = (media.end_s - media.start_s) / 2
        middles = [media.start_s + (k + 0.5) * part for k in range(2)]
        assert [int(middle * 24 + 1e-6) / 24 for middle in middles] == times
        starts.add(round(times[0] * 6))
        assert sample.given["mask"][0][0] == round(times[0] * 6) / 6  # the box of the first frame
    assert starts == {1, 2}  # before frame 0 there is no room for half a step


def test_objects_of_sa_v_are_counted_wherever_their_numbers_stand(tmp_path):
    path = sav(tmp_path)
    found = json.loads(path.read_text())
    ids = {"masklet_id": found.pop("masklet_id")}
    padding = {"padding": "x" * 2**17}
    path.write_text(json.dumps(ids | found | padding))
    assert len(open_sav(tmp_path)) == 2
    path.write_text(json.dumps({**found, "masklet": [[]], "masklet_id": []}))
    with pytest.raises(DataError, match=r"sa_v: no file \*_manual\.json in it or below has an obj"):
        open_sav(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"masklets": [[rle()] * 2] * 3},
            "object 0: no annotated frame shows the object, so there",
        ),
        ({"masklets": [[rle()]]}, "annotated frame 1 needs a mask for each of the 2 objects"),
        ({"masklet": 3}, "needs 'masklet_id' and 'masklet', both lists"),
        ({"masklets": [[{"size": [4], "counts": "a"}] * 2]}, r"broken RLE: size is \[4\]; it is"),
        ({"masklets": [[{"counts": "a"}] * 2]}, "broken RLE: size is None"),
        ({"masklets": [["a"] * 2]}, "object 0: broken RLE: size is None"),
        (
            {"masklets": [[{"size": [4, 6], "counts": "a"}] * 2]},
            "object 0, frame at 0 s: broken RLE: the text ends within a number",
        ),
    ],
)
def test_what_is_wrong_with_a_file_of_sa_v_is_said_with_its_place(tmp_path, changes, message):
    path = sav(tmp_path, **changes)
    source = open_sav(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        source.read(0, generator())
    assert str(path) in str(caught.value)


def test_a_folder_of_sa_v_without_files_is_refused(tmp_path):
    sav(tmp_path)
    with pytest.raises(DataError, match=r"sa_v: there is no file \*_auto\.json in it or below"):
        open_sav(tmp_path, masklets="auto")


# ---- wordings ----


def test_our_own_wordings_are_legal():
    assert all(question.count("{expression}") == 1 for question in EXPRESSION_QUESTIONS)
    assert all(question.count("<mask>") == 1 for question in BOX_QUESTIONS)
    assert all(answer.count("<mask>") == 1 for answer in ANSWERS)
    for wordings in (EXPRESSION_QUESTIONS, BOX_QUESTIONS, ANSWERS):
        assert len(set(wordings)) == len(wordings)


def test_wordings_of_the_recipe_are_used(tmp_path):
    options = {"questions": ["Wo ist {expression}?"], "answers": ["{expression}: <mask>"]}
    turns = mevis(tmp_path, **options).read(1, generator()).turns
    assert [turn.text for turn in turns] == ["Wo ist the cat?", "the cat: <mask>"]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (MevisOptions, {"questions": ["Where?"]}, r"'Where\?' lacks {expression}"),
        (SavOptions, {"questions": ["Where?"]}, "must have <mask> exactly once: there the box is"),
        (LasotOptions, {"questions": ["{expression}?"]}, "must have <mask> exactly once"),
        (LasotOptions, {"questions": ["<mask>?"], "language": True}, "lacks {expression}"),
        (DavisOptions, {"questions": ["<mask>?"], "expressions": "a.txt"}, "lacks {expression}"),
        (SavOptions, {"answers": ["Here."]}, r"the answer 'Here\.' must have <mask> exactly once"),
        (SavOptions, {"questions": []}, "at least 1"),
        (SavOptions, {"window": 0}, "greater than or equal to 1"),
        (MevisOptions, {"rate": 0}, "greater than 0"),
        (MevisOptions, {"fps": 3}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_options_are_refused(model, options, message):
    with pytest.raises(ValidationError, match=message):
        model(folder="x", **options)
