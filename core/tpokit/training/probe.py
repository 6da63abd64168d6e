"""The conversation probe: whether a model that learns tasks still talks as it did.

Fixed conversations without calls go through the model once, answers included (teacher forcing). Two
things are measured at each token of the answers:

- accuracy: whether it is the likeliest one;
- the Kullback-Leibler divergence ``sum p log(p / q)`` of the model's distribution q from p, that of
  a reference: the model at the end of the first stage, and within that stage what the run starts
  from.

Of the reference the log-probabilities of the likeliest tokens are kept, so that no second
model is needed. All other tokens count as one, which makes the divergence a lower bound; it is
exact where the vocabulary is no larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from tpokit.atomic import whole_file
from tpokit.batch import Batch
from tpokit.data.collate import Collator
from tpokit.data.conversation import Encoder
from tpokit.data.dataset import open_sources
from tpokit.data.mixing import generator
from tpokit.errors import UsageError
from tpokit.evaluation.sharing import Sharing
from tpokit.inference.lockstep import Lockstep
from tpokit.model import TpoModel
from tpokit.plugins import Plugins
from tpokit.recipe import ProbeEntry, Recipe, StopEntry
from tpokit.training.probe_reference import (
    OTHER_CONVERSATIONS,
    Looked,
    Reference,
    look_at,
)
from tpokit.types import Example, Sample

_LOOKED_AT = 20  # samples that are looked at for each one that is wanted


class ProbeScores(NamedTuple):
    """How a model talks.

    ``accuracy``: share of the tokens of the answers that are the likeliest. ``accuracy_drop``: how
    much more the reference had. ``kl``: divergence from the reference per token, in nats.
    """

    accuracy: float
    accuracy_drop: float
    kl: float


class ConversationProbe:
    """Asks a model the probe's questions, on all ranks together."""

    def __init__(
        self, recipe: Recipe, plugins: Plugins, model: TpoModel, sharing: Sharing, path: Path
    ) -> None:
        """Find the conversations.

        Args:
            recipe: With ``evaluate.probe``.
            plugins: Where names are looked up.
            model: That is asked.
            sharing: The ranks that ask together.
            path: Where the reference is kept.

        Raises:
            UsageError: The data entry has no conversation.
        """
        assert recipe.evaluate is not None
        assert recipe.evaluate.probe is not None
        self._model = model
        self._sharing = sharing
        self._path = path
        self._samples = _conversations(recipe, plugins, recipe.evaluate.probe)
        self._source = recipe.evaluate.probe.prompts
        self._batch = recipe.run.device_batch
        processor = model.backbone.processor
        heads = {task: model.head(task) for task in model.heads}
        limit = recipe.run.max_length or processor.max_length
        self._encoder = Encoder(processor, heads, model.tokens, limit)
        self._collator = Collator(processor, heads, model.tokens)
        self._reference: Reference | None = None

    def remember(self, lockstep: Lockstep) -> None:
        """Keep what the model says now as the reference."""
        looked = self._look(lockstep, None)

        def write() -> None:
            if not self._sharing.first:
                return
            tensors = {
                "tokens": torch.tensor([count for one in looked for count in one.tokens]),
                "labels": torch.cat([one.labels for one in looked]),
                "right": torch.cat([one.right for one in looked]),
                "ids": torch.cat([one.ids for one in looked]),
                "log_probs": torch.cat([one.log_probs for one in looked]),
            }
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self._path) as partial:
                partial.write_bytes(save(tensors))

        self._sharing.of_all(write)
        self._reference = None

    def find_reference(self) -> None:
        """See that the reference is there; on all ranks alike.

        Raises:
            UsageError: It is not.
        """
        self._sharing.of_all(lambda: self._refuse_missing() if self._sharing.first else None)

    def _refuse_missing(self) -> None:
        if not self._path.is_file():
            raise UsageError(
                f"evaluate.probe compares with the end of the first stage, which is not in "
                f"{self._path}: the stage behind the first one writes it when it starts; train "
                "that one again (--stage, --overwrite) or leave evaluate.probe out"
            )

    def scores(self, lockstep: Lockstep) -> ProbeScores:
        """Compare the model with the reference; the same on all ranks.

        Raises:
            UsageError: The conversations are not those of the reference.
        """
        if self._reference is None:
            self.find_reference()
            self._reference = Reference(**load_file(self._path))
            if len(self._reference.tokens) != len(self._samples):
                raise UsageError(OTHER_CONVERSATIONS)
        looked = self._look(lockstep, self._reference)
        count = sum(sum(one.tokens) for one in looked)
        accuracy = sum(int(one.right.sum()) for one in looked) / count
        kl = math.fsum(one.kl for one in looked) / count
        return ProbeScores(accuracy, self._reference.accuracy - accuracy, kl)

    def _look(self, lockstep: Lockstep, reference: Reference | None) -> list[Looked]:
        """All batches, in their order."""
        starts = range(0, len(self._samples), self._batch)
        rounds = math.ceil(len(starts) / self._sharing.world)

        def own() -> list[Looked]:
            found = []
            for turn in range(rounds):
                number = turn * self._sharing.world + self._sharing.rank
                if number < len(starts):
                    span = slice(starts[number], starts[number] + self._batch)
                    kept = None if reference is None else reference.of(span)
                    found += self._look_at(number, self._samples[span], lockstep, kept)
                elif lockstep.together:
                    self._look_at(number, [], lockstep, None)
            lockstep.let_go()
            return found

        of_ranks = self._sharing.of_all(own)
        return sorted((one for found in of_ranks for one in found), key=lambda one: one.number)

    def _look_at(
        self,
        number: int,
        samples: Sequence[Sample],
        lockstep: Lockstep,
        kept: tuple[Tensor, Tensor, Tensor] | None,
    ) -> list[Looked]:
        """One batch; nothing where a rank has none, or its samples cannot be read."""
        examples: list[Example] = []
        with lockstep.holding():
            examples = [self._encoder.encode(sample, self._source) for sample in samples]
        batch = self._collator(examples) if examples else self._collator.idle()
        batch = batch.to(next(self._model.parameters()).device)
        words, triggers = self._logits(batch, lockstep.together)
        with lockstep.holding():
            return [look_at(number, batch, words, triggers, kept)] if examples else []
        return []

    def _logits(self, batch: Batch, idle: bool) -> tuple[Tensor, Tensor]:
        """Of words ``[p, rows]`` and triggers ``[p, t]`` at the answer tokens."""
        learnt = batch.learnt
        read = self._model.hidden(batch, idle)[learnt.rows, learnt.positions]
        return self._model.backbone.logits(read), self._model.bridge.output(read)


