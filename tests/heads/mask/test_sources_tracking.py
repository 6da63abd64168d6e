"""DAVIS, LaSOT and GOT-10k, on files written here in the published layouts."""

import numpy as np
import pytest
from PIL import Image

from tests.heads.mask.test_sources import (
    HEIGHT,
    WIDTH,
    columns_of,
    generator,
    target_of,
    times_of,
    write_frames,
    write_masks,
)
from tpokit import DataError, Media
from tpokit_mask.annotations import UNKNOWN
from tpokit_mask.sources.box_tracks import Got10kSource, LasotSource
from tpokit_mask.sources.davis import DavisSource
from tpokit_mask.sources.options import DavisOptions, Got10kOptions, LasotOptions

NAMES = ["00000", "00001", "00002", "00003"]

# ---- DAVIS ----

BEAR = {"00000": [0, 1, 1, 0, 2, 255], "00001": [1, 0, 0, 0, 0, 2], "00003": [0, 0, 0, 0, 0, 2]}


def davis(folder, sequences, frames=NAMES, **options):
    for name, masks in sequences.items():
        write_frames(folder / "DAVIS" / "JPEGImages" / "480p" / name, frames)
        write_masks(folder / "DAVIS" / "Annotations" / "480p" / name, masks)
    return DavisSource(DavisOptions(folder="DAVIS", **options), folder)


def test_objects_of_davis_are_those_of_the_first_mask(tmp_path):
    source = davis(tmp_path, {"cow": {"00000": [255, 0, 0, 0, 0, 0]}, "bear": BEAR})
    samples = [source.read(index, generator()) for index in range(len(source))]
    assert [sample.id for sample in samples] == ["bear/1", "bear/2", "cow/255"]
    folder = tmp_path / "DAVIS" / "JPEGImages" / "480p" / "bear"
    assert samples[0].media == (Media("video", folder, rate=24.0),)
    assert samples[0].given == {"mask": ((1 / 6, 0, 3 / 6, 1),)}
    assert times_of(samples[0]) == [0, 1 / 24, 3 / 24]  # frame 2 is not annotated
    assert columns_of(target_of(samples[0])) == [[1, 2], [0], []]
    assert columns_of(target_of(samples[1])) == [[4], [5], [5]]
    assert samples[2].given == {"mask": ((0, 0, 1 / 6, 1),)}


def test_expressions_of_davis_refer_to_objects(tmp_path):
    lines = [
        'bear 1 "a brown bear"',
        'bear 1 "a bear that walks"',
        'dog-scale 2 "the dog"',  # misspelt where it is published
        'elsewhere 1 "of another split"',
        "",
        'bear 2 "the caf\u00e9"',
    ]
    (tmp_path / "text.txt").write_bytes("\n".join(lines).encode("latin-1"))
    (tmp_path / "val.txt").write_text("bear\ndogs-scale\n")
    source = davis(
        tmp_path, {"bear": BEAR, "dogs-scale": BEAR}, expressions="text.txt", split="val.txt"
    )
    samples = [source.read(index, generator()) for index in range(len(source))]
    assert [sample.id for sample in samples] == ["bear/1", "bear/1-2", "dogs-scale/2", "bear/2"]
    assert "a bear that walks" in samples[1].turns[0].text
    assert "the caf\u00e9" in samples[3].turns[0].text
    assert all(sample.given == {} for sample in samples)
    assert columns_of(target_of(samples[2])) == [[4], [5], [5]]


def test_of_a_split_with_first_masks_alone_only_the_box_is_taken(tmp_path):
    source = davis(tmp_path, {"bear": {"00001": BEAR["00001"]}}, labelled=False, window=2)
    sample = source.read(0, generator())
    assert sample.id == "bear/1"
    assert sample.given == {"mask": ((0, 0, 1 / 6, 1),)}
    assert sample.media[0].start_s == 1 / 24  # the box is that of the first frame that is seen
    assert sample.media[0].end_s is None
    assert sample.targets == {"mask": (UNKNOWN,)}


