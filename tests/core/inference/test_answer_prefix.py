"""An answer whose first words are given."""

import pytest
import torch

from tests.composed import collator_of, encoder_of, tiny_model
from tpokit import Predictor, Sample, Turn, UsageError
from tpokit.inference.generate import generate

BUDGET = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    return tiny_model(tmp_path_factory.mktemp("model")).eval()


def test_a_begun_answer_is_gone_on_with(model):
    question = "where is the red ring ?"
    sample = Sample("question", (Turn("user", question),))
    example = encoder_of(model).encode(sample, "ask", answer_next=True, answer_prefix="the red")
    tokenizer = model.backbone.processor.tokenizer
    assert tokenizer.decode(example.ids[-2:]) == "the red"
    (expected,) = generate(model, collator_of(model, "left")([example]), BUDGET)
    predictor = Predictor(model)
    answer = predictor.ask(question, max_new_tokens=BUDGET, answer_prefix="the red")
    assert answer.text == model.tokens.decode(expected.ids, tokenizer)
    (same,) = predictor.answer([sample], BUDGET, answer_prefix="the red")
    assert same.text == answer.text
    assert predictor.ask(question, max_new_tokens=BUDGET).text != answer.text


def test_a_begun_answer_cannot_call_a_head(model):
    with pytest.raises(UsageError, match="no mark of a task can stand in it"):
        Predictor(model).ask("where ?", answer_prefix="here <region>")
