"""From samples to ids, labels and slot positions."""

import pytest

from tests.core.data.fakes import (
    ROWS,
    PointHead,
    SeeingHead,
    StreamingHead,
    WordProcessor,
    write_image,
)
from tpokit import ContextNeed, DataError, Media, NoOptions, Sample, TokenTable, Turn, UsageError
from tpokit.data import conversation
from tpokit.data.collate import Collator
from tpokit.data.conversation import Encoder
from tpokit.types import IGNORED


@pytest.fixture
def encoder():
    return make_encoder(PointHead)


def make_encoder(*kinds, max_length=200):
    heads = {kind.task: kind(NoOptions(), 4) for kind in kinds}
    processor = WordProcessor()
    tokens = TokenTable.build(
        ROWS, {task: head.tokens for task, head in heads.items()}, processor.tokenizer
    )
    return Encoder(processor, heads, tokens, max_length)


def words(encoder, ids):
    names = {index: name for name, index in encoder.tokens.ids.items()}
    return [
        names.get(index) or encoder.processor.tokenizer.convert_ids_to_tokens(index)
        for index in ids
    ]


def talk(*texts, **fields):
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[index % 2], text) for index, text in enumerate(texts))
    return Sample("7", turns, **fields)


def test_answers_and_their_ends_are_learnt_and_nothing_else(encoder):
    example = encoder.encode(talk("where is it", "it is here", "and the ring", "no"), "data")
    assert words(encoder, example.ids) == (
        [
            "<user>",
            "where",
            "is",
            "it",
            "<answer>",
            "it",
            "is",
            "here",
            "<end>",
            "<user>",
            "and",
            "the",
            "ring",
            "<answer>",
            "no",
            "<end>",
        ]
    )
    learnt = [
        word
        for word, label in zip(words(encoder, example.ids), example.labels, strict=True)
        if label != IGNORED
    ]
    assert learnt == ["it", "is", "here", "<end>", "no", "<end>"]
    assert all(
        label in (IGNORED, index) for label, index in zip(example.labels, example.ids, strict=True)
    )


def test_a_call_is_a_learnt_trigger_and_slots_that_are_not_learnt(encoder):
    sample = talk("where", "ring <point> and square <point>", targets={"point": (0.5, 0.25)})
    example = encoder.encode(sample, "data")
    named = words(encoder, example.ids)
    assert " ".join(named[2:]) == (
        "<answer> ring <point_begin> <point_x> <point_y> "
        "and square <point_begin> <point_x> <point_y> <end>"
    )
    assert example.slots == {"point": [[5, 6], [10, 11]]}
    assert [named[at] for at, label in enumerate(example.labels) if label == IGNORED][-4:] == [
        "<point_x>",
        "<point_y>",
    ] * 2
    assert example.labels[4] == encoder.tokens.ids["<point_begin>"]
    assert example.targets == {"point": [0.5, 0.25]}


def test_the_prompt_of_generation_is_what_training_sees_before_the_answer(encoder):
    sample = talk("where", "ring <point>", "and", "it <point>", targets={"point": (0.5, 0.25)})
    whole = encoder.encode(sample, "data")
    prompt = encoder.encode(sample, "data", answer_next=True)
    assert whole.ids[: len(prompt.ids)] == prompt.ids
    assert words(encoder, prompt.ids)[-1] == "<answer>"
    assert prompt.slots == {"point": [[5, 6]]}
    assert prompt.targets == {"point": [0.5]}


def test_a_given_value_stands_at_its_token(encoder):
    sample = talk("is <point> it", "yes", given={"point": (0.5,)})
    example = encoder.encode(sample, "data")
    assert words(encoder, example.ids)[:4] == ["<user>", "is", "<point_given>", "it"]
    assert example.given_positions == {"point": [2]}
    assert example.given == {"point": [[0.5]]}


