"""Evaluation writes down every answer that it scores."""

import json

import pytest
from torch import nn

from tests.core.training.small_runs import read_recipe, write_recipe
from tpokit.answers import Answer
from tpokit.evaluation import runner
from tpokit.types import MediaInfo


class Headless(nn.Module):
    heads = ()


class Parrot:
    """Says the expected words, as far as ``whole`` reaches."""

    whole = 100

    def __init__(self, *_):
        pass

    def answer(self, samples, max_new_tokens):
        Parrot.whole -= len(samples)
        if Parrot.whole < 0:
            raise ZeroDivisionError("a bug")
        return [
            Answer(
                sample.turns[0].text,
                sample.turns[-1].text,
                media=tuple(MediaInfo("image", 4, 4) for _ in sample.media),
            )
            for sample in samples
        ]


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "Predictor", Parrot)
    monkeypatch.setattr(Parrot, "whole", 100)
    lines = {"source": "lines", "options": {"kinds": ["talk", "seen"], "image": "picture.png"}}
    path = write_recipe(
        tmp_path / "recipe",
        data={"mixed": lines, "more": lines},
        evaluate={"data": ["mixed", "more"], "samples": 3, "batch": 2},
    )
    recipe, plugins = read_recipe(path)
    return lambda **more: runner.evaluate_model(Headless(), recipe, plugins, **more)


def test_there_is_a_line_for_each_answer_with_where_it_comes_from(evaluate, tmp_path):
    path = tmp_path / "answers.jsonl"
    report = evaluate(answers=path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    asked = sorted((row["data"], row["sample"]) for row in rows)
    assert asked == [(name, str(index)) for name in ("mixed", "more") for index in range(3)]
    picture = str(tmp_path / "recipe" / "picture.png")
    size = {"kind": "image", "width": 4, "height": 4, "duration_s": 0.0}
    for row in rows:
        seen = row["sample"] == "1"
        assert row["medium"] == (picture if seen else None)
        assert row["media"] == ([size] if seen else [])
        assert row["text"].endswith("yes")
        assert row["calls"] == []
    assert report == evaluate()
    assert report.scores == {"conversation_accuracy": 1.0}


def test_answers_of_an_evaluation_that_failed_leave_no_file(evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(Parrot, "whole", 3)
    (tmp_path / "out").mkdir()
    with pytest.raises(ZeroDivisionError):
        evaluate(answers=tmp_path / "out" / "answers.jsonl")
    assert list((tmp_path / "out").iterdir()) == []
