"""Sources of moments, on files written here in each published layout: what is read and dropped."""

import importlib
import json
import logging
import pickle
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

import tpokit_temporal
from tpokit import DataError, Media, Turn
from tpokit_temporal.annotations import read_annotation
from tpokit_temporal.sources.moment_lines import MomentLinesSource
from tpokit_temporal.sources.options import DidemoOptions, MomentLinesOptions, MomentOptions
from tpokit_temporal.templates import ANSWERS, QUESTIONS


def generator(seed=0):
    return np.random.default_rng(seed)


def target(source, index=0):
    (found,) = source.read(index, generator()).targets["temporal"]
    return found


# ---- one JSON object a line: QVHighlights, TACoS, NLQ ----

QVHIGHLIGHTS = {
    "qid": 8,
    "query": "A girl shows her bag",
    "duration": 10,
    "vid": "yt0_60.0_210.0",
    "relevant_clip_ids": [1, 2, 3],
    "saliency_scores": [[2, 3, 1], [4, 4, 2], [3, 2, 2]],
    "relevant_windows": [[2, 6], [6, 8]],
}
TACOS = {
    "qid": "s17-d69_0",
    "query": "He took out a pan",
    "duration": 423.06,
    "vid": "s17-d69",
    "relevant_windows": [[7.62, 12.18]],
}
NLQ = {
    "qid": "val0",
    "query": "what did I put in the bin?",
    "duration": 480.04,
    "vid": "93231c7e-1cf4",
    "video_uid": "38737402-19bd",
    "relevant_windows": [[425.0, 431.0]],
}


def lines(folder, *entries, **options):
    text = "".join(f"{e if isinstance(e, str) else json.dumps(e)}\n" for e in entries)
    (folder / "own.jsonl").write_text(text)
    return MomentLinesSource(MomentLinesOptions(annotations="own.jsonl", **options), folder)


def test_qvhighlights_gives_moments_and_the_sum_of_the_ratings_of_each_clip(tmp_path):
    sample = lines(tmp_path, QVHIGHLIGHTS).read(0, generator())
    assert sample.id == "8"
    assert sample.media == (Media("video", tmp_path / "yt0_60.0_210.0.mp4"),)
    assert "A girl shows her bag" in sample.turns[0].text
    assert sample.calls == ["temporal"]
    assert sample.targets["temporal"] == (
        {
            "moments_s": [[2.0, 6.0], [6.0, 8.0]],
            "saliency": [0.0, 6.0, 10.0, 7.0, 0.0],
            "clip_s": 2.0,
            "saliency_max": 12.0,
            "video": "yt0",  # another cut of the same video may show the same thing
            "query": "A girl shows her bag",
            "query_id": "8",
            "duration_s": 10.0,
        },
    )


def test_tacos_and_nlq_give_moments_without_saliency(tmp_path):
    source = lines(tmp_path, TACOS, NLQ, video_file="clips/{video}.avi")
    assert target(source, 0) == {
        "moments_s": [[7.62, 12.18]],
        "video": "s17-d69",
        "query": "He took out a pan",
        "query_id": "s17-d69_0",
        "duration_s": 423.06,
    }
    assert target(source, 1)["video"] == "38737402-19bd"
    paths = [source.read(index, generator()).media[0].path for index in range(2)]
    assert paths == [tmp_path / "clips/s17-d69.avi", tmp_path / "clips/93231c7e-1cf4.avi"]


def test_what_may_be_missing_has_a_default(tmp_path):
    entry = {"video_uid": "v", "query": " a dog ", "relevant_windows": [[1, 2]]}
    source = lines(tmp_path, TACOS, "", entry)
    assert source.read(1, generator()).id == "entry-2"
    assert target(source, 1) == {
        "moments_s": [[1.0, 2.0]],
        "video": "v",
        "query": "a dog",
        "query_id": "entry-2",
    }


def test_heads_understand_what_the_source_gives(tmp_path):
    source = lines(tmp_path, QVHIGHLIGHTS, NLQ)
    first = read_annotation(target(source, 0), clips=5, duration_s=10.0, where="here")
    assert first.moments == pytest.approx(np.array([(0.4, 0.4), (0.7, 0.2)]))
    assert first.saliency == (0, 6, 10, 7, 0)
    assert first.video == "yt0"
    second = read_annotation(target(source, 1), clips=480, duration_s=480.0, where="here")
    assert sum(second.saliency) == 6


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"duration": 9.0}, [0, 6, 10, 7, 0]),  # the last clip is cut short
        ({"duration": 6}, [0, 6, 10]),  # one clip begins where the video ends
        ({"relevant_clip_ids": [], "saliency_scores": []}, [0, 0, 0, 0, 0]),
    ],
)
def test_there_is_one_value_for_each_clip_of_the_video(tmp_path, changes, values):
    source = lines(tmp_path, {**QVHIGHLIGHTS, "relevant_windows": [[2, 6]], **changes})
    assert target(source)["saliency"] == values


