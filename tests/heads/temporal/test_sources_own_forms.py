"""Sources whose files are of a form of their own: Charades-STA, ActivityNet Captions, DiDeMo."""

import json

import numpy as np
import pytest

from tpokit import DataError, Media
from tpokit_temporal.sources.activitynet import ActivitynetSource
from tpokit_temporal.sources.charades import CharadesSource
from tpokit_temporal.sources.didemo import DidemoSource, agreed_moment
from tpokit_temporal.sources.options import DidemoOptions, MomentOptions


def generator(seed=0):
    return np.random.default_rng(seed)


def target(source, index=0):
    (found,) = source.read(index, generator()).targets["temporal"]
    return found


# ---- Charades-STA ----

CHARADES = "AB12C 24.3 30.4##a person opens a door.\n\nDE34F 0.0 5.1##he says ##1 is his.\n"


def charades(folder, text=CHARADES, **options):
    (folder / "charades_sta_test.txt").write_text(text)
    return CharadesSource(MomentOptions(annotations="charades_sta_test.txt", **options), folder)


def test_the_text_of_charades_is_split_once(tmp_path):
    source = charades(tmp_path)
    samples = [source.read(index, generator()) for index in range(len(source))]
    assert [sample.id for sample in samples] == ["entry-1", "entry-2"]
    assert samples[0].media == (Media("video", tmp_path / "AB12C.mp4"),)
    assert target(source, 0) == {
        "moments_s": [[24.3, 30.4]],
        "video": "AB12C",
        "query": "a person opens a door.",
        "query_id": "entry-1",
    }
    assert target(source, 1)["query"] == "he says ##1 is his."


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.csv",
            'id,subject,descriptions,length\nAB12C,X,"two\nlines, a comma",30.0\nDE34F,,,5\n',
        ),
        ("a.csv", "AB12C,30.0\nDE34F,5\n"),
        ("a.csv", "Video,Duration\r\nAB12C,30.0\r\nDE34F,5\r\n"),
        ("a.txt", "AB12C 30.0\n\nDE34F\t5\n"),
        ("a.json", '{"AB12C": 30.0, "DE34F": 5}'),
        ("a.json", '{"AB12C": {"duration": 30.0}, "DE34F": {"duration": 5, "fps": 3}}'),
    ],
)
def test_lengths_of_videos_come_from_a_table_of_several_forms(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    source = charades(tmp_path, durations=name)
    assert [target(source, index)["duration_s"] for index in range(2)] == [30.0, 5.0]
    assert target(source, 0)["moments_s"] == [[24.3, 30.0]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", r"a\.csv: there is no row with a video and its seconds"),
        ("a.csv", "id,length\nAB12C,long\n", r"a\.csv, row 2: 'long' is no number of seconds"),
        ("a.csv", "AB12C\n", r"a\.csv, row 1: expected a video and its seconds, found \['AB12C'\]"),
        ("a.txt", "AB12C -3\n", r"a\.txt, row 1: duration = -3.0; it must be above 0"),
        ("a.json", "[]", r"a\.json: expected an object of video to seconds, found \[\]"),
        ("a.json", '{"AB12C": {}}', r"a\.json, AB12C: duration needs seconds .* found None"),
        ("a.json", '{"AB12C": 30}', r"line 3: the length of the video 'DE34F' is not in a\.json"),
        (None, None, r"a\.csv: there is no such file"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        charades(tmp_path, durations=name or "a.csv")


@pytest.mark.parametrize(
    "line",
    ["AB12C 24.3 30.4 a person", "AB12C 24.3##a person", "AB12C 1 x##a", "AB12C nan 3##a", "##a"],
)
def test_a_line_of_another_form_is_refused(tmp_path, line):
    with pytest.raises(
        DataError, match=r"test\.txt, line 2: expected 'VIDEO START END##SENTENCE', found"
    ):
        charades(tmp_path, f"AB12C 24.3 30.4##a\n{line}\n")


def test_a_charades_line_without_a_sentence_or_reversed_is_left_out(tmp_path, caplog):
    source = charades(tmp_path, "A 1 2##\nB 3 2##b\nC 1 2##c\n")
    assert [source.read(index, generator()).id for index in range(len(source))] == ["entry-3"]
    assert "1 of 3 entries are used" in caplog.text


def test_the_lines_that_cg_detr_publishes_of_charades_are_read_too(tmp_path):
    entry = {
        "qid": 0,
        "query": "He took out a pan",
        "duration": 30.96,
        "vid": "AB12C",
        "relevant_windows": [[7.62, 12.18]],
    }
    assert target(charades(tmp_path, json.dumps(entry)))["duration_s"] == 30.96


# ---- ActivityNet Captions ----

ACTIVITYNET = {
    "v_abc": {
        "duration": 82.7,
        "timestamps": [[0.8, 19.9], [60.8, 17.4], [17.4, 60.8]],
        "sentences": ["A man sits.", " He stands.", " He plays."],
    },
    "v_def": {"duration": 5, "timestamps": [[0, 5.2]], "sentences": [" A dog. "]},
}


def activitynet(folder, found=ACTIVITYNET):
    (folder / "val_1.json").write_text(found if isinstance(found, str) else json.dumps(found))
    return ActivitynetSource(MomentOptions(annotations="val_1.json"), folder)


def test_activitynet_gives_one_sample_for_each_sentence(tmp_path, caplog):
    source = activitynet(tmp_path)
    samples = [source.read(index, generator()) for index in range(len(source))]
    assert [sample.id for sample in samples] == ["v_abc-0", "v_abc-2", "v_def-0"]
    assert samples[2].media == (Media("video", tmp_path / "v_def.mp4"),)
    assert target(source, 1) == {
        "moments_s": [[17.4, 60.8]],
        "video": "v_abc",
        "query": "He plays.",
        "query_id": "v_abc-2",
        "duration_s": 82.7,
    }
    assert target(source, 2)["moments_s"] == [[0.0, 5.0]]
    assert "3 of 4 entries are used. Dropped: 1 x a moment ends before it starts" in caplog.text
    assert "val_1.json, video v_abc, sentence 2" in caplog.text


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("{", "val_1.json: this is not JSON"),
        ([1], "val_1.json: expected an object of videos, found list"),
        ({}, "val_1.json: there is no sentence"),
        ({"v_a": 3}, "video v_a: needs 'duration', 'timestamps' and 'sentences'"),
        ({"v_a": {"sentences": []}}, "video v_a: needs 'duration', 'timestamps' and 'sentences'"),
        (
            {"v_a": {"duration": 3, "timestamps": [[1, 2]], "sentences": []}},
            "video v_a: has 1 timestamps for 0 sentences",
        ),
        (
            {"v_a": {"timestamps": [[1, 2]], "sentences": ["a"]}},
            "video v_a, sentence 1: duration needs seconds as finite numbers, found None",
        ),
        (
            {"v_a": {"duration": 3, "timestamps": [[1, 2], 3], "sentences": ["a", "b"]}},
            r"video v_a, sentence 2: a moment is \[start, end\] in seconds, found 3",
        ),
        (
            {"v_a": {"duration": 3, "timestamps": [[1, 2]], "sentences": [3]}},
            "video v_a, sentence 1: 'sentences' must be a text, found 3",
        ),
    ],
)
def test_what_is_wrong_with_activitynet_is_said(tmp_path, found, message):
    with pytest.raises(DataError, match=message):
        activitynet(tmp_path, found)


# ---- DiDeMo ----

DIDEMO = {
    "annotation_id": 5,
    "video": "u@n_123_abc.mov",
    "description": "the dog runs",
    "times": [[1, 1], [1, 1], [0, 1], [1, 2]],
    "num_segments": 6,
    "dl_link": "https://example.org",
}


def didemo(folder, *entries, **options):
    (folder / "val_data.json").write_text(json.dumps(list(entries)))
    return DidemoSource(DidemoOptions(annotations="val_data.json", **options), folder)


def test_chunks_of_didemo_become_seconds(tmp_path):
    source = didemo(tmp_path, DIDEMO, {**DIDEMO, "times": [[4, 5]] * 4, "num_segments": 5})
    sample = source.read(0, generator())
    assert sample.id == "5"
    # annotators saw the first 30 seconds
    assert sample.media == (Media("video", tmp_path / "u@n_123_abc.mov", None, 30.0),)
    assert target(source) == {
        "moments_s": [[5.0, 10.0]],
        "video": "u@n_123_abc.mov",
        "query": "the dog runs",
        "query_id": "5",
    }
    assert target(source, 1)["moments_s"] == [[20.0, 25.0]]


def test_the_last_chunk_of_didemo_ends_with_the_video(tmp_path):
    (tmp_path / "lengths.json").write_text('{"u@n_123_abc.mov": 28.4, "long.mp4": 300}')
    last = {**DIDEMO, "times": [[5, 5]] * 4}
    source = didemo(tmp_path, last, {**last, "video": "long.mp4"}, durations="lengths.json")
    assert [target(source, index)["moments_s"] for index in range(2)] == [
        [[25.0, 28.4]],
        [[25.0, 30.0]],
    ]
    assert [target(source, index)["duration_s"] for index in range(2)] == [28.4, 30.0]


def test_videos_of_didemo_may_have_been_converted(tmp_path):
    source = didemo(tmp_path, DIDEMO, video_file="mp4/{stem}.mp4")
    assert source.read(0, generator()).media[0].path == tmp_path / "mp4" / "u@n_123_abc.mp4"


@pytest.mark.parametrize(
    ("times", "frequent", "mean"),
    [
        ([[1, 1], [1, 1], [0, 1], [1, 2]], [5, 10], [3.75, 11.25]),
        ([[1, 1], [1, 1], [1, 1], [0, 0]], [5, 10], [5, 10]),
        # two and two: the pair that overlaps the others more
        ([[5, 5], [5, 5], [1, 2], [1, 2], [1, 1]], [5, 15], [5, 13 + 1 / 3]),
        # nobody agrees at all: the first
        ([[0, 0], [2, 2], [4, 4]], [0, 5], [0, 5]),
    ],
)
def test_annotators_of_didemo_are_brought_to_one_moment(tmp_path, times, frequent, mean):
    entry = {**DIDEMO, "times": times}
    assert target(didemo(tmp_path, entry))["moments_s"] == [frequent]
    assert target(didemo(tmp_path, entry, annotator="mean"))["moments_s"] == [pytest.approx(mean)]


def test_the_order_of_annotators_does_not_matter_unless_none_agrees():
    given = [(0.0, 5.0), (5.0, 15.0), (5.0, 10.0), (5.0, 15.0)]
    for turn in range(4):
        assert agreed_moment(given[turn:] + given[:turn], "frequent") == (5.0, 15.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": None}, "entry 1: no 'times'; without labels a set can be neither trained nor"),
        ({"times": [[1]]}, r"entry 1: 'times' are \[first, last\] numbers of chunks from 0, found"),
        ({"times": [[1, 1.5]]}, r"entry 1: 'times' are .* found \[1, 1\.5\]"),
        ({"times": [[-1, 1]]}, r"entry 1: 'times' are .* found \[-1, 1\]"),
        ({"num_segments": 0}, "entry 1: num_segments must be a whole number from 1, found 0"),
        ({"description": 3}, "entry 1: 'description' must be a text, found 3"),
        ({"video": None}, "entry 1: 'video' must be a text, found None"),
        ({"times": []}, "no entry can be used: 1 x there is no moment"),
        ({"times": [[2, 1]] * 4}, "no entry can be used: 1 x a moment ends before it starts"),
        ({"times": [[6, 6]] * 4}, "no entry can be used: 1 x a moment lies outside the video"),
    ],
)
def test_what_is_wrong_with_didemo_is_said(tmp_path, changes, message):
    with pytest.raises(DataError, match=rf"val_data\.json(, |: ){message}"):
        didemo(tmp_path, {**DIDEMO, **changes})
