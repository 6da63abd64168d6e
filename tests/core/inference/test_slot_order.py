"""Slots before their trigger: heard without it, and forgotten by all that follows."""

import pytest
import torch

from tests.composed import (
    collator_of,
    encoder_of,
    mixed_samples,
    region_head,
    samples,
    tiny_model,
)
from tpokit import Predictor, TaskTokens
from tpokit.inference.generate import generate

BUDGET = 12


def two_slots(host):
    head = region_head(host)
    head.tokens = TaskTokens("<box_begin>", ("<corner_1>", "<corner_2>"))
    return head


@pytest.fixture(scope="module", params=[region_head, two_slots], ids=["one slot", "two slots"])
def model(request, tmp_path_factory):
    torch.manual_seed(0)
    made = tiny_model(tmp_path_factory.mktemp("model"), make_head=request.param).eval()
    with torch.no_grad():
        made.bridge.output.weight.mul_(2.0)  # so that a random model calls its head
    return made


@pytest.fixture(scope="module")
def prompts(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    asked = mixed_samples(folder)[:-1]  # the last one gives a box, which the other head cannot take
    asked += samples(folder, 3, kinds={"region": 1.0})
    return [encoder_of(model).encode(sample, "test", answer_next=True) for sample in asked]


def fresh(model, example, more):
    """Hidden states of a prompt and what follows it, in one pass without a cache."""
    batch = collator_of(model)([example])
    ids = torch.tensor([[*example.ids, *more]])
    batch.ids, batch.mask = ids, torch.ones_like(ids, dtype=torch.bool)
    batch.tokens = model.bridge.find(ids)
    with torch.no_grad():
        return model.hidden(batch)[0]


def without_slots(model, example):
    """What a loop writes that knows no slots."""
    tokenizer = model.backbone.processor.tokenizer
    (end,) = tokenizer(model.backbone.processor.end_of_turn, add_special_tokens=False)["input_ids"]
    ids = []
    while len(ids) < BUDGET:
        last = fresh(model, example, ids)[-1]
        best = int(model.bridge.logits(model.backbone.logits(last), last).argmax())
        if best == end:
            break
        ids.append(best)
    return ids


def test_the_text_is_that_of_a_loop_that_never_fed_slots(model, prompts):
    found = generate(model, collator_of(model, "left")(prompts), BUDGET, "before_trigger")
    assert [row.ids for row in found] == [without_slots(model, prompt) for prompt in prompts]
    assert sum(len(row.calls) for row in found) > 5, "the test needs calls to look at"


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "padded batch"])
def test_slots_hear_the_words_so_far_and_each_other_but_no_trigger_of_theirs(
    model, prompts, together
):
    collate = collator_of(model, "left")
    groups = [prompts] if together else [[prompt] for prompt in prompts]
    written = [
        row for some in groups for row in generate(model, collate(some), BUDGET, "before_trigger")
    ]
    slots = model.tokens.slot_ids("region")
    several = 0
    for prompt, row in zip(prompts, written, strict=True):
        places = [i for i, token in enumerate(row.ids) if model.tokens.trigger_task(token)]
        assert [task for task, _ in row.calls] == ["region"] * len(places)
        several += len(places) > 1
        for place, (_, heard) in zip(places, row.calls, strict=True):
            wanted = fresh(model, prompt, [*row.ids[:place], *slots])[-len(slots) :]
            assert torch.allclose(heard, wanted, atol=1e-5)
    assert several, "the test needs an answer with several calls"


def test_the_first_call_differs_between_the_orders_in_what_its_slots_hear_alone(model, prompts):
    batch = collator_of(model, "left")(prompts)
    after = generate(model, batch, BUDGET)
    before = generate(model, batch, BUDGET, "before_trigger")
    looked_at = 0
    for one, other in zip(after, before, strict=True):
        if one.calls:
            upto = next(i for i, token in enumerate(one.ids) if model.tokens.trigger_task(token))
            assert one.ids[: upto + 1] == other.ids[: upto + 1]
            assert one.calls[0][1].shape == other.calls[0][1].shape
            assert not torch.allclose(one.calls[0][1], other.calls[0][1], atol=1e-3)
            looked_at += 1
    assert looked_at > 2


def test_a_call_that_has_begun_is_finished_though_the_budget_is_spent(model, prompts):
    collate = collator_of(model, "left")
    for prompt in prompts:
        (row,) = generate(model, collate([prompt]), BUDGET, "before_trigger")
        if row.calls:
            first = next(i for i, token in enumerate(row.ids) if model.tokens.trigger_task(token))
            (cut,) = generate(model, collate([prompt]), first + 1, "before_trigger")
            assert cut.ids == row.ids[: first + 1]
            assert torch.equal(cut.calls[0][1], row.calls[0][1])
            return
    pytest.fail("no call to look at")


def test_a_predictor_asks_in_the_order_that_it_was_made_for(tmp_path):
    torch.manual_seed(0)
    model = tiny_model(tmp_path)
    with torch.no_grad():
        model.bridge.output.weight.mul_(2.0)
    (sample,) = samples(tmp_path, 1, kinds={"region": 1.0})
    medium = sample.media[0].path
    question = sample.turns[0].text
    after = Predictor(model).ask(question, [medium], max_new_tokens=BUDGET)
    before = Predictor(model, slots="before_trigger").ask(question, [medium], max_new_tokens=BUDGET)
    assert after.boxes[0] != before.boxes[0]
    assert before.text.count("<region>") == len(before.boxes)