def test_a_window_gives_the_box_of_its_first_frame(tmp_path):
    source = davis(tmp_path, {"bear": BEAR}, window=1)
    starts = {}
    for seed in range(20):
        sample = source.read(0, generator(seed))
        starts[times_of(sample)[0]] = sample.given["mask"][0][0]
        assert sample.media[0].end_s == pytest.approx(sample.media[0].start_s + 1 / 24)
    assert starts == {0: 1 / 6, 1 / 24: 0}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('bear one "a bear"', r'text\.txt, line 1: expected sequence, object and "expression"'),
        ('\nbear 1 ""', "line 2: expected sequence"),
        ('cow 1 "a cow"', "no expression is about one of the 1 sequences"),
    ],
)
def test_wrong_expressions_of_davis_are_refused(tmp_path, lines, message):
    (tmp_path / "text.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        davis(tmp_path, {"bear": BEAR}, expressions="text.txt")


def test_what_is_wrong_with_folders_of_davis_is_said(tmp_path):
    with pytest.raises(DataError, match="480p: there is no such folder of masks"):
        davis(tmp_path, {})
    with pytest.raises(DataError, match=r"00009\.png: there is no frame of this name in .*bear"):
        davis(tmp_path, {"bear": BEAR | {"00009": BEAR["00000"]}}).read(0, generator())
    masks = tmp_path / "DAVIS" / "Annotations" / "480p" / "bear"
    Image.new("RGB", (WIDTH, HEIGHT)).save(masks / "00000.png")
    with pytest.raises(DataError, match=r"00000\.png: the mask is in colour; right is one channel"):
        DavisSource(DavisOptions(folder="DAVIS"), tmp_path)
    (masks / "00000.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"00000\.png: the mask cannot be read as a picture"):
        DavisSource(DavisOptions(folder="DAVIS"), tmp_path)
    Image.fromarray(np.zeros((HEIGHT, WIDTH), dtype=np.uint8)).save(masks / "00000.png")
    with pytest.raises(DataError, match="480p: no sequence has an object"):
        DavisSource(DavisOptions(folder="DAVIS"), tmp_path)


# ---- LaSOT ----

BOXES = "3,1,2,2\n0\t0\t3\t2\n1 1 1 1\n-1,0,2,9\n"


def write_lasot(folder, name="airplane-1", **files):
    sequence = folder / "LaSOT" / name.rpartition("-")[0] / name
    write_frames(sequence / "img", [f"{number:08d}" for number in range(1, 5)])
    texts = {
        "groundtruth": BOXES,
        "full_occlusion": "0,0,1,0",
        "out_of_view": "0,0,0,0",
        "nlp": "a white airplane\n",
        **files,
    }
    for stem, text in texts.items():
        (sequence / f"{stem}.txt").write_text(text)
    return sequence


def lasot(folder, **options):
    return LasotSource(LasotOptions(folder="LaSOT", **options), folder)


def test_lasot_gives_boxes_and_believes_its_flags(tmp_path):
    sequence = write_lasot(tmp_path)
    source = lasot(tmp_path)
    sample = source.read(0, generator())
    assert len(source) == 1
    assert sample.id == "airplane-1"
    assert sample.media == (Media("video", sequence / "img", rate=30.0),)
    assert sample.given == {"mask": ((3 / 6, 1 / 4, 5 / 6, 3 / 4),)}
    target = target_of(sample)
    assert [frame.time_s for frame in target.frames] == [0, 1 / 30, 2 / 30, 3 / 30]
    assert [frame.visible for frame in target.frames] == [True, True, False, True]
    assert target.box(1) == (0, 0, 0.5, 0.5)
    assert target.box(3) == (0, 0, 1 / 6, 1)  # what leaves the image is cut off
    assert target.mask(0) is None


def test_tracks_begin_where_the_object_is_first_visible(tmp_path):
    write_lasot(tmp_path, full_occlusion="1,0,0,0", groundtruth=BOXES.replace("0\t0", "9 9"))
    sample = lasot(tmp_path, rate=25).read(0, generator())
    assert sample.media[0].start_s == 2 / 25  # hidden, then outside of the image
    assert sample.given == {"mask": ((1 / 6, 1 / 4, 2 / 6, 2 / 4),)}
    assert [frame.visible for frame in target_of(sample).frames] == [True, True]


def test_sentences_of_lasot_can_refer_in_place_of_the_box(tmp_path):
    write_lasot(tmp_path)
    sample = lasot(tmp_path, language=True).read(0, generator())
    assert "a white airplane" in sample.turns[0].text
    assert sample.given == {}
    assert len(target_of(sample).frames) == 4


def test_a_list_chooses_sequences_of_lasot(tmp_path):
    for name in ("airplane-1", "airplane-2", "zebra-10"):
        write_lasot(tmp_path, name)
    (tmp_path / "testing_set.txt").write_text("zebra-10\nairplane-2\n")
    source = lasot(tmp_path, split="testing_set.txt")
    ids = [source.read(index, generator()).id for index in range(len(source))]
    assert ids == ["zebra-10", "airplane-2"]
    assert len(lasot(tmp_path)) == 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"groundtruth": "1,2,3\n"}, r"groundtruth\.txt, line 1: expected x, y, width, height in"),
        ({"groundtruth": "1,2,3,x\n"}, "line 1: expected numbers, found '1,2,3,x'"),
        ({"groundtruth": "1,2,3,nan\n"}, "line 1: a number is not finite"),
        ({"groundtruth": "1,2,3,4\n"}, "has 1 boxes for 4 frames in .*img; a split of which only"),
        ({"groundtruth": ""}, "the file is empty"),
        ({"out_of_view": "0,0,0"}, r"out_of_view\.txt: has 3 flags for 4 frames"),
        ({"full_occlusion": "1,1,1,1"}, "no annotated frame shows the object, so there is no box"),
    ],
)
def test_wrong_files_of_lasot_are_refused(tmp_path, files, message):
    write_lasot(tmp_path, **files)
    with pytest.raises(DataError, match=message):
        lasot(tmp_path).read(0, generator())


