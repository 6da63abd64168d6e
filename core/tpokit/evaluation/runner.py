"""Scoring a model on data entries of a recipe.

Each sample is answered by the very path that a user's question takes (`tpokit.Predictor`). A head
that was not called counts as a wrong result, so a measure covers the whole way from the question to
the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from tpokit.atomic import whole_file
from tpokit.checkpoints.store import load_model, saved_recipe
from tpokit.data.dataset import open_sources
from tpokit.data.mixing import generator
from tpokit.errors import UsageError
from tpokit.evaluation.judging import Asked, Judged, Report, Scores, judged
from tpokit.evaluation.sharing import Sharing
from tpokit.inference.lockstep import Lockstep
from tpokit.inference.predictor import Predictor
from tpokit.model import TpoModel
from tpokit.plugins import Plugins
from tpokit.recipe import EvaluateEntry, Recipe, evaluation_recipe

_WINDOW = 32  # batches that are sorted by length together


class Evaluation:
    """The ``evaluate:`` section of a recipe, ready to be run once or often.

    Batches are the same whatever the number of ranks, and are added up in their order: so are the
    scores. Each rank answers every so manieth batch.

    Attributes:
        recipe, plugins, sharing: As given.
        wanted: The section.
        sizes: Data entry to how many of its samples are asked.
    """

    def __init__(self, recipe: Recipe, plugins: Plugins, sharing: Sharing | None = None) -> None:
        """Open the data.

        Args:
            recipe: Names data entries, number of samples of each, batch and length of answers.
            plugins: Where names are looked up.
            sharing: The ranks that evaluate together; default: this process alone.

        Raises:
            UsageError: The recipe has no such section.
            DataError: A data entry is empty or cannot be read.
        """
        self.recipe = recipe
        self.plugins = plugins
        self.sharing = sharing or Sharing()
        self.wanted = _wanted(recipe)
        self._sources = open_sources(recipe, plugins, self.wanted.data)
        self.sizes = {
            name: min(len(source), self.wanted.samples) for name, source in self._sources.items()
        }

    def __call__(
        self,
        model: TpoModel,
        progress: Callable[[int, int], None] | None = None,
        answers: Path | None = None,
        lockstep: Lockstep | None = None,
    ) -> Report:
        """Score a model; all ranks get the report.

        Args:
            model: Is put into evaluation mode and back.
            progress: Called with samples done and in all.
            answers: See `evaluate_model`; written by the first rank.
            lockstep: What keeps ranks in step, for a model that lies in pieces.

        Raises:
            DataError: A sample cannot be read or is wrong; on all ranks alike.
        """
        was_training = model.training
        done, count = 0, sum(self.sizes.values())
        with _writer(answers if self.sharing.first else None) as write:
            going = _Pass(self, model, lockstep or Lockstep(), write, answers is not None)
            while done < count:
                done += going.on()
                if progress is not None:
                    progress(done, count)
            report = going.report()
        model.train(was_training)
        return report

    def asked(self) -> Iterator[Asked]:
        """The samples, one after another."""
        for name in sorted(self._sources):
            for index in range(self.sizes[name]):
                random = generator(self.recipe.seed, 0, f"{name}/{index}", "evaluate")
                yield Asked(name, self._sources[name].read(index, random))


class _Pass:
    """One way through the batches of an evaluation, together with the other ranks."""

    def __init__(
        self,
        evaluation: Evaluation,
        model: TpoModel,
        lockstep: Lockstep,
        write: Callable[[dict[str, Any] | None], None],
        written: bool,
    ) -> None:
        self._evaluation = evaluation
        self._model = model
        self._lockstep = lockstep
        self._write = write
        self._written = written  # by the first rank; the others send it what to write
        recipe, plugins = evaluation.recipe, evaluation.plugins
        self._predictor = Predictor(
            model, recipe.run.max_length, plugins, recipe.decoding.slots, lockstep
        )
        self._scores = Scores(model, plugins)
        self._batches = _batches(evaluation.asked(), evaluation.wanted.batch)
        self._pending: list[list[Judged]] = []

    def on(self) -> int:
        """Let every rank answer a batch; gives the number of their samples."""
        self._pending = self._evaluation.sharing.of_all(self._answer)
        return sum(map(len, self._pending))

    def report(self) -> Report:
        """What became of all batches, on every rank."""
        report = self._evaluation.sharing.of_all(self._finish)[0]
        assert report is not None  # the first rank has one
        return report

    def _answer(self) -> list[Judged]:
        sharing, own = self._evaluation.sharing, list[Asked]()
        with self._lockstep.holding():
            self._take()
            together = list(islice(self._batches, sharing.world))
            own = together[sharing.rank] if sharing.rank < len(together) else []
        samples = [asked.sample for asked in own]
        answers = self._predictor.answer(samples, self._evaluation.wanted.max_new_tokens)
        return [
            judged(self._model, asked, answer, self._written)
            for asked, answer in zip(own, answers, strict=True)
        ]

    def _take(self) -> None:
        """Add up what came last; with the next batch, so that an error reaches all ranks."""
        if self._evaluation.sharing.first:
            for one in chain.from_iterable(self._pending):
                self._scores.add(one)
                self._write(one.line)

    def _finish(self) -> Report | None:
        """The report, where it was added up."""
        self._take()
        first = self._evaluation.sharing.first
        return self._scores.report(self._evaluation.sizes) if first else None


def evaluate_model(
    model: TpoModel,
    recipe: Recipe,
    plugins: Plugins,
    progress: Callable[[int, int], None] | None = None,
    answers: Path | None = None,
    sharing: Sharing | None = None,
) -> Report:
    """Score a model on the ``evaluate:`` section of a recipe.

    Args:
        model: Is put into evaluation mode and back; whole on every rank.
        recipe: Names data entries, number of samples of each, batch and length of answers.
        plugins: Where names are looked up.
        progress: Called with samples done and in all.
        answers: File for every answer, a JSON object a line: ``data`` (entry), ``sample`` (its id),
            ``medium`` (path of the first one or null; with its ``rate`` and the part that was
            meant, if it has them) and what `Answer.to_json` gives. Written as
            they come; it has its name once all are there.
        sharing: The ranks that evaluate together; default: this process alone.
    """
    return Evaluation(recipe, plugins, sharing)(model, progress, answers)


def evaluate_run(
    folder: Path,
    overrides: Sequence[str] = (),
    plugins: Plugins | None = None,
    answers: Path | None = None,
    scored_on: Path | None = None,
    sharing: Sharing | None = None,
) -> Report:
    """Score a saved model on the ``evaluate:`` section of its recipe.

    Args:
        folder: Of a run, a stage, a merged or an imported model.
        overrides: ``path=value`` each; they change what is scored, not the model.
        plugins: Where names are looked up; default: what is installed and the recipe's registry.
        answers: See `evaluate_model`.
        scored_on: Another recipe, whose data and ``evaluate:`` section are used instead.
        sharing: The ranks that evaluate together; default: this process alone.
    """
    recipe = saved_recipe(folder, overrides if scored_on is None else (), plugins)
    plugins = plugins or Plugins.load(recipe.registry_path)
    if scored_on is not None:
        recipe = evaluation_recipe(recipe, scored_on, overrides, plugins)
    _wanted(recipe)  # before a large model is loaded
    model = load_model(folder, plugins).to("cuda" if torch.cuda.is_available() else "cpu")
    return evaluate_model(model, recipe, plugins, answers=answers, sharing=sharing)


def _wanted(recipe: Recipe) -> EvaluateEntry:
    """What a recipe wants to be scored."""
    if recipe.evaluate is None:
        raise UsageError(
            "the recipe has no evaluate: section; name its data entries there, or give a recipe "
            "that has one by --recipe"
        )
    return recipe.evaluate


def _batches(asked: Iterator[Asked], size: int) -> Iterator[list[Asked]]:
    """Samples of similar length of question side by side, so that little is padded; only some
    batches are read ahead.
    """
    while window := list(islice(asked, size * _WINDOW)):
        window.sort(key=lambda one: sum(len(turn.text) for turn in one.sample.turns))
        yield from (window[start : start + size] for start in range(0, len(window), size))


@contextmanager
def _writer(path: Path | None) -> Iterator[Callable[[dict[str, Any] | None], None]]:
    """What writes a line to a file, or nothing if there is none."""
    if path is None:
        yield lambda line: None
        return
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:

        def write(line: dict[str, Any] | None) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        yield write
