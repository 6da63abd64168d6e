"""VideoChat2-IT, on files and media written here: what is read, and every message."""

import json
import pickle

import numpy as np
import pytest
from pydantic import ValidationError

from tests.composed import encoder_of, tiny_model
from tests.core.data.fakes import write_image
from tests.core.data.test_frame_folder import frame_folder_of
from tests.core.data.test_video import write
from tpokit import DataError, Media, Sample, Turn
from tpokit.types import IGNORED
from tpokit_videochat2 import instruction_file
from tpokit_videochat2.instruction_options import InstructionOptions
from tpokit_videochat2.instruction_source import VideoChat2Instructions

CLIMBER = {
    "video": "k710/abc.mp4",
    "start": 3.0,
    "end": 9.5,
    "QA": [
        {"i": "Look closely.", "q": "What is the man doing?", "a": " Climbing.\n"},
        {"q": "Where?", "a": "On a wall."},
        {"i": "", "q": "When?", "a": "At noon."},
    ],
}
CUP = {"image": "cup.png", "QA": [{"i": "Describe it.", "q": "", "a": "A cup."}]}


def generator(seed=0):
    return np.random.default_rng(seed)


def instructions(folder, *entries, text=None, **options):
    text = json.dumps(entries) if text is None else text
    (folder / "it.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return VideoChat2Instructions(InstructionOptions(annotations="it.json", **options), folder)


def said(sample):
    return [turn.text for turn in sample.turns]


# ---- what is read ----


def test_a_clip_with_questions_is_read(tmp_path):
    source = instructions(tmp_path, CLIMBER, CUP, shuffle=False)
    assert len(source) == 2
    assert source.read(0, generator()) == Sample(
        "entry-1",
        (
            Turn("system", "Look closely."),
            Turn("user", "What is the man doing?"),
            Turn("assistant", "Climbing."),
            Turn("user", "Where?"),
            Turn("assistant", "On a wall."),
            Turn("user", "When?"),
            Turn("assistant", "At noon."),
        ),
        (Media("video", tmp_path / "k710" / "abc.mp4", 3.0, 9.5),),
    )
    caption = source.read(1, generator())
    assert caption.media == (Media("image", tmp_path / "cup.png"),)
    assert said(caption) == ["Describe it.", "", "A cup."]


def test_questions_are_shuffled_by_the_generator_and_the_instruction_is_of_the_first_then(tmp_path):
    pairs = [{"i": f"i{n}", "q": f"q{n}", "a": f"a{n}"} for n in range(4)]
    source = instructions(tmp_path, {"video": "v.mp4", "QA": pairs})
    orders = set()
    for seed in range(30):
        sample = source.read(0, generator(seed))
        assert sample == source.read(0, generator(seed))
        first, *rest = said(sample)
        order = tuple(int(text[1:]) for text in rest[::2])
        assert rest == [f"{sign}{n}" for n in order for sign in "qa"]
        assert first == f"i{order[0]}"
        orders.add(order)
    assert len(orders) > 15
    assert {turn for order in orders for turn in order} == {0, 1, 2, 3}


def test_an_instruction_of_any_pair_holds_for_all_wherever_shuffling_puts_it(tmp_path):
    source = instructions(tmp_path, CLIMBER, turns_max=1)
    found = [said(source.read(0, generator(seed))) for seed in range(20)]
    assert {texts[0] for texts in found} == {"Look closely."}
    assert {texts[1] for texts in found} == {"What is the man doing?", "Where?", "When?"}
    assert {len(texts) for texts in found} == {3}


def test_the_instruction_can_be_dropped_and_shuffling_turned_off(tmp_path):
    source = instructions(tmp_path, CLIMBER, instruction="drop", shuffle=False, turns_max=2)
    sample = source.read(0, None)
    assert [turn.role for turn in sample.turns] == ["user", "assistant"] * 2
    assert said(sample)[0] == "What is the man doing?"


def test_a_single_question_need_not_stand_in_a_list(tmp_path):
    entry = {"video": "v.mp4", "QA": {"q": "Where?", "a": "Here."}}
    assert said(instructions(tmp_path, entry).read(0, generator())) == ["Where?", "Here."]


def test_a_rate_is_for_folders_of_frames_alone(tmp_path):
    (tmp_path / "media" / "frames").mkdir(parents=True)
    pair = {"q": "Where?", "a": "Here."}
    entries = [{"video": name, "QA": [pair]} for name in ("frames", "v.mp4")]
    source = instructions(tmp_path, *entries, media_root="media", rate=3)
    media = [source.read(index, generator()).media[0] for index in range(2)]
    assert media == [
        Media("video", tmp_path / "media" / "frames", rate=3.0),
        Media("video", tmp_path / "media" / "v.mp4"),
    ]


def test_other_keys_of_published_files_do_no_harm(tmp_path):
    pair = {**CUP["QA"][0], "id": 5}
    entry = {**CUP, "QA": [pair], "clip": "x", "start": None}
    assert said(instructions(tmp_path, entry).read(0, generator()))[-1] == "A cup."


# ---- large files ----


@pytest.mark.parametrize("chunk", [3, 7, 100, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_entries_are_found_again_whatever_their_size_and_spacing(
    tmp_path, monkeypatch, chunk, indent
):
    monkeypatch.setattr(instruction_file, "_CHUNK", chunk)
    answers = ['é"]},{[' * (1 + 37 * n % 50) + str(n) for n in range(40)]
    entries = [{"image": "ü.png", "QA": [{"q": "\u0085", "a": answer}]} for answer in answers]
    text = json.dumps(entries, indent=indent, ensure_ascii=False).encode()
    source = instructions(tmp_path, text=b"\xef\xbb\xbf \r\n" + text + b"\n")
    assert len(source) == 40
    for index in (39, 0, 17, 38):
        assert source.read(index, generator()).turns[-1].text == answers[index]
    assert source.read(3, generator()).media[0].path.name == "ü.png"


def test_a_source_holds_places_not_entries_and_survives_copying_to_a_worker(tmp_path):
    entry = {"image": "a.png", "QA": [{"q": "x" * 300, "a": "y"}]}
    source = instructions(tmp_path, *[entry] * 500)
    copied = pickle.dumps(source)
    assert len(copied) < 500 * 16 + 3000
    assert pickle.loads(copied).read(499, generator()).id == "entry-500"


# ---- through the encoder of a whole model ----


def test_images_clips_folders_and_captions_become_examples(tmp_path):
    write(tmp_path / "v.mp4", shown=range(40))
    write_image(tmp_path / "a.png", 90, (32, 24))
    frame_folder_of(tmp_path / "frames", 12, size=(32, 24))
    pairs = [
        {"i": "be helpful", "q": "what is this ?", "a": "a ring"},
        {"q": "", "a": "it is red"},
    ]
    source = instructions(
        tmp_path,
        {"image": "a.png", "QA": [{"q": "", "a": "a red ring"}]},
        {"video": "v.mp4", "start": 1.0, "end": 3.0, "QA": pairs},
        {"video": "frames", "QA": pairs[:1]},
        rate=4,
        shuffle=False,
    )
    model = tiny_model(tmp_path / "model", frames=4)
    encoder, tokenizer = encoder_of(model), model.backbone.processor.tokenizer
    examples = [
        encoder.encode(source.read(index, generator()), "it", random=generator())
        for index in range(3)
    ]
    learnt = [
        tokenizer.decode([label for label in example.labels if label != IGNORED])
        for example in examples
    ]
    end = encoder.processor.end_of_turn
    assert [text.replace(end, "|").replace(" ", "") for text in learnt] == [
        "aredring|",
        "aring|itisred|",
        "aring|",
    ]
    assert [view.times_s for example in examples for view in example.views] == [
        (0.0,),
        pytest.approx((1.2, 1.7, 2.2, 2.7)),
        (0.25, 1.0, 1.75, 2.5),
    ]
    assert examples[1].ids.count(tokenizer.convert_tokens_to_ids("helpful")) == 1
    asked = encoder.encode(source.read(0, generator()), "it", answer_next=True)
    assert asked.ids == examples[0].ids[: len(asked.ids)]


def test_a_missing_file_and_the_mark_of_a_task_name_the_entry(tmp_path):
    write_image(tmp_path / "a.png")
    source = instructions(
        tmp_path,
        CUP,
        {"image": "a.png", "QA": [{"q": "where", "a": "here <region>"}]},
        {"image": "a.png", "QA": [{"q": "in <region> ?", "a": "yes"}]},
    )
    encoder = encoder_of(tiny_model(tmp_path / "model"))
    for index, message in (
        (0, r"it/entry-1: .*cup\.png: there is no such file"),
        (1, r"it/entry-2: <region> stands 1 times in the answers, but there are 0 targets"),
        (2, r"it/entry-3: <region> stands 1 times in the questions, but there are 0 given"),
    ):
        with pytest.raises(DataError, match=message):
            encoder.encode(source.read(index, generator()), "it")


# ---- what can be wrong ----

PAIR = {"q": "Where?", "a": "Here."}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"QA": [PAIR]}, r"needs either 'image' or 'video', found QA"),
        (
            {"image": "a", "video": "b", "QA": [PAIR]},
            r"needs either 'image' or 'video', found both",
        ),
        ({"image": 3, "QA": [PAIR]}, r"'image' must be a path, found 3"),
        ({"video": "", "QA": [PAIR]}, r"'video' must be a path, found ''"),
        ({"image": "a"}, r"'QA' is missing; it lists questions 'q' and answers 'a'"),
        ({"image": "a", "QA": []}, r"'QA' must be a list with at least one {q, a}, found \[\]"),
        ({"image": "a", "QA": "Where?"}, r"'QA' must be a list .* found 'Where\?'"),
        ({"image": "a", "QA": [PAIR, "x"]}, r", QA 2: needs 'q' .* and 'a' .* found 'x'"),
        ({"image": "a", "QA": [{"q": "Where?"}]}, r", QA 1: needs 'q' .* and 'a' .* found {'q'"),
        ({"image": "a", "QA": [{"q": 1, "a": "b"}]}, r", QA 1: 'q', the question, .* found 1"),
        ({"image": "a", "QA": {"q": "", "a": " "}}, r", QA 1: 'a', the answer, is empty"),
        ({"image": "a", "QA": [{**PAIR, "i": None}]}, r"'i', the instruction, .* found None"),
        (
            {"video": "a", "QA": [{"q": "<video>\nWhere?", "a": "b"}]},
            r", QA 1: 'q', the question, holds <video>; the medium comes in front",
        ),
        ({"image": "a", "QA": [{"q": "", "a": "<image>"}]}, r"'a', the answer, holds <image>"),
        ({"video": "a", "start": "0:03", "QA": [PAIR]}, r"'start' must be seconds .* '0:03'"),
        ({"video": "a", "end": float("nan"), "QA": [PAIR]}, r"'end' must be seconds .* nan"),
        ({"video": "a", "end": True, "QA": [PAIR]}, r"'end' must be seconds from 0, found True"),
        (
            {"video": "a", "start": 5, "end": 5, "QA": [PAIR]},
            r"'end' = 5 must be later than 'start' = 5",
        ),
    ],
)
def test_a_wrong_entry_is_an_error_that_names_file_and_number(tmp_path, entry, message):
    source = instructions(tmp_path, CUP, entry)
    with pytest.raises(DataError, match=rf"it\.json, entry 2.*{message}"):
        source.read(1, generator())
    with pytest.raises(DataError, match=r"it\.json, entry 1"):  # the first one is read at once
        instructions(tmp_path, entry, CUP)