def test_a_folder_without_sequences_of_lasot_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no groundtruth\.txt in CATEGORY/SEQUENCE"):
        lasot(tmp_path)


# ---- GOT-10k ----


def write_got10k(folder, split="train", boxes=BOXES, absent="0\n0\n0\n0\n", cover="8\n8\n0\n1\n"):
    name = f"GOT-10k_{split.title()}_000001"
    sequence = folder / split / name
    write_frames(sequence, [f"{number:08d}" for number in range(1, 5)])
    (folder / split / "list.txt").write_text(f"{name}\n")
    (sequence / "groundtruth.txt").write_text(boxes)
    if absent is not None:
        (sequence / "absence.label").write_text(absent)
        (sequence / "cover.label").write_text(cover)
    return sequence


def got10k(folder, split="train", **options):
    return Got10kSource(Got10kOptions(folder=split, **options), folder)


def test_got10k_gives_boxes_and_believes_its_flags(tmp_path):
    sequence = write_got10k(tmp_path, absent="0\n1\n0\n0\n")
    sample = got10k(tmp_path).read(0, generator())
    assert sample.id == "GOT-10k_Train_000001"
    assert sample.media == (Media("video", sequence, rate=10.0),)
    assert sample.given == {"mask": ((3 / 6, 1 / 4, 5 / 6, 3 / 4),)}
    assert [frame.visible for frame in target_of(sample).frames] == [True, False, False, True]


def test_of_the_test_split_of_got10k_only_the_first_box_is_known(tmp_path):
    write_got10k(tmp_path, "test", boxes="3.0000,1.0000,2.0000,2.0000\n", absent=None)
    sample = got10k(tmp_path, "test", labelled=False).read(0, generator())
    assert sample.given == {"mask": ((3 / 6, 1 / 4, 5 / 6, 3 / 4),)}
    assert sample.targets == {"mask": (UNKNOWN,)}
    with pytest.raises(DataError, match=r"has 1 boxes for 4 frames .* labelled: false"):
        got10k(tmp_path, "test").read(0, generator())


def test_a_window_of_boxes_begins_where_one_is(tmp_path):
    write_got10k(tmp_path)
    source = got10k(tmp_path, window=2)
    starts = {source.read(0, generator(seed)).media[0].start_s for seed in range(20)}
    assert starts == {0, 0.1}


def test_got10k_needs_its_list(tmp_path):
    write_got10k(tmp_path)
    (tmp_path / "train" / "list.txt").unlink()
    with pytest.raises(DataError, match=r"list\.txt: there is no such file"):
        got10k(tmp_path)
