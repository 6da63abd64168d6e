"""Sources of region data, on files written here: what is read, and every message."""

import json
import pickle
import pickletools

import numpy as np
import pytest
from pydantic import ValidationError

from tpokit import DataError, Media, Turn
from tpokit.types import MediaInfo
from tpokit_mask.annotations import read_annotation
from tpokit_region.options import RefcocoJsonOptions, RefcocoOptions
from tpokit_region.refcoco import RefcocoSource
from tpokit_region.refcoco_json import RefcocoJsonSource


def generator(seed=0):
    return np.random.default_rng(seed)


# ---- refcoco: the published pickle ----


def ref(ref_id, split, *sentences, ann_id=77, image_id=9):
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "split": split,
        "file_name": "COCO_train2014_000000000009_0.jpg",
        "sent_ids": list(range(len(sentences))),
        "sentences": [
            {"sent_id": number, "sent": text, "raw": text.title(), "tokens": text.split()}
            for number, text in enumerate(sentences)
        ],
    }


INSTANCES = {
    "images": [{"id": 9, "file_name": "COCO_train2014_9.jpg", "width": 640, "height": 480}],
    "annotations": [{"id": 77, "image_id": 9, "bbox": [64.0, 48.0, 320.0, 240.0], "iscrowd": 0}],
    "categories": [{"id": 1, "name": "cup"}],
}
REFS = [ref(1, "train", "red cup", "the cup on the left"), ref(2, "testA", "a cup")]


def refcoco(folder, refs=REFS, instances=INSTANCES, protocol=2, **options):
    (folder / "train2014").mkdir(exist_ok=True)
    if refs is not None:
        data = refs if isinstance(refs, bytes) else pickle.dumps(refs, protocol=protocol)
        (folder / "refs(unc).p").write_bytes(data)
    if instances is not None:
        text = instances if isinstance(instances, str) else json.dumps(instances)
        (folder / "instances.json").write_text(text)
    given = {
        "refs": "refs(unc).p",
        "instances": "instances.json",
        "media_root": "train2014",
        "split": "train",
        **options,
    }
    return RefcocoSource(RefcocoOptions(**given), folder)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_refcoco_gives_one_sample_for_each_sentence_of_the_split(tmp_path, protocol):
    source = refcoco(tmp_path, protocol=protocol)
    samples = [source.read(index, generator()) for index in range(len(source))]
    assert [sample.id for sample in samples] == ["1-0", "1-1"]
    assert samples[0].targets == {"region": ((0.1, 0.1, 0.6, 0.6),)}
    # the image has the name of the instances, not that of the reference
    assert samples[0].media == (Media("image", tmp_path / "train2014" / "COCO_train2014_9.jpg"),)
    assert "red cup" in samples[0].turns[0].text
    assert "the cup on the left" in samples[1].turns[0].text
    assert all(sample.calls == ["region"] for sample in samples)
    assert len(refcoco(tmp_path, split="testA")) == 1