def test_clips_of_another_length_and_other_numbers_of_raters_are_read(tmp_path):
    entry = {**QVHIGHLIGHTS, "saliency_scores": [[2], [4], [3]]}
    found = target(lines(tmp_path, entry, clip_s=1.0))
    assert found["saliency"] == [0, 2, 4, 3, 0, 0, 0, 0, 0, 0]
    assert (found["clip_s"], found["saliency_max"]) == (1.0, 4.0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", "this is not JSON"),
        ("[1]", "expected a JSON object, found list"),
        (
            {key: QVHIGHLIGHTS[key] for key in ("qid", "query", "duration", "vid")},
            "no 'relevant_windows'; without labels .* can be neither trained nor scored on",
        ),
        ({**TACOS, "query": None}, "'query' must be a text, found None"),
        ({**TACOS, "vid": 3}, "'vid' must be a text, found 3"),
        ({**TACOS, "vid": " "}, "'vid' must be a text, found ' '"),
        ({**NLQ, "video_uid": 3}, "'video_uid' must be a text, found 3"),
        ({**TACOS, "duration": 0}, "duration = 0; it must be above 0, in seconds"),
        ({**TACOS, "duration": "10"}, "duration needs seconds as finite numbers, found '10'"),
        ({**TACOS, "relevant_windows": 3}, r"moments are a list of \[start, end\] in seconds"),
        ({**TACOS, "relevant_windows": [[1, 2, 3]]}, r"a moment is \[start, end\] in seconds"),
        ({**TACOS, "relevant_windows": [[1, None]]}, "a moment needs seconds .* found None"),
        ('{"vid": "v", "query": "q", "relevant_windows": [[1, NaN]]}', "finite numbers, found nan"),
        ({**QVHIGHLIGHTS, "saliency_scores": [[1, 2, 3]]}, "must be lists of one length"),
        ({**QVHIGHLIGHTS, "saliency_scores": None}, "must be lists of one length"),
        ({**QVHIGHLIGHTS, "duration": None}, "'duration' is missing; saliency needs it"),
        ({**QVHIGHLIGHTS, "relevant_clip_ids": [1, 2, -3]}, "are numbers from 0, found -3"),
        (
            {**QVHIGHLIGHTS, "saliency_scores": [[1, 2, 3], [1, 2], [1, 2, 3]]},
            r"one rating of each of the 3 raters, found \[1, 2\]",
        ),
        ({**QVHIGHLIGHTS, "saliency_scores": [[5], [1], [1]]}, r"from 0 to 4, found \[5\]"),
    ],
)
def test_a_line_that_is_not_in_the_format_is_refused_with_file_and_number(tmp_path, entry, message):
    with pytest.raises(DataError, match=message) as caught:
        lines(tmp_path, TACOS, "", entry)
    assert str(caught.value).startswith(f"{tmp_path / 'own.jsonl'}, line 3: ")


def test_a_source_holds_places_not_rows_and_survives_copying_to_a_worker(tmp_path):
    long = {**TACOS, "query": "x" * 500}
    copied = pickle.dumps(lines(tmp_path, *(dict(long, qid=n) for n in range(500))))
    assert len(copied) < 500 * 26 + 3000  # 24 bytes a line
    assert pickle.loads(copied).read(499, generator()).id == "499"


# ---- what the published files are known to contain ----


def moments(folder, *found, **options):
    return lines(folder, {**TACOS, "duration": 20.0, "relevant_windows": list(found)}, **options)


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ([15, 20.4], [15, 20]),
        ([-0.2, 3], [0, 3]),
        ([-1, 100], [0, 20]),
        ([3, 4], [3, 4]),
    ],
)
def test_a_moment_that_leaves_the_video_is_cut_to_it(tmp_path, caplog, found, kept):
    assert target(moments(tmp_path, found))["moments_s"] == [kept]
    assert not caplog.records


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ([9, 4], "a moment ends before it starts"),
        ([20, 25], "a moment lies outside the video"),
        ([-3, 0], "a moment lies outside the video"),
        ([7, 7], r"a moment has no length \(shortest_s would widen it\)"),
    ],
)
def test_a_moment_without_anything_in_the_video_is_dropped_and_said(tmp_path, caplog, found, fault):
    assert target(moments(tmp_path, found, [3, 4]))["moments_s"] == [[3, 4]]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "1 of 1 entries are used. Dropped: 1 x" in record.getMessage()
    with pytest.raises(DataError, match=rf"own\.jsonl: no entry can be used: 1 x {fault} \(first"):
        moments(tmp_path, found)