def test_media_stand_in_front_unless_the_text_says_where(encoder, tmp_path):
    first = Media("image", write_image(tmp_path / "a.png"))
    second = Media("image", write_image(tmp_path / "b.png"))
    front = encoder.encode(talk("where", "here", media=(first,)), "data")
    assert words(encoder, front.ids)[:5] == ["<user>", "<image>", "<image>", "<image>", "where"]
    placed = encoder.encode(talk("is <image> the <image>", "no", media=(first, second)), "data")
    assert words(encoder, placed.ids)[:9] == [
        "<user>",
        "is",
        *["<image>"] * 3,
        "the",
        *["<image>"] * 3,
    ]
    assert [view.path.name for view in placed.views] == ["a.png", "b.png"]


def test_a_head_that_looks_at_media_gets_its_own_views_only_when_called(tmp_path):
    encoder = make_encoder(PointHead, SeeingHead)
    medium = Media("image", write_image(tmp_path / "a.png"))
    called = talk(
        "where", "<sight> <point>", media=(medium,), targets={"sight": (0.5,), "point": (0.5,)}
    )
    assert list(encoder.encode(called, "data").head_views) == ["sight"]
    assert encoder.encode(talk("where", "here", media=(medium,)), "data").head_views == {}
    batch = Collator(encoder.processor, encoder.heads, encoder.tokens)(
        [encoder.encode(called, "data")]
    )
    assert [[view.path.name for view in call] for call in batch.contexts["sight"].prepared] == [
        ["a.png"]
    ]
    assert batch.contexts["point"].prepared == ((),)  # called, but it looks at nothing


def test_a_head_that_streams_gets_frames_in_training_and_none_are_read_for_it_in_inference(
    tmp_path, monkeypatch
):
    encoder = make_encoder(SeeingHead, StreamingHead)
    medium = Media("image", write_image(tmp_path / "a.png"))
    sample = talk(
        *("where", "<sight> <flow>", "and", "<flow>"),
        media=(medium,),
        targets={"sight": (0.5,), "flow": (0.5, 0.25)},
    )
    wanted = []
    real = conversation.read_media
    monkeypatch.setattr(
        conversation, "read_media", lambda *a, **k: wanted.append(set(a[1])) or real(*a, **k)
    )
    taught = encoder.encode(sample, "data")
    asked = encoder.encode(sample, "data", answer_next=True)
    assert wanted == [{"backbone", "sight", "flow"}, {"backbone", "sight"}]
    assert [len(views) for views in taught.prepared["flow"]] == [1, 1]
    assert asked.prepared["flow"] == [()]
    assert encoder.seen(asked, "flow", "and").media == (medium,)
    with pytest.raises(DataError, match=r"task 'flow' looks at an image or a video, but .* none"):
        encoder.encode(talk("where", "<flow>", targets={"flow": (0.5,)}), "data")


def test_a_head_cannot_stream_and_use_the_vision_tower():
    with pytest.raises(UsageError, match="ask for stream or for vision"):
        ContextNeed(stream=True, vision=True)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            talk("where", "it <point>"),
            "data/7: <point> stands 1 times in the answers, but there are 0 targets",
        ),
        (
            talk("where", "it", targets={"point": (0.5,)}),
            "stands 0 times in the answers, but there are 1 targets",
        ),
        (talk("is <point>", "it"), "stands 1 times in the questions, but there are 0 given values"),
        (
            talk("where", "it <mask>", targets={"mask": (1,)}),
            "target of task 'mask', but the model's heads do point",
        ),
        (
            talk("where", "it <point_begin>"),
            "holds the task token '<point_begin>'; write <point> instead",
        ),
        (
            talk("where"),
            "turns are user; they must alternate user, assistant and end with an answer",
        ),
        (Sample("7", (Turn("assistant", "no"),)), "turns are assistant; they must alternate"),
        (talk("where", "it <point>", targets={"point": ("x",)}), "data/7: 'x' is not a number"),
        (talk("is <image>", "no"), "1 media marks in the turns, but 0 media"),
    ],
)
def test_what_does_not_fit_together_is_one_clear_error(encoder, sample, message):
    with pytest.raises(DataError) as error:
        encoder.encode(sample, "data")
    assert message in str(error.value)


