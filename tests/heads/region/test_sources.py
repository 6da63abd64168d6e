"""Sources of region data, on files written here: what is read, and every message."""

import json
import pickle
import pickletools

import numpy as np
import pytest
from pydantic import ValidationError

from tpokit import DataError, Media, Turn
from tpokit_region.jsonl import JsonlSource
from tpokit_region.options import JsonlOptions, RefcocoJsonOptions, RefcocoOptions
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


# ---- jsonl: our own ----

QUESTION = {"question": "Where is the cup?", "answer": "Here: <region>."}


def jsonl(folder, *entries, **options):
    text = "".join(f"{e if isinstance(e, str) else json.dumps(e)}\n" for e in entries)
    (folder / "own.jsonl").write_text(text)
    return JsonlSource(JsonlOptions(annotations="own.jsonl", **options), folder)


def test_a_question_with_a_box_is_read(tmp_path):
    entry = {
        "id": "a1",
        "image": "c.jpg",
        **QUESTION,
        "targets": {"region": [[0.1, 0.2, 0.5, 0.6]]},
    }
    sample = jsonl(tmp_path, entry).read(0, generator())
    assert sample.id == "a1"
    assert sample.turns == (
        Turn("user", QUESTION["question"]),
        Turn("assistant", QUESTION["answer"]),
    )
    assert sample.media == (Media("image", tmp_path / "c.jpg"),)
    assert sample.targets == {"region": ([0.1, 0.2, 0.5, 0.6],)}
    assert sample.calls == ["region"]


def test_turns_of_any_task_are_passed_on_as_they_are(tmp_path):
    entry = {
        "turns": [
            {"role": "system", "text": "Be brief."},
            {"role": "user", "text": "When is <region> seen, and how deep is it?"},
            {"role": "assistant", "text": "Then: <temporal>, so deep: <depth>."},
        ],
        "media": [
            {"kind": "video", "path": "v.mp4", "start_s": 1, "end_s": 2.5},
            {"kind": "image", "path": "i.png"},
        ],
        "targets": {"temporal": [[3.0, 9.5]], "depth": [{"metres": 4}]},
        "given": {"region": [[0.1, 0.2, 0.5, 0.6]]},
    }
    sample = jsonl(tmp_path, entry).read(0, generator())
    assert sample.id == "entry-1"
    assert [turn.role for turn in sample.turns] == ["system", "user", "assistant"]
    assert sample.media == (
        Media("video", tmp_path / "v.mp4", 1.0, 2.5),
        Media("image", tmp_path / "i.png"),
    )
    assert sample.targets == {"temporal": ([3.0, 9.5],), "depth": ({"metres": 4},)}
    assert sample.given == {"region": ([0.1, 0.2, 0.5, 0.6],)}


def test_other_ways_to_name_media_and_none_at_all(tmp_path):
    source = jsonl(
        tmp_path,
        {**QUESTION, "images": ["a.png", "b.png"]},
        {**QUESTION, "video": "v.mp4", "start_s": 3},
        QUESTION,
    )
    media = [source.read(index, generator()).media for index in range(3)]
    assert media == [
        (Media("image", tmp_path / "a.png"), Media("image", tmp_path / "b.png")),
        (Media("video", tmp_path / "v.mp4", 3.0, None),),
        (),
    ]


def test_pixels_become_fractions_for_boxes_alone(tmp_path):
    entry = {
        **QUESTION,
        "box_unit": "pixels",
        "width": 640,
        "height": 480,
        "targets": {
            "region": [[64, 48, 384, 288], {"box": [64, 48, 384, 288], "name": "cup"}],
            "temporal": [[3.0, 9.5]],
        },
        "given": {"mask": [[0, 0, 640, 480]]},
    }
    sample = jsonl(tmp_path, entry).read(0, generator())
    assert sample.targets["region"] == (
        [0.1, 0.1, 0.6, 0.6],
        {"box": [0.1, 0.1, 0.6, 0.6], "name": "cup"},
    )
    assert sample.targets["temporal"] == ([3.0, 9.5],)
    assert sample.given == {"mask": ([0, 0, 1, 1],)}


def test_lines_are_found_again_past_blank_ones_long_ones_and_other_line_ends(tmp_path):
    entries = [{"id": f"s{n}", **QUESTION, "answer": "é" * (n * 997)} for n in range(30)]
    lines = [json.dumps(entry, ensure_ascii=False).encode() for entry in entries]
    (tmp_path / "own.jsonl").write_bytes(
        b"\n \n".join(lines[:15]) + b"\r\n" + b"\r\n".join(lines[15:])
    )
    source = JsonlSource(JsonlOptions(annotations="own.jsonl"), tmp_path)
    assert len(source) == 30
    for index in (29, 0, 14, 15, 7):
        sample = source.read(index, generator())
        assert (sample.id, len(sample.turns[1].text)) == (f"s{index}", index * 997)


