"""Prompts, as text and as the ids of the release, by the very path that users take."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.plugins.videochat2.talks import (
    CLIP_TOKENS,
    FACTS,
    BoxHead,
    ListeningHead,
    MomentHead,
    TrackHead,
    encoder_of,
    media_of,
    sample_of,
    show,
    text_of,
    view_of,
    words_of,
)
from tpokit import DataError, Turn
from tpokit.types import IGNORED

CASES = [case for case in FACTS["cases"] if case["kind"] != "raw"]
TIMES_S = (0.3, 1.0, 1.7, 2.4)
MESSAGE = " The video contains 16 frames sampled at 0.3, 1.0, 1.7, 2.4 seconds."
CLIP = view_of("video", 16, times_s=TIMES_S)
TEMPLATES = ["chat", "app", "videochat2"]
PRIVATE = {chr(code) for code in range(0xE000, 0xE020)}


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    show(monkeypatch, a=view_of(), b=view_of(seed=1), clip=CLIP, clip2=CLIP)


def talk(*texts, media=(), system="", **fields):
    turns = [Turn("system", system)] if system else []
    turns += [Turn(("user", "assistant")[index % 2], text) for index, text in enumerate(texts)]
    return sample_of(*turns, media=media, **fields)


def prompt(encoder, sample, **options):
    return encoder.encode(sample, "data", answer_next=True, **options)


def released_ids(encoder, case):
    """Ids of a case, with task tokens by the numbers of our table."""
    names = {index: name for name, index in FACTS["tokenizer"]["special_ids"].items()}
    return [encoder.tokens.ids[names[i]] if i in names else i for i in case["ids"]]


def test_there_are_cases_of_both_kinds():
    assert [case["kind"] for case in CASES].count("app") == 5
    assert [case["kind"] for case in CASES].count("generate_answer") == 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}-{case['question'][:12]}")
def test_prompts_of_the_release_become_its_ids(case):
    encoder = encoder_of(
        *(BoxHead, MomentHead, TrackHead),
        template="app" if case["kind"] == "app" else "chat",
        timestamps="always" if case["message"] else "never",
    )
    question = case["question"].replace("<track_box>", "<track>")
    texts = [text for pair in case.get("history", []) for text in pair]
    sample = talk(
        *texts,
        question,
        media=media_of("clip" if case["media"] == "video" else "a"),
        system=case.get("instruction", ""),
        given={"track": (0.5,)} if "<track>" in question else {},
    )
    prefix = "Best Option: (" if case.get("answer_prompt") else ""
    example = prompt(encoder, sample, answer_prefix=prefix)
    assert example.ids == released_ids(encoder, case)
    first = case["visual_start"]
    assert example.ids[first : first + case["visual_count"]] == [0] * CLIP_TOKENS


# ---- text ----

CUT = "<Video>{V}<s> </Video>"  # a part that begins anew gets a blank in front


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            "chat",
            f"<s> Be short. [INST] {CUT}[/INST] [INST] q [/INST]a.</s>  [INST] r [/INST]b.</s>",
        ),
        (
            "app",
            f"<s> Be short. [INST] {CUT}[/INST]<s>  [INST] q [/INST] a.</s>  [INST] r [/INST] "
            "b.</s>",
        ),
        (
            "videochat2",
            "<s> Be short. [INST] <Video>{V} </Video> [/INST] [INST] q [/INST] a. </s>"
            "  [INST] r [/INST] b. </s>",
        ),
    ],
)
def test_a_conversation_in_each_template(template, expected):
    encoder = encoder_of(template=template)
    sample = talk("q", "a.", "r", "b.", media=media_of("clip"), system="Be short.")
    assert text_of(encoder, encoder.encode(sample, "data").ids) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("chat", "<s> [INST] q [/INST]"),
        ("app", "<s> [INST] q [/INST] "),
        ("videochat2", "<s> [INST] q [/INST]"),
    ],
)
def test_text_alone_needs_no_turn_for_media(template, expected):
    encoder = encoder_of(template=template)
    assert text_of(encoder, prompt(encoder, talk("q")).ids) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("chat", f"<s> [INST] {CUT}[/INST]"),
        ("app", f"<s> [INST] {CUT}[/INST]<s>  "),
        ("videochat2", "<s> [INST] <Video>{V} </Video> [/INST]"),
    ],
)
def test_a_question_without_words_is_left_out_behind_media(template, expected):
    encoder = encoder_of(template=template)
    assert text_of(encoder, prompt(encoder, talk("", media=media_of("clip"))).ids) == expected


@pytest.mark.parametrize("template", TEMPLATES)
def test_media_have_a_pair_of_tags_each_in_the_order_of_their_marks(template):
    encoder = encoder_of(template=template)
    sample = talk("is <image> like <video> or <image>?", media=media_of("a", "clip", "b"))
    again = "" if template == "videochat2" else "<s>"
    tags = f"<Image>{{V}}{again} </Image> <Video>{{V}}{again} </Video> <Image>{{V}}{again} </Image>"
    found = text_of(encoder, prompt(encoder, sample).ids)
    assert found.startswith(f"<s> [INST] {tags}")
    assert "[INST] is like or ? [/INST]" in found


def test_media_of_a_later_turn_stand_in_front_of_its_question():
    encoder = encoder_of(template="chat")
    sample = talk("hello", "hi", "what is <image>", media=media_of("a"))
    assert text_of(encoder, prompt(encoder, sample).ids) == (
        "<s> [INST] hello [/INST]hi</s>  [INST] <Image>{V}<s> </Image>[/INST] "
        "[INST] what is [/INST]"
    )


# ---- times ----


@pytest.mark.parametrize(
    ("timestamps", "question", "told"),
    [
        ("always", "q", True),
        ("never", "give timestamps", False),
        ("asked", "q", False),
        ("asked", "give a timestamp", True),
    ],
)
@pytest.mark.parametrize("kind", [BoxHead, ListeningHead])
def test_times_are_told_as_wanted(timestamps, question, told, kind):
    encoder = encoder_of(kind, timestamps=timestamps)
    sample = talk(question, media=media_of("clip"))
    found = text_of(encoder, prompt(encoder, sample).ids)
    assert f"</Video>{MESSAGE if told else ''}[/INST] [INST] {question} [/INST]" in found


def test_every_video_tells_its_own_times_and_an_image_none(monkeypatch):
    second = view_of("video", 2, times_s=(0.04, 11.96))
    show(monkeypatch, a=view_of(), clip=CLIP, clip2=second)
    encoder = encoder_of(timestamps="always")
    sample = talk("q", media=media_of("clip", "a", "clip2"))
    found = text_of(encoder, prompt(encoder, sample).ids)
    assert f"</Video>{MESSAGE} <Image>{{V}}<s> </Image> <Video>" in found
    assert "</Video> The video contains 2 frames sampled at 0.0, 12.0 seconds.[/INST]" in found


# ---- what is learnt ----


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("answer", ["A small car.", "(A) sat down", "\u6f22", " ", "1", "</b>"])
def test_training_is_the_prompt_and_then_the_answer(template, answer):
    encoder = encoder_of(template=template)
    sample = talk("what", "(no)", "and", answer, media=media_of("clip"), system="Be short.")
    whole, opened = encoder.encode(sample, "data"), prompt(encoder, sample)
    length = len(opened.ids)
    assert whole.ids[:length] == opened.ids
    assert whole.labels[length:] == whole.ids[length:]
    written = encoder.processor.tokenizer.decode(whole.ids[length:])
    end = " </s>" if template == "videochat2" else "</s>"
    assert written.strip() == f"{answer.strip()}{end}".strip()
    # and the first turn is learnt in just the same way
    first = prompt(encoder, talk("what", media=media_of("clip"), system="Be short."))
    learnt = [token for token in whole.labels[:length] if token != IGNORED]
    start = len(first.ids)
    assert whole.ids[start : start + len(learnt)] == learnt
    assert encoder.processor.tokenizer.decode(learnt).split() in (["(no)</s>"], ["(no)", "</s>"])


TEXTS = st.text(st.one_of(st.sampled_from(" ]([)/INST.a1"), st.characters(codec="utf-8")))


@pytest.mark.parametrize("template", TEMPLATES)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(TEXTS.filter(lambda text: not PRIVATE & set(text)), min_size=2, max_size=4))
def test_any_training_text_is_the_prompt_and_then_the_answer(template, texts):
    encoder = encoder_of(template=template)
    sample = talk(*texts[: len(texts) // 2 * 2], media=media_of("a"))
    whole, opened = encoder.encode(sample, "data"), prompt(encoder, sample)
    length = len(opened.ids)
    assert whole.ids[:length] == opened.ids
    assert whole.labels[:length] == opened.labels
    assert whole.labels[length:] == whole.ids[length:]
    assert whole.ids[-1] == encoder.processor.tokenizer.eos_token_id


@pytest.mark.parametrize("template", TEMPLATES)
def test_calls_are_learnt_wherever_they_stand(template):
    encoder = encoder_of(BoxHead, template=template)
    sample = talk("where", "<box>", "and", "here <box> .", targets={"box": (0.5, 0.25)})
    whole = encoder.encode(sample, "data")
    named = words_of(encoder, whole.ids)
    learnt = [name for name, label in zip(named, whole.labels, strict=True) if label != IGNORED]
    blank = "\u2581"
    if template == "videochat2":
        assert learnt == [
            *(blank, "<box_begin>", blank * 2, "</s>"),
            *(f"{blank}here", blank, "<box_begin>", blank, f"{blank}.", blank, "</s>"),
        ]
    else:
        assert learnt == [
            *("<box_begin>", "</s>"),
            *("here", blank, "<box_begin>", blank, f"{blank}.", "</s>"),
        ]
    for call in whole.slots["box"]:
        assert [named[at] for at in call] == ["<boxes>"]
        assert named[call[0] - 1] == "<box_begin>"
    opened = prompt(encoder, sample)
    assert whole.ids[: len(opened.ids)] == opened.ids


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_may_be_begun(template):
    encoder = encoder_of(template=template)
    sample = talk("which", media=media_of("clip"))
    begun = prompt(encoder, sample, answer_prefix="(A")
    complete = encoder.encode(talk("which", "(A) sat", media=media_of("clip")), "data")
    assert complete.ids[: len(begun.ids)] == begun.ids
    assert begun.ids[: len(prompt(encoder, sample).ids)] == prompt(encoder, sample).ids


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_words_of_questions_are_found(template):
    encoder = encoder_of(ListeningHead, template=template)
    sample = talk("the \u6f22 cup?", "(no)", "or (this)", media=media_of("clip"), system="Hm.")
    example = prompt(encoder, sample)
    names = words_of(encoder, example.ids)
    found = ["".join(names[at] for at in places) for places in example.questions]
    assert found == ["\u2581the\u2581<0xE6><0xBC><0xA2>\u2581cup?", "\u2581or\u2581(this)"]


# ---- what is refused ----


@pytest.mark.parametrize(
    "sample",
    [talk("a <unk> b"), talk("q", "<unk>", "r"), talk("q", system="<unk>")],
    ids=["question", "answer", "system"],
)
def test_the_word_that_stands_for_media_is_refused_in_texts(sample):
    with pytest.raises(DataError, match=r"data/7: the text holds '<unk>', the word in whose place"):
        prompt(encoder_of(), sample)


def test_placeholders_and_media_that_do_not_match_are_an_error():
    processor = encoder_of().processor
    with pytest.raises(DataError, match=r"1 placeholders <unk>, but the sample has 2 media \(a\."):
        processor.expand("<unk>", [view_of(), view_of()])
    with pytest.raises(DataError, match=r"1 placeholders <unk>, but the sample has 0 media \(none"):
        processor.expand("<unk>", [])
