"""Samples that are too long: what is given up, and what never is."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.data.fakes import ROWS, PointHead, SeeingHead, WordProcessor
from tpokit import DataError, Media, NoOptions, Sample, TokenTable, Turn, View
from tpokit.data import conversation
from tpokit.data.conversation import Encoder
from tpokit.tokens import marked_tasks

IMAGE, VIDEO = Media("image", Path("a.png")), Media("video", Path("b.mp4"))
FRAMES = 8


def fake_media(media, needs, random=None):
    """Frames that hold their own number."""
    count = 1 if media.kind == "image" else FRAMES
    frames = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    times_s = tuple(0.5 * place for place in range(count))
    return dict.fromkeys(needs, View(media.kind, frames, times_s, 0.5 * count, media.path))


@pytest.fixture(autouse=True)
def media_without_files(monkeypatch):
    monkeypatch.setattr(conversation, "read_media", fake_media)


class EvenProcessor(WordProcessor):
    """Takes an even number of frames only."""

    def expand(self, text, views):
        if any(len(view.frames) % 2 for view in views):
            raise DataError("odd")
        return super().expand(text, views)


def make_encoder(max_length, too_long="shorten", processor=WordProcessor, **limits):
    heads = {kind.task: kind(NoOptions(), 4) for kind in (PointHead, SeeingHead)}
    made = processor()
    tokens = TokenTable.build(ROWS, {t: head.tokens for t, head in heads.items()}, made.tokenizer)
    return Encoder(made, heads, tokens, max_length, too_long=too_long, **limits)


def talk(*texts, **fields):
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[place % 2], text) for place, text in enumerate(texts))
    return Sample("7", turns, **fields)


def texts(example):
    return [turn.text for turn in example.sample.turns]


def test_older_rounds_go_first_and_their_targets_and_given_values_with_them():
    sample = talk(
        *("is <point> it", "it <point>"),
        *("where", "<point> and <sight>"),
        *("and <point>", "no <point>"),
        media=(IMAGE,),
        targets={"point": (0.1, 0.2, 0.3), "sight": (0.4,)},
        given={"point": (0.5, 0.6)},
    )
    system = Turn("system", "the")
    sample = Sample("7", (system, *sample.turns), sample.media, sample.targets, sample.given)
    with_marks = Turn("user", "<image> and <point>")  # the image in the last round
    turns = (*sample.turns[:-2], with_marks, sample.turns[-1])
    sample = Sample("7", turns, sample.media, sample.targets, sample.given)
    whole = make_encoder(500).encode(sample, "data")
    assert not whole.shortened
    one_less = make_encoder(len(whole.ids) - 1).encode(sample, "data")
    assert one_less.shortened
    assert texts(one_less) == ["the", *(turn.text for turn in turns[3:])]
    assert one_less.targets == {"point": [0.2, 0.3], "sight": [0.4]}
    assert one_less.given == {"point": [[0.6]], "sight": []}
    assert list(one_less.head_views) == ["sight"]
    last = make_encoder(len(one_less.ids) - 1).encode(sample, "data")
    assert texts(last) == ["the", "<image> and <point>", "no <point>"]
    assert (last.targets["point"], last.targets["sight"]) == ([0.3], [])
    assert last.head_views == {}
    assert last.sample.id == "7"


def test_the_round_that_shows_the_media_stays():
    sample = talk("where", "here", "and", "it is here and it is here", "the", "no", media=(IMAGE,))
    length = len(make_encoder(500).encode(sample, "data").ids)
    found = make_encoder(length - 1).encode(sample, "data")
    assert texts(found) == ["where", "here", "the", "no"], "without marks media stand in the first"


def test_then_frames_go_evenly_and_keep_their_times():
    sample = talk("where", "here", "<video> and <image> <video>", "no", media=(VIDEO, IMAGE, VIDEO))
    whole = make_encoder(500).encode(sample, "data")
    found = make_encoder(len(whole.ids) - 11).encode(sample, "data")  # 4 for the first round
    assert texts(found) == texts(whole)[2:]
    assert [len(view.frames) for view in found.views] == [6, 1, 6]
    assert found.views[0].frames[:, 0, 0, 0].tolist() == [0, 2, 3, 4, 6, 7]
    assert found.views[0].times_s == (0.0, 1.0, 1.5, 2.0, 3.0, 3.5)
    assert found.media == whole.media
    least = make_encoder(12).encode(sample, "data")
    assert [view.times_s for view in least.views] == [(2.0,), (0.0,), (2.0,)]
    message = r"data/7: 45 tokens, but at most 11 fit \(run.max_length\), without older turns and "
    with pytest.raises(DataError, match=message + "with one frame of each video, too; a cut would"):
        make_encoder(11).encode(sample, "data")


def test_only_as_many_frames_are_left_as_the_backbone_can_take():
    sample = talk("<video> where", "here", media=(VIDEO,))
    length = len(make_encoder(500).encode(sample, "data").ids)
    found = make_encoder(length - 1, processor=EvenProcessor).encode(sample, "data")
    assert len(found.views[0].frames) == 6


def test_nothing_is_shortened_where_it_shall_not_be():
    sample = talk("it is here", "it is here", "where", "here")
    for encoder, fields in (
        (make_encoder(8, "drop"), {}),
        (make_encoder(4), {"answer_next": True}),
    ):
        with pytest.raises(DataError, match="tokens, but at most"):
            encoder.encode(sample, "data", **fields)


def test_the_tighter_of_two_limits_counts_and_is_named():
    sample = talk("it is here", "it is here", "where", "here")
    encoder = make_encoder(500, device_tokens=6)
    assert texts(encoder.encode(sample, "data")) == ["where", "here"]
    with pytest.raises(DataError, match=r"at most 6 fit \(run.device_tokens\)"):
        make_encoder(500, "drop", device_tokens=6).encode(sample, "data")
    with pytest.raises(DataError, match=r"at most 5 fit \(run.max_length\)"):
        make_encoder(5, "drop", device_tokens=6).encode(sample, "data")


def test_a_sample_with_more_pixels_than_a_device_takes_is_bad():
    sample = talk("where", "here", media=(IMAGE, VIDEO))
    make_encoder(500, device_pixels=FRAMES + 1).encode(sample, "data")
    message = (
        r"data/7: 9 pixels of its media go through the vision tower, but a device takes at most 8 "
        r"at once \(run.device_pixels\); give fewer or smaller media or fewer frames, or allow more"
    )
    with pytest.raises(DataError, match=message):
        make_encoder(500, device_pixels=FRAMES).encode(sample, "data")


# ---- whatever the sample ----

WORDS = ["it", "is", "here", "where", "the", "ring", "<point>", "<point>"]
said = st.lists(st.sampled_from([*WORDS, "<sight>"]), min_size=1, max_size=6)
asked = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6)
shown = st.lists(st.sampled_from(["<image>", "<video>"]), max_size=2)
rounds = st.lists(st.tuples(shown, asked, said), min_size=1, max_size=6)


def sample_of(numbered):
    """Of rounds with their numbers; a value is a hundred times that of its round, and its place."""
    turns, media, values = [], [], {"user": {}, "assistant": {}}
    for number, (seen, question, answer) in numbered:
        media += [IMAGE if mark == "<image>" else VIDEO for mark in seen]
        pair = Turn("user", " ".join([*seen, *question])), Turn("assistant", " ".join(answer))
        for turn in pair:
            for place, task in enumerate(marked_tasks(turn.text, ("point", "sight"))):
                found = values[turn.role]
                found[task] = (*found.get(task, ()), 100.0 * number + place)
        turns += pair
    return Sample("7", tuple(turns), tuple(media), values["assistant"], values["user"])


@settings(max_examples=50, deadline=None)
@given(rounds, st.integers(4, 100))
def test_what_is_left_fits_and_nothing_is_torn_and_no_more_goes_than_must(drawn, limit):
    drawn[0] = (["<image>", *drawn[0][0]], *drawn[0][1:])  # so that media stand at their marks
    numbered = list(enumerate(drawn))
    can_go = [number for number, (seen, _, _) in numbered[:-1] if not seen]

    def without(count):
        return sample_of([each for each in numbered if each[0] not in can_go[:count]])

    endless = make_encoder(10_000)
    length = len(endless.encode(without(0), "data").ids)
    try:
        found = make_encoder(limit).encode(without(0), "data")
    except DataError:
        needed = len(endless.encode(without(len(can_go)), "data").ids)
        clips = sum(seen.count("<video>") for seen, _, _ in drawn)
        assert needed - 2 * (FRAMES - 1) * clips > limit
        return
    assert len(found.ids) <= limit
    assert found.shortened == (length > limit)
    gone = len(drawn) - len(found.sample.turns) // 2
    assert found.sample == without(gone)
    assert gone == 0 or len(endless.encode(without(gone - 1), "data").ids) > limit
    same = endless.encode(found.sample, "data")
    assert (found.targets, found.given) == (same.targets, same.given)
    frames = [len(view.frames) for view in found.views if view.kind == "video"]
    lost = sum(FRAMES - count for count in frames)
    assert len(found.ids) == len(same.ids) - 2 * lost, "nothing but frames is missing"
    assert lost == 0 or gone == len(can_go), "frames go last"
    assert lost == 0 or len(found.ids) + 2 * len(frames) > limit, "one more of each is too many"
    assert {task: len(calls) for task, calls in found.slots.items()} == {
        task: len(targets) for task, targets in found.targets.items()
    }