def test_a_source_holds_places_not_rows_and_survives_copying_to_a_worker(tmp_path):
    source = jsonl(tmp_path, *({"id": str(n), **QUESTION, "answer": "x" * 500} for n in range(500)))
    copied = pickle.dumps(source)
    assert len(copied) < 500 * 20 + 2000
    assert pickle.loads(copied).read(499, generator()).id == "499"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", "this is not JSON"),
        ("[1]", "expected a JSON object, found list"),
        ({"question": "Where?"}, "needs 'turns', or 'question' and 'answer'"),
        ({**QUESTION, "turns": []}, "has both 'turns' and 'question' or 'answer'"),
        ({"turns": "hi"}, "'turns' must be a list of {role, text}, found 'hi'"),
        ({"turns": [{"role": "user"}]}, "a turn has 'role' and 'text' and nothing else"),
        (
            {"turns": [{"role": "gpt", "text": "x"}]},
            "unknown role 'gpt'; there are system, user, assist",
        ),
        ({"turns": [{"role": "user", "text": "x"}]}, "no turn of the assistant"),
        ({"question": "x", "answer": 3}, "what the assistant says must be a text, found 3"),
        ({**QUESTION, "imgae": "a.png"}, "unknown key imgae; there are .*image"),
        ({**QUESTION, "id": [1]}, r"'id' must be a text or a whole number, found \[1\]"),
        ({**QUESTION, "image": "a", "video": "b"}, "has image and video; .* use 'media' alone"),
        ({**QUESTION, "image": 3}, "the path of a medium must be a text, found 3"),
        ({**QUESTION, "images": "a.png"}, "'images' must be a list, found 'a.png'"),
        ({**QUESTION, "image": "a", "start_s": 3}, "start_s and end_s go with 'video'"),
        ({**QUESTION, "media": [{"path": "a"}]}, "a medium has 'kind' and 'path'"),
        ({**QUESTION, "media": [{"kind": "gif", "path": "a"}]}, "unknown kind of media 'gif'"),
        (
            {**QUESTION, "media": [{"kind": "image", "path": "a", "end_s": 1}]},
            "an image has no start_s and end_s",
        ),
        ({**QUESTION, "video": "v", "start_s": -1}, "start_s must be seconds from 0, found -1"),
        (
            {**QUESTION, "video": "v", "start_s": 5, "end_s": 5},
            "end_s = 5 must be later than start_s = 5",
        ),
        ({**QUESTION, "targets": [[0, 0, 1, 1]]}, "'targets' maps each task to a list"),
        ({**QUESTION, "given": {"region": 3}}, "'given' maps each task to a list with one value"),
        ({**QUESTION, "box_unit": "px"}, "unknown box_unit 'px': fraction or pixels"),
        (
            {**QUESTION, "box_unit": "pixels", "targets": {"region": [[1, 2, 3, 4]]}},
            "targets.region: width = None; a box in pixels needs the size of its image",
        ),
        (
            {
                **QUESTION,
                **{"box_unit": "pixels", "width": 10, "height": 10},
                "targets": {"region": [[1, 2, 30, 4]]},
            },
            r"targets.region: in pixels \[1, 2, 30, 4\] of 10 x 10: .* leaves the image: x1 = 3",
        ),
    ],
)
def test_a_wrong_line_is_refused_with_file_line_and_id(tmp_path, entry, message):
    if isinstance(entry, dict):
        entry = {"id": "b7", **entry}
    source = jsonl(tmp_path, QUESTION, "", entry)
    with pytest.raises(DataError, match=message) as caught:
        source.read(1, generator())
    place = f"{tmp_path / 'own.jsonl'}, line 3"
    named = isinstance(entry, dict) and isinstance(entry["id"], str)
    assert str(caught.value).startswith(f"{place} (id b7)" if named else f"{place}: ")


def test_the_first_line_is_checked_when_the_file_is_opened(tmp_path):
    with pytest.raises(DataError, match=r"own\.jsonl, line 1: needs 'turns'"):
        jsonl(tmp_path, {"image": "a.png"})
    with pytest.raises(DataError, match=r"own\.jsonl: the file is empty; it needs one JSON object"):
        jsonl(tmp_path, "", "")
    with pytest.raises(DataError, match=r"nowhere\.jsonl: there is no such file"):
        JsonlSource(JsonlOptions(annotations="nowhere.jsonl"), tmp_path)
    with pytest.raises(DataError, match=r"media_root: there is no folder .*nowhere"):
        jsonl(tmp_path, QUESTION, media_root="nowhere")
