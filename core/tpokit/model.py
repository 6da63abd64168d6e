"""The composed model: a backbone, the bridge and the heads of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tpokit.batch import Batch, ContextIndex, GivenIndex, tensors_in
from tpokit.bridge import TaskTokenBridge
from tpokit.interfaces import Backbone, ConnectorChoice, Host, TaskHead
from tpokit.losses import chunked_language_terms
from tpokit.tokens import TokenTable
from tpokit.types import Context, Frames, LossTerm, Words

Result = TypeVar("Result")


class TpoModel(nn.Module):
    """A backbone with task heads.

    One forward pass gives every loss term. The order of calls is the same on every rank, whatever
    its samples are: vision, given values of each head, LLM, output layer, each head; heads sorted
    by task. A head that no sample of a micro-batch calls runs on its idle inputs, times zero,
    unless no rank calls it (``Batch.called``). Anything less makes ZeRO-1/2/3 crash or, worse,
    train silently on wrong gradients.

    Attributes:
        backbone, bridge, heads: The pieces; ``heads`` by task, sorted.
        tokens: Ids of the task tokens.
        trained_tasks: Heads whose losses are taken; the others are left out of `forward` (but not
            of generation).
        alike: Run the vision tower on a dummy when a batch has no media; set when there is more
            than one rank.
        in_order: Let the gradients of heads come in the order of their weights, whatever the heads
            do with them; see `Heads`.
        logit_chunks: Logits of the answers exist a share of the positions at a time; see
            `tpokit.losses.chunked_language_terms`.
    """

    def __init__(
        self, backbone: Backbone, heads: Mapping[str, TaskHead], tokens: TokenTable
    ) -> None:
        """Put the pieces together; fresh bridge rows are as large as the backbone's embeddings."""
        super().__init__()
        self.backbone = backbone
        self.heads = Heads({task: heads[task] for task in sorted(heads)})
        self.tokens = tokens
        with torch.no_grad():
            words = backbone.embed_ids(torch.arange(min(backbone.rows, 1024))[None])
        scale = 1.0 if words.is_meta else float(words.float().std())  # empty weights have no size
        self.bridge = TaskTokenBridge(tokens, backbone.width, scale)
        self.trained_tasks: frozenset[str] = frozenset(heads)
        self.alike = False
        self.in_order = False
        self.logit_chunks = 1

    def head(self, task: str) -> TaskHead:
        """The head of a task."""
        found = self.heads[task]
        assert isinstance(found, TaskHead)
        return found

    def forward(self, batch: Batch) -> dict[str, LossTerm]:
        """Every loss term of a batch by its full name: ``language``, ``assign``, ``task.term``."""
        if self.in_order:
            return self.heads.in_order(lambda: self._terms(batch))
        return self._terms(batch)

    def _terms(self, batch: Batch) -> dict[str, LossTerm]:
        hidden = self.hidden(batch)
        learnt = batch.learnt
        read = hidden[learnt.rows, learnt.positions]
        terms = chunked_language_terms(
            lambda states: (self.backbone.logits(states), self.bridge.output(states)),
            read,
            learnt.ids,
            batch.counts,
            self.logit_chunks,
        )
        for task in self.heads:
            if task in self.trained_tasks:
                terms.update(self._task_terms(task, hidden, batch))
        return terms

    def hidden(self, batch: Batch, idle: bool = False) -> Tensor:
        """Last hidden states ``[b, l, d]`` of a batch.

        Args:
            batch: Padded on the right.
            idle: Run the vision tower and what encodes given values even if the batch has nothing
                for them, because other ranks do.
        """
        embeds = self.bridge.write(
            self.backbone.embed(batch, self.alike or idle), batch.tokens, self.given(batch, idle)
        )
        if batch.sequences is None:
            return self.backbone.decode(embeds, batch.mask, positions_of(batch.mask))[0]
        positions = batch.sequences.positions
        return self.backbone.decode(embeds, batch.mask, positions, sequences=batch.sequences)[0]

    def given(self, batch: Batch, idle: bool = False) -> dict[str, tuple[GivenIndex, Tensor]]:
        """Task to places and embeddings of its given values; a head without any in this batch
        encodes its idle input in training, and with ``idle`` in evaluation too.
        """
        encoded: dict[str, tuple[GivenIndex, Tensor]] = {}
        for task, places in batch.given.items():
            head = self.head(task)
            if len(places.rows):
                encoded[task] = places, head.encode_given(places.values)
            elif idle or (self.training and self._runs(task, batch)):
                encoded[task] = places, head.encode_given(head.idle_inputs()["given"])[:0]
        return encoded

    def context(self, task: str, index: ContextIndex, words: Words | None) -> Context:
        """What a head sees of its calls besides their slots.

        Args:
            task: Whose head.
            index: Of the calls.
            words: States of their questions, if the head asked for them.
        """
        if index.frames is None:
            return Context(index.prepared, words)
        pixels, which, mask = index.frames
        grid = self.head(task).context_need().grid
        features = self.backbone.encode_frames(pixels, grid)
        return Context(index.prepared, words, Frames(features[which], mask))

    def _task_terms(self, task: str, hidden: Tensor, batch: Batch) -> dict[str, LossTerm]:
        head, where = self.head(task), batch.slots[task]
        counts = {term: batch.counts.get(f"{task}.{term}", 0.0) for term in head.terms}
        if not len(where.rows):
            wanted = batch.called is None or task in batch.called
            nothing = self._idle(head, hidden) if wanted else _left_out(head, hidden)
            return {f"{task}.{term}": LossTerm(nothing, 0.0) for term in head.terms}
        index = batch.contexts[task]
        words = None
        if index.question is not None:
            rows, positions, mask = index.question
            words = Words(hidden[rows[:, None], positions], mask)
        context = self.context(task, index, words)._replace(targets=batch.targets[task])
        prediction = head(self.bridge.read(hidden, where), context)
        found = head.loss(prediction, batch.targets[task])
        return {f"{task}.{term}": LossTerm(found[term].sum, counts[term]) for term in head.terms}

    def _runs(self, task: str, batch: Batch) -> bool:
        """Whether the head of a task takes part in a micro-batch of which this rank has no value
        for it.
        """
        if batch.called is not None and task not in batch.called:
            return False
        return task in self.trained_tasks or self.alike

    def _idle(self, head: TaskHead, hidden: Tensor) -> Tensor:
        """Zero, by way of what runs where a head is called, in the same order."""
        nothing = hidden.new_zeros(())
        need = head.context_need()
        if self.alike and need.vision:
            nothing = nothing + self.backbone.encode_frames(None, need.grid).sum() * 0.0
        inputs = head.idle_inputs()
        slots, context = inputs["slots"], inputs["context"]
        # ZeRO-3 lets go of a module's weights when the gradient of its input is known: an idle
        # input that asks for none would keep them here and make the next gathering disagree.
        for leaf in (slots, context.question, context.frames):
            state = leaf if isinstance(leaf, Tensor) or leaf is None else leaf.states
            if state is not None:
                state.requires_grad_(hidden.requires_grad)
        prediction = head(slots, context)
        return sum((tensor.sum() * 0.0 for tensor in tensors_in(prediction)), nothing)


