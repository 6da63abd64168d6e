"""Our own JSONL, on files written here: what is read, and every message."""

import json
import pickle

import numpy as np
import pytest

from tpokit import DataError, Media, Turn
from tpokit_jsonl.options import JsonlOptions
from tpokit_jsonl.source import JsonlSource


def generator(seed=0):
    return np.random.default_rng(seed)


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
        {**QUESTION, "video": "frames", "rate": 24},
    )
    media = [source.read(index, generator()).media for index in range(4)]
    assert media == [
        (Media("image", tmp_path / "a.png"), Media("image", tmp_path / "b.png")),
        (Media("video", tmp_path / "v.mp4", 3.0, None),),
        (),
        (Media("video", tmp_path / "frames", rate=24.0),),
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


def test_pixels_become_fractions_for_the_boxes_of_frames_too_and_masks_stay_as_they_are(tmp_path):
    parts = [{"polygons": [[0, 0, 9, 0, 9, 9, 0, 9]], "size": [480, 640]}] * 3 + [None]
    track = {"frames": [{"time_s": 0, "box": [64, 48, 384, 288], "mask": parts}, {"box": None}]}
    entry = {**QUESTION, "box_unit": "pixels", "width": 640, "height": 480}
    targets = {"mask": [track, parts]}
    sample = jsonl(tmp_path, {**entry, "targets": targets}).read(0, generator())
    found, whole = sample.targets["mask"]
    assert found["frames"] == [
        {"time_s": 0, "box": [0.1, 0.1, 0.6, 0.6], "mask": parts},
        {"box": None},
    ]
    assert whole == parts


def test_pngs_of_masks_start_from_the_folder_of_the_media(tmp_path):
    (tmp_path / "media").mkdir()
    png = {"png": "masks/1.png", "values": [1]}
    entry = {**QUESTION, "targets": {"mask": [{"frames": [{"mask": png}, {"mask": [None, png]}]}]}}
    sample = jsonl(tmp_path, entry, media_root="media").read(0, generator())
    (found,) = sample.targets["mask"]
    full = {"png": str(tmp_path / "media" / "masks" / "1.png"), "values": [1]}
    assert found == {"frames": [{"mask": full}, {"mask": [None, full]}]}


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
        ({**QUESTION, "image": "a", "start_s": 3}, "start_s, end_s and rate go with 'video'"),
        ({**QUESTION, "media": [{"path": "a"}]}, "a medium has 'kind' and 'path'"),
        ({**QUESTION, "video": "a", "rate": 0}, "rate must be frames a second, above 0, found 0"),
        ({**QUESTION, "media": [{"kind": "gif", "path": "a"}]}, "unknown kind of media 'gif'"),
        (
            {**QUESTION, "media": [{"kind": "image", "path": "a", "end_s": 1}]},
            "an image has no start_s, end_s and rate",
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