def test_entries_of_another_kind_than_the_option_says_are_errors(tmp_path):
    source = instructions(tmp_path, CUP, CLIMBER, kind="image")
    assert source.read(0, generator()).media[0].kind == "image"
    with pytest.raises(DataError, match=r"entry 2: is about 'video', but the option kind says im"):
        source.read(1, generator())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"it\.json: the list is empty"),
        ("", r"it\.json: expected a JSON list of entries, found the end of the file"),
        ('{"QA": []}', r"it\.json: expected a JSON list of entries, found '{'"),
        ("[{}, 5]", r"it\.json, entry 2: an object is expected, found '5'"),
        ("[{}, ]", r"it\.json, entry 2: an object is expected, found ']'"),
        ("[{},", r"it\.json, entry 2: an object is expected, found the end of the file"),
        ("[{} {}]", r"it\.json, entry 1: ',' or ']' must follow it, found '{'"),
        ("[{}", r"it\.json, entry 1: ',' or ']' must follow it, found the end of the file"),
        ("[{}] x", r"it\.json: this is not JSON: there is more behind the list"),
        (
            ' [{}, {"a": 1, b}]',
            r"it\.json, entry 2: this is not JSON \(.*, byte 1[345] of the file\)",
        ),
        ('[{"a": "cut', r"it\.json, entry 1: this is not JSON \(Unterminated string .* byte 7 of"),
    ],
)
def test_a_file_that_is_no_list_of_objects_is_an_error_at_once(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        instructions(tmp_path, text=text)


def test_an_entry_that_does_not_end_is_given_up_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(instruction_file, "_CHUNK", 10)
    monkeypatch.setattr(instruction_file, "_ENTRY_MAX", 100)
    good = json.dumps(CUP)
    assert len(good) < 100
    with pytest.raises(DataError, match=r"entry 2: this is not JSON"):
        instructions(tmp_path, text=f'[{good}, {{"a": "{"x" * 5000}')


def test_text_that_is_no_utf8_is_an_error_of_its_entry(tmp_path):
    text = json.dumps([CUP, {**CUP, "image": "*.png"}]).encode().replace(b"*", b"\xff")
    source = instructions(tmp_path, text=text)
    assert source.read(0, generator()).id == "entry-1"
    with pytest.raises(DataError, match=r"it\.json, entry 2: this is not JSON .*utf-8"):
        source.read(1, generator())


def test_missing_files_and_folders_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"media_root: there is no folder .*nowhere"):
        instructions(tmp_path, CUP, media_root="nowhere")
    with pytest.raises(DataError, match=r"gone\.json: there is no such file"):
        VideoChat2Instructions(InstructionOptions(annotations="gone.json"), tmp_path)


@pytest.mark.parametrize(
    "options", [{"rate": 0}, {"turns_max": 0}, {"kind": "text"}, {"instruction": "maybe"}, {"x": 1}]
)
def test_options_are_checked_before_anything_is_opened(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        InstructionOptions(annotations="it.json", **options)
