"""Training = generation, batch = singles, on the shipped backbone and head."""

import pytest
import torch

from tests.composed import collator_of, encoder_of, mixed_samples, samples, tiny_model
from tpokit import Predictor
from tpokit.inference.generate import generate
from tpokit.model import positions_of

BUDGET = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    made = tiny_model(tmp_path_factory.mktemp("model")).eval()
    # a random model never ends a turn by itself; make triggers likely so that heads are called
    with torch.no_grad():
        made.bridge.output.weight.mul_(2.0)
    return made


@pytest.fixture(scope="module")
def prompts(model, tmp_path_factory):
    asked = mixed_samples(tmp_path_factory.mktemp("media"))
    return [encoder_of(model).encode(sample, "test", answer_next=True) for sample in asked]


def replay(model, example, written):
    """Teacher forcing: hidden states of the slots when the answer is given as a whole."""
    ids = list(example.ids)
    slots = []
    for token in written.ids:
        ids.append(token)
        task = model.tokens.trigger_task(token)
        if task is not None:
            slots.append(
                (task, [len(ids) + offset for offset in range(len(model.tokens.slot_ids(task)))])
            )
            ids += model.tokens.slot_ids(task)
    batch = collator_of(model)([example])
    whole = torch.tensor([ids])
    batch.ids, batch.mask = whole, torch.ones_like(whole, dtype=torch.bool)
    batch.tokens = model.bridge.find(whole)
    with torch.no_grad():
        hidden = model.hidden(batch)[0]
    return [(task, hidden[positions]) for task, positions in slots]


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "padded batch"])
def test_a_slot_hears_the_same_under_teacher_forcing_as_in_the_decoding_loop(
    model, prompts, together
):
    collate = collator_of(model, "left")
    groups = [prompts] if together else [[prompt] for prompt in prompts]
    written = [row for group in groups for row in generate(model, collate(group), BUDGET)]
    calls = 0
    for example, row in zip(prompts, written, strict=True):
        expected = replay(model, example, row)
        assert [task for task, _ in row.calls] == [task for task, _ in expected]
        for (_, found), (_, wanted) in zip(row.calls, expected, strict=True):
            assert torch.allclose(found, wanted, atol=1e-5)
            calls += 1
    assert calls > 3, "the test needs calls to look at"


def test_a_batch_answers_as_its_samples_do_alone(model, prompts):
    collate = collator_of(model, "left")
    together = generate(model, collate(prompts), BUDGET)
    for prompt, row in zip(prompts, together, strict=True):
        (alone,) = generate(model, collate([prompt]), BUDGET)
        assert row.ids == alone.ids
        assert len(row.calls) == len(alone.calls)


def test_a_whole_training_batch_gives_the_hidden_states_of_its_samples(model, tmp_path):
    examples = [encoder_of(model).encode(sample, "test") for sample in mixed_samples(tmp_path)]
    collate = collator_of(model)
    with torch.no_grad():
        together = model.hidden(collate(examples))
        for row, example in enumerate(examples):
            alone = model.hidden(collate([example]))[0]
            assert torch.allclose(together[row, : len(example.ids)], alone, atol=1e-5)


def test_terms_of_a_batch_are_the_sums_of_its_samples(model, tmp_path):
    examples = [encoder_of(model).encode(sample, "test") for sample in mixed_samples(tmp_path)]
    collate = collator_of(model)
    model.train()
    together = model(collate(examples))
    singles = [model(collate([example])) for example in examples]
    model.eval()
    assert list(together) == ["language", "assign", "region.l1", "region.mse", "region.giou"]
    for name, term in together.items():
        assert term.sum.item() == pytest.approx(sum(s[name].sum.item() for s in singles), rel=1e-5)
        assert term.count == sum(single[name].count for single in singles)
    assert together["region.l1"].count > 5


def test_every_trainable_parameter_gets_a_gradient_in_a_batch_without_any_call(model, tmp_path):
    talk = samples(tmp_path, 2, turns=(1, 1))
    batch = collator_of(model)([encoder_of(model).encode(sample, "test") for sample in talk])
    model.train()
    model.zero_grad()
    sum(term.sum for term in model(batch).values()).backward()
    model.eval()
    for part in (model.bridge, model.heads):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
    assert all(p.grad.abs().sum() == 0 for p in model.heads.parameters())


def test_gradients_of_a_head_reach_every_part_through_its_slot(model, tmp_path):
    boxes = samples(tmp_path, 2, kinds={"region": 1.0})
    batch = collator_of(model)([encoder_of(model).encode(sample, "test") for sample in boxes])
    model.train()
    model.zero_grad()
    model(batch)["region.l1"].sum.backward()
    model.eval()
    for name, members in {**model.backbone.parts(), "bridge": [model.bridge.input]}.items():
        parameters = [
            p
            for m in members
            for p in ([m] if isinstance(m, torch.nn.Parameter) else m.parameters())
        ]
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters), name


def test_the_answer_holds_text_calls_and_boxes_in_pixels(model, tmp_path):
    (sample,) = samples(tmp_path, 1, kinds={"region": 1.0})
    answer = Predictor(model).answer([sample], max_new_tokens=BUDGET)[0]
    assert answer.text.count("<region>") == len(answer.boxes) == len(answer.calls)
    assert all(0 <= box.x0 <= box.x1 <= 64 and 0 <= box.y0 <= box.y1 <= 64 for box in answer.boxes)
    plain = answer.to_json()
    assert plain["media"] == [{"kind": "image", "width": 64, "height": 64, "duration_s": 0.0}]
    assert [call["task"] for call in plain["calls"]] == ["region"] * len(answer.calls)


def test_a_call_that_has_begun_is_finished_though_the_budget_is_spent(model, prompts):
    collate = collator_of(model, "left")
    long = generate(model, collate(prompts), BUDGET)
    for prompt, row in zip(prompts, long, strict=True):
        first = next(
            (i for i, token in enumerate(row.ids) if model.tokens.trigger_task(token)), None
        )
        if first is not None:
            (cut,) = generate(model, collate([prompt]), first + 1)
            assert len(cut.ids) == first + 1
            assert len(cut.calls) == 1
            return
    pytest.fail("no call to look at")


def test_positions_count_from_the_first_token_on_either_side():
    mask = torch.tensor([[False, True, True], [True, True, False]])
    assert positions_of(mask).tolist() == [[0, 0, 1], [0, 1, 1]]