def test_a_medium_that_is_missing_is_named_with_its_sample(encoder, tmp_path):
    sample = talk("where", "here", media=(Media("image", tmp_path / "gone.png"),))
    with pytest.raises(DataError, match=r"data/7: .*gone\.png"):
        encoder.encode(sample, "data")


def test_a_sample_that_would_be_cut_is_refused_with_both_lengths():
    encoder = make_encoder(PointHead, max_length=6)
    sample = talk("where is the ring", "ring <point>", targets={"point": (0.5,)})
    with pytest.raises(DataError, match=r"data/7: 11 tokens, but at most 6 fit .*drop a slot"):
        encoder.encode(sample, "data")


def test_a_batch_holds_any_mixture_of_samples(encoder):
    samples = [
        talk("where", "no"),
        talk("where", "<point> and <point>", "and", "<point>", targets={"point": (0.1, 0.2, 0.3)}),
        talk("is <point>", "yes", given={"point": (0.9,)}),
    ]
    examples = [encoder.encode(sample, "data") for sample in samples]
    batch = Collator(encoder.processor, encoder.heads, encoder.tokens)(examples)
    assert batch.mask.sum(1).tolist() == [len(example.ids) for example in examples]
    assert batch.slots["point"].rows.tolist() == [1, 1, 1]
    assert batch.slots["point"].positions.tolist() == examples[1].slots["point"]
    assert batch.targets["point"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert batch.given["point"].rows.tolist() == [2]
    assert batch.given["point"].values.tolist() == [[pytest.approx(0.9)]]
    assert batch.counts == {"language": 7.0, "assign": 3.0, "point.error": 3.0}
    assert batch.samples == ("data/7",) * 3
    for row, position, token in zip(*batch.learnt, strict=True):
        assert batch.labels[row, position + 1] == token
    tokens = batch.tokens
    assert (batch.ids[tokens.rows, tokens.positions] - ROWS).tolist() == tokens.which.tolist()
    assert len(tokens.rows) == 9, "a trigger and two slots for each call; the given token is apart"


def test_left_padding_moves_every_index_along(encoder):
    samples = [
        talk("where", "no"),
        talk("is <point> the", "<point>", targets={"point": (0.1,)}, given={"point": (0.2,)}),
    ]
    examples = [encoder.encode(sample, "data") for sample in samples]
    left, right = (
        Collator(encoder.processor, encoder.heads, encoder.tokens, side)(examples)
        for side in ("left", "right")
    )
    for batch in (left, right):
        where = batch.slots["point"]
        found = batch.ids[where.rows[:, None], where.positions]
        assert found.tolist() == [list(encoder.tokens.slot_ids("point"))]
        given = batch.given["point"]
        assert batch.ids[given.rows, given.positions].tolist() == [encoder.tokens.given_id("point")]
    assert left.counts == right.counts
    assert not left.mask[0, 0]
    assert right.mask[0, 0]


def test_a_batch_without_any_call_has_empty_indices_of_the_right_shape(encoder):
    batch = Collator(encoder.processor, encoder.heads, encoder.tokens)(
        [encoder.encode(talk("where", "no"), "data")]
    )
    assert batch.slots["point"].positions.shape == (0, 2)
    assert batch.given["point"].positions.shape == (0,)
    assert batch.counts["assign"] == 0.0


def test_a_batch_moves_as_a_whole(encoder):
    batch = Collator(encoder.processor, encoder.heads, encoder.tokens)(
        [encoder.encode(talk("where", "no"), "data")]
    )
    moved = batch.to("meta")
    assert moved.ids.device.type == "meta"
    assert moved.slots["point"].rows.device.type == "meta"
    assert moved.media["pixels"].device.type == "meta"
    assert moved.samples == batch.samples