def test_text_of_python_2_is_read(tmp_path):
    # as Python 2 wrote it: byte strings (opcode U) instead of text
    python_2 = b"(lp0\n(dp1\nS'ref_id'\np2\nI1\nsS'ann_id'\np3\nI77\nsS'image_id'\np4\nI9\ns"
    python_2 += b"S'split'\np5\nS'train'\np6\nsS'sentences'\np7\n(lp8\n(dp9\nS'sent_id'\np10\nI5\ns"
    python_2 += b"S'sent'\np11\nS'red cup'\np12\nsasa."
    assert list(pickletools.genops(python_2))
    sample = refcoco(tmp_path, refs=python_2).read(0, generator())
    assert sample.id == "1-5"
    assert "red cup" in sample.turns[0].text


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, protocol):
    trace = tmp_path / "trace"
    with pytest.raises(
        DataError, match=r"refs\(unc\)\.p: this is not a pickle of lists, .*names the code io\.open"
    ):
        refcoco(tmp_path, refs=[ref(1, "train", "a cup"), Malicious(trace)], protocol=protocol)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "testB"}, r"refs\(unc\)\.p: no split 'testB'; there are: testA, train"),
        ({"media_root": "nowhere"}, "media_root: there is no folder .*nowhere"),
        ({"refs": None}, r"refs\(unc\)\.p: there is no such file"),
        ({"instances": None}, r"instances\.json: there is no such file"),
        ({"refs": b"no pickle"}, r"this is not a pickle"),
        ({"refs": pickle.dumps(REFS)[:40]}, r"this is not a pickle"),
        ({"refs": {"a": 1}}, "expected a list of references, found dict"),
        ({"refs": []}, "expected a list of references"),
        ({"instances": "{"}, r"instances\.json: this is not JSON"),
        ({"instances": {"images": []}}, "not COCO instances: .*KeyError: 'annotations'"),
        (
            {"refs": [ref(3, "train", "x", ann_id=5)]},
            "ref_id 3: ann_id 5 is not in .*instances.json",
        ),
        ({"refs": [ref(3, "train", "x", image_id=5)]}, "ref_id 3: image_id 5 has no file_name"),
        ({"refs": [{**ref(3, "train"), "sentences": [{}]}]}, "ref_id 3: a sentence needs 'sent'"),
        ({"refs": [{**ref(3, "train"), "sentences": "x"}]}, "ref_id 3: 'sentences' is not a list"),
        (
            {"instances": {**INSTANCES, "annotations": [{"id": 77, "bbox": [600, 0, 100, 10]}]}},
            r"annotation 77: in pixels \[600, 0, 700, 10\] of 640 x 480: .* leaves the image: x1",
        ),
        (
            {"instances": {**INSTANCES, "annotations": [{"id": 77, "bbox": [1, 2, 3]}]}},
            r"annotation 77: \[1, 2, 3\] is no box",
        ),
        (
            {"instances": {**INSTANCES, "images": [{"id": 9, "file_name": "a.jpg"}]}},
            "annotation 77: width = None; a box in pixels needs the size of its image",
        ),
    ],
)
def test_what_is_wrong_with_refcoco_files_is_said_when_they_are_opened(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        refcoco(tmp_path, **changes)


# ---- refcoco: masks ----

POLYGON = [64.0, 48.0, 384.0, 48.0, 384.0, 288.0]
CROWD = {"size": [480, 640], "counts": [0, 480, 306720]}


def with_shape(segmentation, width=640, height=480):
    image = {"id": 9, "file_name": "COCO_train2014_9.jpg", "width": width, "height": height}
    annotation = {"id": 77, "image_id": 9, "segmentation": segmentation}
    return {"images": [image], "annotations": [annotation]}


def test_refcoco_gives_shapes_instead_of_boxes_when_asked_for_masks(tmp_path):
    source = refcoco(tmp_path, instances=with_shape([POLYGON]), task="mask")
    sample = source.read(0, generator())
    assert len(source) == 2
    assert sample.id == "1-0"
    assert sample.calls == ["mask"]
    assert sample.targets == {"mask": ({"mask": {"polygons": [POLYGON], "size": [480, 640]}},)}
    assert "red cup" in sample.turns[0].text
    target = read_annotation(sample.targets["mask"][0], MediaInfo("image", 640, 480), "x")
    assert target.box(0) == pytest.approx((0.1, 0.1, 0.6, 0.6), abs=0.01)
    assert target.mask(0).mean() == pytest.approx(0.125, abs=0.01)


def test_shapes_of_crowds_are_run_lengths(tmp_path):
    sample = refcoco(tmp_path, instances=with_shape(CROWD), task="mask").read(0, generator())
    target = read_annotation(sample.targets["mask"][0], MediaInfo("image", 640, 480), "x")
    assert target.box(0) == (0, 0, 1 / 640, 1)


def test_wordings_of_refcoco_are_those_of_its_task(tmp_path):
    masks = refcoco(tmp_path, instances=with_shape([POLYGON]), task="mask")
    boxes = refcoco(tmp_path)
    asked = [{s.read(0, generator(n)).turns for n in range(60)} for s in (masks, boxes)]
    assert not asked[0] & asked[1]
    assert len(asked[0]) > 10
    own = {"questions": ["{expression}!"], "answers": ["<mask>"], "task": "mask"}
    turns = refcoco(tmp_path, instances=with_shape([POLYGON]), **own).read(0, generator()).turns
    assert [turn.text for turn in turns] == ["red cup!", "<mask>"]
    with pytest.raises(ValidationError, match="must have <mask> exactly once"):
        refcoco(tmp_path, task="mask", answers=["<region>"])
    with pytest.raises(ValidationError, match="must have <region> exactly once"):
        refcoco(tmp_path, answers=["<mask>"])


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        (INSTANCES, "needs 'images' with 'id' and 'annotations' with 'id' and 'segmentation'"),
        (
            with_shape([]),
            r"annotation 77: segmentation is \[\]; it is a list of polygons or an RLE",
        ),
        (with_shape("x"), "annotation 77: segmentation is 'x'"),
    ],
)
def test_refcoco_without_shapes_is_refused_when_asked_for_masks(tmp_path, instances, message):
    with pytest.raises(DataError, match=message):
        refcoco(tmp_path, instances=instances, task="mask")