class Heads(nn.ModuleDict):
    """The heads of a model by task.

    ZeRO-1 and 2 add gradients of ranks up in the order in which they come, not by their names.
    Autograd sends them in the order in which the last use of each weight was computed, and where
    one operation takes several weights, in an order that depends on what else is waiting: ranks
    would differ where the one computes a head and the other its idle pass, even if both call the
    same modules.
    """

    def in_order(self, work: Callable[[], Result]) -> Result:
        """Do something with views of the trained weights in their place, made before anything else:
        autograd then comes to them last, and to one after another.
        """
        weights = self.named_parameters()
        views = {name: weight.view_as(weight) for name, weight in weights if weight.requires_grad}
        found: Result = functional_call(self, views, (work,))
        return found

    def forward(self, work: Callable[[], Result]) -> Result:
        """What `in_order` calls with the views in place."""
        return work()


def _left_out(head: TaskHead, hidden: Tensor) -> Tensor:
    """Zero, by way of every weight of a head, which is not run: DDP waits for each of them. What
    ZeRO-3 has cut up needs nothing, and could not be taken.
    """
    whole = (weight for weight in head.parameters() if not hasattr(weight, "ds_id"))
    trained = (weight.sum() * 0.0 for weight in whole if weight.requires_grad)
    return sum(trained, hidden.new_zeros(()))


def positions_of(mask: Tensor) -> Tensor:
    """Position of each token in its own sample ``[b, l]``, from 0, whichever side is padded; 0
    where padded.
    """
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def build_backbone(recipe: Any, plugins: Any, folder: Path | None = None) -> Backbone:
    """The backbone of a recipe, with the connector that the recipe puts into it.

    Args:
        recipe: A `tpokit.Recipe`.
        plugins: Where its names are looked up.
        folder: Where relative paths in options start; default: the recipe's own.
    """
    spec = plugins.spec("backbone", recipe.backbone.plugin)
    options = plugins.options(spec, recipe.backbone.options)
    arguments = [options, recipe.folder if folder is None else folder]
    if recipe.backbone.connector is not None:
        chosen = plugins.spec("connector", recipe.backbone.connector.plugin)
        choice = plugins.options(chosen, recipe.backbone.connector.options)
        arguments.append(ConnectorChoice(plugins.factory(chosen), choice))
    backbone: Backbone = plugins.factory(spec).build(*arguments)
    return backbone


def build_model(recipe: Any, plugins: Any) -> TpoModel:
    """The model of a recipe with fresh heads, bridge and (if any) random weights, drawn from the
    recipe's seed.

    Args:
        recipe: A `tpokit.Recipe`.
        plugins: Where its names are looked up.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        backbone = build_backbone(recipe, plugins)
        heads: dict[str, TaskHead] = {}
        for task, entry in sorted(recipe.heads.items()):
            head_spec = plugins.spec("head", entry.plugin)
            heads[task] = plugins.factory(head_spec)(
                plugins.options(head_spec, entry.options),
                Host(backbone.width, backbone.vision_width, recipe.folder),
            )
        table = TokenTable.build(
            backbone.rows,
            {task: head.tokens for task, head in heads.items()},
            backbone.processor.tokenizer,
        )
        return TpoModel(backbone, heads, table)