class StopRule:
    """When a stage ends early because the model forgets how to talk.

    Attributes:
        bad: How many evaluations in a row were beyond a limit.
    """

    def __init__(self, limits: StopEntry) -> None:
        """Start with nothing seen."""
        self._limits = limits
        self.bad = 0

    def reason(self, scores: ProbeScores) -> str | None:
        """Take in an evaluation; why the stage should end now, or ``None``."""
        limits = self._limits
        beyond = []
        if limits.accuracy_drop is not None and scores.accuracy_drop > limits.accuracy_drop:
            beyond.append(f"accuracy_drop {scores.accuracy_drop:.4g} > {limits.accuracy_drop:g}")
        if limits.kl is not None and scores.kl > limits.kl:
            beyond.append(f"kl {scores.kl:.4g} > {limits.kl:g}")
        self.bad = self.bad + 1 if beyond else 0
        if self.bad < limits.patience:
            return None
        often = f", for {self.bad} evaluations" if self.bad > 1 else ""
        return f"evaluate.probe.stop: {' and '.join(beyond)}{often}"


def _conversations(recipe: Recipe, plugins: Plugins, probe: ProbeEntry) -> list[Sample]:
    """The first samples of the data entry that call no head."""
    name = probe.prompts
    source = open_sources(recipe, plugins, [name])[name]
    looked_at = min(len(source), probe.samples * _LOOKED_AT)
    found: list[Sample] = []
    for index in range(looked_at):
        sample = source.read(index, generator(recipe.seed, 0, f"{name}/{index}", "probe"))
        if not sample.calls:
            found.append(sample)
        if len(found) == probe.samples:
            break
    if not found:
        raise UsageError(
            f"evaluate.probe.prompts: all of the first {looked_at} samples of data.{name} call a "
            "head; name a data entry with conversation"
        )
    return found
