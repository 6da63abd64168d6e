"""The bridge writes embeddings in and reads hidden states out."""

import torch

from tpokit import TaskTokens, TokenTable
from tpokit.batch import GivenIndex, SlotIndex, TokenIndex
from tpokit.bridge import TaskTokenBridge

TASKS = {"a": TaskTokens("<a>", ("<a1>", "<a2>"), given="<ag>"), "b": TaskTokens("<b>", ("<b1>",))}
IDS = {"<a>": 10, "<b>": 11, "<a1>": 12, "<a2>": 13, "<b1>": 14, "<ag>": 15}


def bridge():
    return TaskTokenBridge(TokenTable(10, TASKS, IDS), width=4, scale=0.5)


def test_rows_are_those_of_triggers_and_slots_and_outputs_those_of_triggers():
    made = bridge()
    assert made.input.weight.shape == (5, 4)
    assert made.output.weight.shape == (2, 4)


def test_task_tokens_are_written_over_the_embedding_and_the_rest_stays():
    made = bridge()
    ids = torch.tensor([[1, 10, 12, 13, 2], [11, 14, 3, 15, 0]])
    embeds = torch.randn(2, 5, 4)
    where = made.find(ids)
    written = made.write(embeds, where)
    assert torch.equal(written[0, 1:4], made.input.weight[[0, 2, 3]])
    assert torch.equal(written[1, :2], made.input.weight[[1, 4]])
    kept = torch.ones(2, 5, dtype=torch.bool)
    kept[where.rows, where.positions] = False
    assert torch.equal(written[kept], embeds[kept])
    assert kept[1, 3], "a given token is not the bridge's to fill"


def test_given_values_are_put_at_their_places():
    made = bridge()
    places = GivenIndex(torch.tensor([1]), torch.tensor([3]), None)
    nothing = TokenIndex(*(torch.zeros(0, dtype=torch.long) for _ in range(3)))
    value = torch.randn(1, 4)
    written = made.write(torch.zeros(2, 5, 4), nothing, {"a": (places, value)})
    assert torch.equal(written[1, 3], value[0])
    assert written.abs().sum() == value.abs().sum()


def test_a_batch_without_task_tokens_gives_the_rows_a_gradient_of_zero():
    made = bridge()
    nothing = TokenIndex(*(torch.zeros(0, dtype=torch.long) for _ in range(3)))
    made.write(torch.zeros(2, 5, 4), nothing).sum().backward()
    assert torch.equal(made.input.weight.grad, torch.zeros(5, 4))


def test_hidden_states_are_read_call_by_call():
    hidden = torch.arange(2 * 5).reshape(2, 5, 1).float()
    where = SlotIndex(torch.tensor([0, 1]), torch.tensor([[2, 3], [0, 4]]))
    assert bridge().read(hidden, where)[..., 0].tolist() == [[2.0, 3.0], [5.0, 9.0]]


def test_logits_of_triggers_stand_behind_those_of_the_words():
    made = bridge()
    torch.nn.init.normal_(made.output.weight)
    hidden, words = torch.randn(3, 4), torch.randn(3, 10)
    logits = made.logits(words, hidden)
    assert torch.equal(logits[:, :10], words)
    assert torch.allclose(logits[:, 10:], hidden @ made.output.weight.T)
