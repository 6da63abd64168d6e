"""What answers are worth: one by one, as plain data, and added up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tpokit.answers import Answer
from tpokit.evaluation.choice import calls_right, same_words
from tpokit.interfaces import Metric
from tpokit.model import TpoModel
from tpokit.plugins import Plugins
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


class Asked(NamedTuple):
    """A sample and the data entry that it is of."""

    data: str
    sample: Sample


@dataclass(frozen=True)
class Judged:
    """What one answer is worth, as plain data that a rank can send.

    Attributes:
        called: Whether the right heads were called and no other.
        said: Whether the words are right; ``None`` for answers with calls.
        found: For each task that was expected: its name, what its metrics compare, and the medium.
        line: What is written of the answer, if answers are.
    """

    called: bool
    said: bool | None
    found: tuple[tuple[str, list[Any], list[Any], MediaInfo], ...]
    line: dict[str, Any] | None


def judged(model: TpoModel, asked: Asked, answer: Answer, written: bool) -> Judged:
    """Compare an answer with the sample's own."""
    sample = asked.sample
    said = sample.turns[-1].text
    expected = marked_tasks(said, sample.targets)
    medium = answer.media[0] if answer.media else MediaInfo("image", 1, 1)
    found = []
    for task in sorted(set(expected)):
        head = model.head(task)
        last = sample.targets[task][-expected.count(task) :]
        question = [turn.text for turn in sample.turns if turn.role == "user"][-1]
        seen = Seen(sample.id, question, sample.media, answer.media)
        results = [head.result_of(head.read_target(t, seen), medium) for t in last]
        found.append((task, answer.results(task), results, medium))
    return Judged(
        called=calls_right([call.task for call in answer.calls], expected),
        said=None if expected else same_words(answer.text, said),
        found=tuple(found),
        line=_line(asked, answer) if written else None,
    )


class Scores:
    """Adds up over samples."""

    def __init__(self, model: TpoModel, plugins: Plugins) -> None:
        self._metrics: dict[str, list[Metric]] = {
            task: [plugins.factory(spec)() for spec in plugins.for_task("metric", task)]
            for task in model.heads
        }
        self._triggers: list[bool] = []
        self._words: list[bool] = []

    def add(self, judged: Judged) -> None:
        """Take in one sample."""
        self._triggers.append(judged.called)
        if judged.said is not None:
            self._words.append(judged.said)
        for task, predicted, expected, medium in judged.found:
            for metric in self._metrics[task]:
                metric.add(predicted, expected, medium)

    def report(self, samples: dict[str, int]) -> Report:
        """All measures."""
        scores: dict[str, float] = {}
        constant: dict[str, float] = {}
        for task, metrics in self._metrics.items():
            for metric in metrics:
                scores.update({f"{task}.{name}": value for name, value in metric.scores().items()})
                constant.update({f"{task}.{n}": value for n, value in metric.constant().items()})
        if self._triggers and self._metrics:
            scores[TRIGGER_ACCURACY] = sum(self._triggers) / len(self._triggers)
        if self._words:
            scores[CONVERSATION_ACCURACY] = sum(self._words) / len(self._words)
        return Report(scores, constant, samples)


def _line(asked: Asked, answer: Answer) -> dict[str, Any]:
    """What is written of an answer."""
    media = asked.sample.media
    return {
        "data": asked.data,
        "sample": asked.sample.id,
        "medium": str(media[0].path) if media else None,
        **(_part(media[0]) if media else {}),
        **answer.to_json(),
    }


def _part(medium: Media) -> dict[str, float]:
    """What of a medium was meant, where it is not all of a file."""
    part = {"rate": medium.rate, "start_s": medium.start_s, "end_s": medium.end_s}
    return {name: value for name, value in part.items() if value is not None}