def test_entries_that_nothing_can_be_asked_about_are_left_out_counted_and_said(tmp_path, caplog):
    source = lines(
        tmp_path,
        dict(TACOS, query=" "),
        dict(TACOS, qid="good"),
        dict(TACOS, relevant_windows=[[9, 4]]),
        dict(TACOS, relevant_windows=[]),
        dict(TACOS, relevant_windows=[[9, 4], [5, 4]]),
        dict(TACOS, qid="better"),
    )
    assert [source.read(index, generator()).id for index in range(len(source))] == [
        "good",
        "better",
    ]
    path = tmp_path / "own.jsonl"
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 2 of 6 entries are used. Dropped: "
        f"1 x the query is empty (first: {path}, line 1); "
        f"3 x a moment ends before it starts (first: {path}, line 3); "
        f"1 x there is no moment (first: {path}, line 4)"
    ]


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ([7, 7], [6.5, 7.5]),
        ([7, 7.5], [6.75, 7.75]),
        ([0, 0], [0, 0.5]),
        ([19.9, 20.1], [19.5, 20]),
        ([3, 9], [3, 9]),
    ],
)
def test_short_moments_can_be_widened(tmp_path, caplog, found, kept):
    assert target(moments(tmp_path, found, shortest_s=1.0))["moments_s"] == [kept]
    assert not caplog.records


def test_the_table_goes_before_the_annotations_and_need_not_be_complete(tmp_path):
    (tmp_path / "a.json").write_text('{"s17-d69": 10}')
    source = lines(tmp_path, TACOS, NLQ, durations="a.json")
    assert target(source, 0)["moments_s"] == [[7.62, 10.0]]
    assert [target(source, index)["duration_s"] for index in range(2)] == [10.0, 480.04]


# ---- wordings and options ----


def test_there_are_ten_questions_and_every_answer_calls_once():
    assert len(set(QUESTIONS)) == 10
    assert all(question.count("{query}") == 1 for question in QUESTIONS)
    assert all(answer.count("<temporal>") == 1 for answer in ANSWERS)


def test_wordings_are_drawn_by_the_given_generator_alone(tmp_path):
    source = lines(tmp_path, TACOS)
    state = np.random.get_state()[1].tolist()
    texts = [source.read(0, generator(seed)).turns for seed in range(60)]
    assert texts == [source.read(0, generator(seed)).turns for seed in range(60)]
    assert len({question for question, _ in texts}) == 10
    assert len({answer for _, answer in texts}) == len(ANSWERS)
    assert np.random.get_state()[1].tolist() == state


def test_wordings_of_the_recipe_are_used_and_can_state_the_seconds(tmp_path):
    source = lines(
        tmp_path,
        {**TACOS, "query": "{seconds}?", "relevant_windows": [[7.62, 12.18], [20, 30]]},
        questions=["Wann: {query}"],
        answers=["{query} {seconds} s: <temporal>"],
    )
    assert source.read(0, generator()).turns == (
        Turn("user", "Wann: {seconds}?"),
        Turn("assistant", "{seconds}? 7.6-12.2 and 20.0-30.0 s: <temporal>"),
    )


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (MomentOptions, {"questions": ["When?"]}, r"the question 'When\?' lacks {query}"),
        (MomentOptions, {"questions": []}, "at least 1"),
        (MomentOptions, {"answers": ["Then."]}, "the answer 'Then.' must have <temporal> exactly"),
        (MomentOptions, {"video_file": "a.mp4"}, "the file name 'a.mp4' lacks {video}"),
        (MomentOptions, {"clip_s": 2.0}, "Extra inputs are not permitted"),
        (MomentOptions, {"shortest_s": -1}, "greater than or equal to 0"),
        (MomentLinesOptions, {"clip_s": 0}, "greater than 0"),
        (DidemoOptions, {"annotator": "best"}, "'frequent' or 'mean'"),
        (DidemoOptions, {"video_file": "a"}, "the file name 'a' lacks {video} or {stem}"),
    ],
)
def test_wrong_options_are_refused(model, options, message):
    with pytest.raises(ValidationError, match=message):
        model(annotations="a.jsonl", **options)


def resolve(name):
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("spec", tpokit_temporal.tpokit_sources(), ids=lambda spec: spec.name)
def test_every_source_that_is_offered_is_there_and_names_a_missing_file(tmp_path, spec):
    source = resolve(spec.factory)
    assert source.Options is resolve(spec.options)
    assert spec.summary
    with pytest.raises(DataError, match=r"gone\.json: there is no such file"):
        source(source.Options(annotations="gone.json"), tmp_path)


def test_a_folder_of_media_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"media_root: there is no folder .*nowhere"):
        lines(tmp_path, TACOS, media_root="nowhere")
    (tmp_path / "videos").mkdir()
    sample = lines(tmp_path, TACOS, media_root="videos").read(0, generator())
    assert sample.media[0].path == tmp_path / "videos" / "s17-d69.mp4"


def test_offers_and_options_do_not_import_torch():
    code = (
        "import sys, tpokit_temporal, tpokit_temporal.sources.options\n"
        "tpokit_temporal.tpokit_sources()\n"
        "print([name for name in ('torch', 'PIL', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
