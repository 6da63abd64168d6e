"""What a head sees of its calls besides their slots: the same in training and in generation."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.composed import collator_of, encoder_of, samples, tiny_model
from tpokit import (
    ContextNeed,
    DataError,
    LossTerm,
    MediaNeed,
    NoOptions,
    Predictor,
    Sample,
    TaskHead,
    TaskTokens,
    Turn,
)


class Watcher(TaskHead):
    """Keeps the context of its last calls and answers with numbers made of it."""

    task = "temporal"
    tokens = TaskTokens("<watch_begin>", ("<watch>",))
    terms = ("size",)
    need = ContextNeed(media=MediaNeed(rate=8.0), question=True, vision=True, grid=2)

    def __init__(self, host):
        super().__init__(NoOptions(), host)
        self.words = nn.Linear(host.hidden, 4)
        self.frames = nn.Linear(4 * host.vision, 4)
        self.seen = []

    def context_need(self):
        return self.need

    def prepare(self, seen):
        self.seen.append(seen)
        return len(seen.views[0].frames)

    def read_target(self, annotation, seen):
        return [float(seen.prepared or 0)]

    def forward(self, slots, context):
        self.context = context
        words = (self.words(context.question.states) * context.question.mask[..., None]).sum(1)
        frames = (self.frames(context.frames.states) * context.frames.mask[..., None]).sum(1)
        return words + frames

    def loss(self, prediction, targets):
        return {"size": LossTerm(prediction.sum(), float(len(targets)))}

    def decode(self, prediction, media):
        return [Numbers(row) for row in prediction.tolist()]


class Numbers:
    def __init__(self, values):
        self.values = values

    def to_json(self):
        return {"values": self.values}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = tiny_model(tmp_path_factory.mktemp("model"), make_head=Watcher, frames=4).eval()
    with torch.no_grad():
        made.bridge.output.weight.mul_(4.0)
    return made


def clips(folder, **options):
    return [
        sample
        for frames in (16, 6)
        for sample in samples(folder, 2, frames=frames, kinds={"moment": 1.0}, **options)
    ]


def question_text(model, batch, index, row):
    tokenizer = model.backbone.processor.tokenizer
    words = batch.ids[index.rows[row], index.positions[row]][index.mask[row]]
    return tokenizer.decode(words.tolist())


def test_the_words_of_the_question_are_found_among_the_tokens(model, tmp_path):
    asked = clips(tmp_path, turns=(2, 2))
    batch = collator_of(model)([encoder_of(model).encode(sample, "test") for sample in asked])
    index = batch.contexts["temporal"].question
    expected = [turn.text for sample in asked for turn in sample.turns if turn.role == "user"]
    assert len(expected) == len(batch.slots["temporal"].rows) == len(index.rows)
    found = [question_text(model, batch, index, row) for row in range(len(expected))]
    assert found == expected
    last = [question_text(model, batch, batch.questions, row) for row in range(len(asked))]
    assert last == expected[1::2]


def test_calls_of_one_sample_share_its_frames_and_padding_is_masked(model, tmp_path):
    asked = clips(tmp_path, turns=(2, 2))
    batch = collator_of(model)([encoder_of(model).encode(sample, "test") for sample in asked])
    frames = batch.contexts["temporal"].frames
    assert frames.pixels.shape[0] == 16 + 16 + 6 + 6
    assert frames.mask.sum(-1).tolist() == [16, 16, 16, 16, 6, 6, 6, 6]
    assert frames.which[0].tolist() == frames.which[1].tolist() == list(range(16))
    assert frames.which[-1, :6].tolist() == list(range(38, 44))


def test_a_head_prepares_with_its_frames_and_reads_the_target_with_what_it_prepared(
    model, tmp_path
):
    (sample,) = samples(tmp_path, 1, frames=6, kinds={"moment": 1.0}, turns=(1, 1))
    head = model.head("temporal")
    head.seen.clear()
    example = encoder_of(model).encode(sample, "clips")
    (seen,) = head.seen
    assert (seen.where, seen.question) == (f"clips/{sample.id}", sample.turns[0].text)
    assert seen.media == sample.media
    assert seen.info[0].duration_s == pytest.approx(0.75)
    assert seen.views[0].frames.shape[0] == 6
    assert example.prepared["temporal"] == [6]
    assert example.targets["temporal"] == [[6.0]]


def test_a_head_sees_the_same_in_training_and_when_its_call_was_written(
    model, tmp_path, monkeypatch
):
    """The prompt of a call holds the same words and the same frames, so their states are equal."""
    asked = clips(tmp_path, turns=(1, 1))
    head = model.head("temporal")
    batch = collator_of(model)([encoder_of(model).encode(sample, "test") for sample in asked])
    with torch.no_grad():
        model(batch)
    taught = head.context
    always = lambda hidden: torch.full((*hidden.shape[:-1], 1), 1e4)  # noqa: E731
    monkeypatch.setattr(model.bridge.output, "forward", always)
    answers = Predictor(model).answer(asked, max_new_tokens=1)
    assert [len(answer.calls) for answer in answers] == [1] * len(asked)
    heard = head.context
    for row in range(len(asked)):
        words, mask = taught.question.states[row], taught.question.mask[row]
        assert torch.allclose(
            heard.question.states[row][heard.question.mask[row]], words[mask], atol=1e-5
        )
        assert torch.allclose(
            heard.frames.states[row][heard.frames.mask[row]],
            taught.frames.states[row][taught.frames.mask[row]],
            atol=1e-5,
        )
    assert taught.targets is not None
    assert heard.targets is None


def test_no_frames_are_read_in_inference_for_a_head_that_streams(model, tmp_path, monkeypatch):
    (clip,) = samples(tmp_path, 1, frames=6, kinds={"moment": 1.0}, turns=(1, 1))
    monkeypatch.setattr(Watcher, "need", ContextNeed(media=MediaNeed(rate=8.0), stream=True))
    monkeypatch.setattr(Watcher, "prepare", lambda self, seen: seen)
    monkeypatch.setattr(
        Watcher, "forward", lambda self, slots, context: torch.zeros(len(context.prepared), 4)
    )
    monkeypatch.setattr(
        Watcher, "collate_prepared", lambda self, prepared: self.seen.extend(prepared) or prepared
    )
    always = lambda hidden: torch.full((*hidden.shape[:-1], 1), 1e4)  # noqa: E731
    monkeypatch.setattr(model.bridge.output, "forward", always)
    monkeypatch.setattr("tpokit.inference.predictor.read_media", None)
    head = model.head("temporal")
    head.seen.clear()
    (answer,) = Predictor(model).answer([clip], max_new_tokens=1)
    assert len(answer.results("temporal")) == 1
    assert [(seen.views, seen.media) for seen in head.seen] == [((), clip.media)]
    bare = Sample("bare", (Turn("user", "when is it seen"),))
    (answer,) = Predictor(model).answer([bare], max_new_tokens=1)
    assert answer.to_json()["calls"][0]["no_result"] == "the question has no image or video"


def test_a_call_that_a_head_cannot_answer_costs_its_result_alone(model, tmp_path, monkeypatch):
    clips = samples(tmp_path, 2, frames=6, kinds={"moment": 1.0}, turns=(1, 1))
    asked = [replace(clip, turns=clip.turns[:1], targets={}) for clip in clips]

    def prepare(self, seen):
        if seen.sample_id == asked[0].id:
            raise DataError(f"{seen.where}: no such file")
        return len(seen.views[0].frames)

    monkeypatch.setattr(Watcher, "prepare", prepare)
    always = lambda hidden: torch.full((*hidden.shape[:-1], 1), 1e4)  # noqa: E731
    monkeypatch.setattr(model.bridge.output, "forward", always)
    refused, answered = Predictor(model).answer(asked, max_new_tokens=1)
    assert refused.to_json()["calls"] == [
        {"task": "temporal", "no_result": f"ask/{asked[0].id}: no such file"}
    ]
    assert len(answered.results("temporal")[0].values) == 4
    with pytest.raises(DataError, match="no such file"):  # here the data are wrong, not the call
        Predictor(model).answer(clips, max_new_tokens=1)


def test_an_idle_head_that_watches_trains_nothing_and_calls_every_module(model, tmp_path):
    talk = samples(tmp_path, 1, turns=(1, 1))
    batch = collator_of(model)([encoder_of(model).encode(sample, "test") for sample in talk])
    model.train()
    model.alike = True
    try:
        terms = model(batch)
        model.zero_grad()
        sum(term.sum for term in terms.values()).backward()
        head = model.head("temporal")
        assert terms["temporal.size"].sum.item() == 0
        assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
    finally:
        model.alike = False
        model.eval()


def test_gradients_reach_the_vision_tower_and_the_words_through_the_context(model, tmp_path):
    (sample,) = samples(tmp_path, 1, frames=6, kinds={"moment": 1.0}, turns=(1, 1))
    batch = collator_of(model)([encoder_of(model).encode(sample, "test")])
    model.zero_grad()
    model(batch)["temporal.size"].sum.backward()
    tower = model.backbone.parts()["vision"][0]
    assert any(p.grad is not None and p.grad.any() for p in tower.parameters())
    llm = model.backbone.parts()["llm"][0]
    assert any(p.grad is not None and p.grad.any() for p in llm.parameters())


def test_a_call_that_was_written_about_nothing_has_a_reason_for_its_result(model, monkeypatch):
    always = lambda hidden: torch.full((*hidden.shape[:-1], 1), 1e4)  # noqa: E731
    monkeypatch.setattr(model.bridge.output, "forward", always)
    answer = Predictor(model).answer(
        [Sample("bare", (Turn("user", "when is it seen"),))], max_new_tokens=1
    )[0]
    assert answer.results("temporal") == []
    assert answer.to_json()["calls"] == [
        {"task": "temporal", "no_result": "the question has no image or video"}
    ]


def test_a_call_about_nothing_is_refused_when_the_head_looks_at_media(model):
    sample = Sample(
        "bare",
        (Turn("user", "when is the ring seen"), Turn("assistant", "here <temporal>")),
        targets={"temporal": (0,)},
    )
    with pytest.raises(
        DataError, match=r"talk/bare: task 'temporal' looks at an image or a video, but .* none"
    ):
        encoder_of(model).encode(sample, "talk")
