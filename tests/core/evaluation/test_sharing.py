"""Several ranks score a model as one does."""

import json

import torch

from tests.core.training.evaluated import evaluated_recipe
from tests.core.training.small_runs import read_recipe
from tests.forked import forked
from tpokit.evaluation.runner import evaluate_model
from tpokit.inference import predictor
from tpokit.model import build_model

SCRIPT = __file__.replace("test_sharing", "shared")


def talkative_model(recipe, plugins):
    """A fresh model that calls heads now and then."""
    model = build_model(recipe, plugins)
    torch.manual_seed(5)
    torch.nn.init.normal_(model.bridge.output.weight, std=0.6)
    return model


def test_two_ranks_with_unequal_shares_have_the_scores_and_answers_of_one(tmp_path):
    path = evaluated_recipe(tmp_path)
    ran = forked(SCRIPT, path, tmp_path, processes=2)
    assert ran.returncode == 0, ran.stderr[-3000:]
    answers = (tmp_path / "answers.jsonl").read_text()
    recipe, plugins = read_recipe(path)
    model = talkative_model(recipe, plugins)
    alone = evaluate_model(model, recipe, plugins, None, tmp_path / "alone.jsonl")
    for rank in (0, 1):
        assert json.loads((tmp_path / f"report-{rank}.json").read_text()) == alone.to_json()
    assert 0 < alone.scores["point.missing"] < 1
    assert answers == (tmp_path / "alone.jsonl").read_text()
    # the sample that one rank could not read stopped both, with one message
    said = {(tmp_path / f"error-{rank}").read_text() for rank in (0, 1)}
    assert said == {f"ask/2: {tmp_path / 'missing.png'}: there is no such file"}
    assert not (tmp_path / "broken.jsonl").exists()


def test_batches_do_not_depend_on_the_number_of_ranks_and_few_are_read_ahead(tmp_path, monkeypatch):
    read, asked = [], []
    path = evaluated_recipe(tmp_path, evaluate={"samples": 40, "batch": 1, "max_new_tokens": 1})
    recipe, plugins = read_recipe(path)
    encode = predictor.Encoder.encode

    def heard(encoder, sample, *rest, **more):
        asked.append((len(read), sample.id))
        return encode(encoder, sample, *rest, **more)

    monkeypatch.setattr(predictor.Encoder, "encode", heard)
    model = build_model(recipe, plugins)
    source = plugins.factory(plugins.spec("source", "lines"))
    whole = source.read
    monkeypatch.setattr(source, "read", lambda *rest: read.append(rest[1]) or whole(*rest))
    report = evaluate_model(model, recipe, plugins)
    assert report.samples == {"mixed": 40}
    assert len(asked) == 40
    assert asked[0][0] == 32  # a window; the other samples are read when they are due
    assert asked[-1][0] == 40