# ---- wordings ----


def test_wordings_are_drawn_by_the_given_generator_alone(tmp_path):
    source = refcoco(tmp_path)
    state = np.random.get_state()[1].tolist()
    texts = [source.read(0, generator(seed)).turns for seed in range(40)]
    assert texts == [source.read(0, generator(seed)).turns for seed in range(40)]
    assert len(set(texts)) > 5
    assert np.random.get_state()[1].tolist() == state


def test_wordings_of_the_recipe_are_used(tmp_path):
    source = refcoco(
        tmp_path, questions=["Wo ist {expression}?"], answers=["{expression}: <region>"]
    )
    assert source.read(0, generator()).turns == (
        Turn("user", "Wo ist red cup?"),
        Turn("assistant", "red cup: <region>"),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"questions": ["Where?"]}, r"the question 'Where\?' lacks {expression}"),
        ({"questions": []}, "at least 1"),
        ({"answers": ["Here."]}, "the answer 'Here.' must have <region> exactly once"),
        ({"answers": ["<region> <region>"]}, "exactly once"),
        ({"image_root": "x"}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        RefcocoJsonOptions(annotations="a.jsonl", **options)


# ---- refcoco_json ----

INTERNVL = {
    "image": "a/1.jpg",
    "sent": "red cup",
    "bbox": [64, 48, 384, 288],
    "width": 640,
    "height": 480,
}
SHIKRA = {
    "img_path": "a/1.jpg",
    "expression": "red cup",
    "bbox": [64, 48, 384, 288],
    "height": 480,
    "width": 640,
}


def refcoco_json(folder, text, **options):
    (folder / "refs.json").write_text(text)
    return RefcocoJsonSource(RefcocoJsonOptions(annotations="refs.json", **options), folder)


@pytest.mark.parametrize("entry", [INTERNVL, SHIKRA])
@pytest.mark.parametrize("as_list", [True, False])
def test_both_spellings_are_read_as_lines_and_as_a_list(tmp_path, entry, as_list):
    text = json.dumps([entry, entry]) if as_list else f"{json.dumps(entry)}\n\n{json.dumps(entry)}"
    source = refcoco_json(tmp_path, text)
    assert len(source) == 2
    sample = source.read(1, generator())
    assert sample.id == "entry-2"
    assert sample.targets == {"region": ((0.1, 0.1, 0.6, 0.6),)}
    assert sample.media == (Media("image", tmp_path / "a" / "1.jpg"),)
    assert "red cup" in sample.turns[0].text


def test_media_start_from_the_folder_that_is_named(tmp_path):
    (tmp_path / "coco").mkdir()
    source = refcoco_json(tmp_path, json.dumps(INTERNVL), media_root="coco")
    assert source.read(0, generator()).media[0].path == tmp_path / "coco" / "a" / "1.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("[]", "the list is empty"),
        ("[{", "refs.json: this is not JSON"),
        ("[1]", "refs.json, entry 1: expected a JSON object, found int"),
        ("{", "refs.json, line 1: this is not JSON"),
        ("\n3", "refs.json, line 2: expected a JSON object, found int"),
        ('{"sent": "x"}', r"line 1: needs 'image' and 'sent' \(InternVL\) or .* found sent"),
        (json.dumps({**INTERNVL, "sent": " "}), "line 1: 'image' and 'sent' must be texts"),
        (json.dumps({**INTERNVL, "bbox": [64, 48, 60, 288]}), "line 1: in pixels .* swapped: x0"),
        (json.dumps({**INTERNVL, "height": 0}), "line 1: height = 0; a box in pixels needs"),
        ('{"image": "a", "sent": "b"}', "line 1: 'bbox' is missing; it holds x0, y0, x1, y1"),
    ],
)
def test_what_is_wrong_with_the_first_expression_is_said_at_once(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        refcoco_json(tmp_path, text)


def test_what_is_wrong_with_a_later_expression_is_said_with_its_place(tmp_path):
    bad = {**INTERNVL, "bbox": [0, 0, 700, 10]}
    as_lines = refcoco_json(tmp_path, f"{json.dumps(INTERNVL)}\n{json.dumps(bad)}\n")
    with pytest.raises(DataError, match=r"refs\.json, line 2: .* leaves the image"):
        as_lines.read(1, generator())
    as_list = refcoco_json(tmp_path, json.dumps([INTERNVL, bad]))
    with pytest.raises(DataError, match=r"refs\.json, entry 2: .* leaves the image"):
        as_list.read(1, generator())
