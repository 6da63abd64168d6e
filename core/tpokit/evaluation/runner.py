"""Scoring a model on data entries of a recipe.

Each sample is answered by the very path that a user's question takes (`tpokit.Predictor`). A head
that was not called counts as a wrong result, so a measure covers the whole way from the question to
the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tpokit.answers import Answer
from tpokit.atomic import whole_file
from tpokit.checkpoints.store import load_model, saved_recipe
from tpokit.data.dataset import open_sources
from tpokit.data.mixing import generator
from tpokit.errors import UsageError
from tpokit.evaluation.choice import calls_right, same_words
from tpokit.inference.predictor import Predictor
from tpokit.interfaces import Metric
from tpokit.model import TpoModel
from tpokit.plugins import Plugins
from tpokit.recipe import EvaluateEntry, Recipe, evaluation_recipe
from tpokit.tokens import marked_tasks
from tpokit.types import Media, MediaInfo, Sample, Seen

TRIGGER_ACCURACY = "trigger_accuracy"
CONVERSATION_ACCURACY = "conversation_accuracy"


@dataclass(frozen=True)
class Report:
    """Scores of a model.

    Attributes:
        scores: Measure to value: ``task.measure`` of each metric, ``trigger_accuracy`` (the right
            heads called and no other), ``conversation_accuracy`` (answers without a call that say
            the expected words).
        constant: What the best answer that ignores the input would have scored, where defined.
        samples: Data entry to how many samples were asked.
    """

    scores: dict[str, float]
    constant: dict[str, float] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {"scores": self.scores, "constant": self.constant, "samples": self.samples}


class _Scores:
    """Adds up over samples."""

    def __init__(self, model: TpoModel, plugins: Plugins) -> None:
        self._model = model
        self._metrics: dict[str, list[Metric]] = {
            task: [plugins.factory(spec)() for spec in plugins.for_task("metric", task)]
            for task in model.heads
        }
        self._triggers: list[bool] = []
        self._words: list[bool] = []

    def add(self, sample: Sample, answer: Answer) -> None:
        """Take in one sample and what the model made of its last question."""
        said = sample.turns[-1].text
        expected = marked_tasks(said, sample.targets)
        self._triggers.append(calls_right([call.task for call in answer.calls], expected))
        if not expected:
            self._words.append(same_words(answer.text, said))
        medium = answer.media[0] if answer.media else MediaInfo("image", 1, 1)
        for task in set(expected):
            head = self._model.head(task)
            last = sample.targets[task][-expected.count(task) :]
            asked = [turn.text for turn in sample.turns if turn.role == "user"][-1]
            seen = Seen(sample.id, asked, sample.media, answer.media)
            results = [head.result_of(head.read_target(t, seen), medium) for t in last]
            for metric in self._metrics[task]:
                metric.add(answer.results(task), results, medium)

    def report(self, samples: dict[str, int]) -> Report:
        """All measures."""
        scores: dict[str, float] = {}
        constant: dict[str, float] = {}
        for task, metrics in self._metrics.items():
            for metric in metrics:
                scores.update({f"{task}.{name}": value for name, value in metric.scores().items()})
                constant.update({f"{task}.{n}": value for n, value in metric.constant().items()})
        if self._triggers and self._model.heads:
            scores[TRIGGER_ACCURACY] = sum(self._triggers) / len(self._triggers)
        if self._words:
            scores[CONVERSATION_ACCURACY] = sum(self._words) / len(self._words)
        return Report(scores, constant, samples)


def evaluate_model(
    model: TpoModel,
    recipe: Recipe,
    plugins: Plugins,
    progress: Callable[[int, int], None] | None = None,
    answers: Path | None = None,
) -> Report:
    """Score a model on the ``evaluate:`` section of a recipe.

    Args:
        model: Is put into evaluation mode and back.
        recipe: Names data entries, number of samples of each, batch and length of answers.
        plugins: Where names are looked up.
        progress: Called with samples done and in all.
        answers: File for every answer, a JSON object a line: ``data`` (entry), ``sample`` (its id),
            ``medium`` (path of the first one or null; with its ``rate`` and the part that was
            meant, if it has them) and what `Answer.to_json` gives. Written as
            they come; it has its name once all are there.
    """
    wanted = _wanted(recipe)
    sources = open_sources(recipe, plugins, wanted.data)
    sizes = {name: min(len(source), wanted.samples) for name, source in sources.items()}
    asked: list[_Asked] = []
    for name in sorted(sources):
        for index in range(sizes[name]):
            random = generator(recipe.seed, 0, f"{name}/{index}", "evaluate")
            asked.append(_Asked(name, sources[name].read(index, random)))
    scores = _Scores(model, plugins)
    was_training = model.training
    predictor = Predictor(model, recipe.run.max_length, plugins, recipe.decoding.slots)
    done = 0
    with _writer(answers) as write:
        for batch in _batches(asked, wanted.batch):
            found = predictor.answer([one.sample for one in batch], wanted.max_new_tokens)
            for one, answer in zip(batch, found, strict=True):
                scores.add(one.sample, answer)
                write(one, answer)
            done += len(batch)
            if progress is not None:
                progress(done, len(asked))
    model.train(was_training)
    return scores.report(sizes)


def evaluate_run(
    folder: Path,
    overrides: Sequence[str] = (),
    plugins: Plugins | None = None,
    answers: Path | None = None,
    scored_on: Path | None = None,
) -> Report:
    """Score a saved model on the ``evaluate:`` section of its recipe.

    Args:
        folder: Of a run, a stage, a merged or an imported model.
        overrides: ``path=value`` each; they change what is scored, not the model.
        plugins: Where names are looked up; default: what is installed and the recipe's registry.
        answers: See `evaluate_model`.
        scored_on: Another recipe, whose data and ``evaluate:`` section are used instead.
    """
    recipe = saved_recipe(folder, overrides if scored_on is None else (), plugins)
    plugins = plugins or Plugins.load(recipe.registry_path)
    if scored_on is not None:
        recipe = evaluation_recipe(recipe, scored_on, overrides, plugins)
    _wanted(recipe)  # before a large model is loaded
    return evaluate_model(load_model(folder, plugins), recipe, plugins, answers=answers)


def _wanted(recipe: Recipe) -> EvaluateEntry:
    """What a recipe wants to be scored."""
    if recipe.evaluate is None:
        raise UsageError(
            "the recipe has no evaluate: section; name its data entries there, or give a recipe "
            "that has one by --recipe"
        )
    return recipe.evaluate


class _Asked(NamedTuple):
    """A sample and the data entry that it is of."""

    data: str
    sample: Sample


def _part(medium: Media) -> dict[str, float]:
    """What of a medium was meant, where it is not all of a file."""
    part = {"rate": medium.rate, "start_s": medium.start_s, "end_s": medium.end_s}
    return {name: value for name, value in part.items() if value is not None}


def _batches(asked: Sequence[_Asked], size: int) -> list[Sequence[_Asked]]:
    """Samples of similar length of question side by side, so that little is padded."""
    ordered = sorted(asked, key=lambda one: sum(len(turn.text) for turn in one.sample.turns))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


@contextmanager
def _writer(path: Path | None) -> Iterator[Callable[[_Asked, Answer], None]]:
    """What writes an answer to a file, or nothing if there is none."""
    if path is None:
        yield lambda asked, answer: None
        return
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:

        def write(asked: _Asked, answer: Answer) -> None:
            media = asked.sample.media
            line = {
                "data": asked.data,
                "sample": asked.sample.id,
                "medium": str(media[0].path) if media else None,
                **(_part(media[0]) if media else {}),
                **answer.to_json(),
            }
            file.write(json.dumps(line) + "\n")
            file.flush()

        yield write
