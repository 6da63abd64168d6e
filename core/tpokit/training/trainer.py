"""The loop: transformers' Trainer, with what several named losses and an exact resume need.

Overridden, and why: batches are ours; counts of all terms are known before the first forward pass
of a step and shared once; the optimizer has a group for each part; a line of the log has every
term; a checkpoint holds what is trained and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import set_seed
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from tpokit.batch import Batch
from tpokit.checkpoints.store import read_tensors
from tpokit.checkpoints.tensors import trained_state, trained_tensors
from tpokit.data.arrangement import Arrangement
from tpokit.data.bad_samples import BadSample, ReadBatch, Reading, ReadingCollator
from tpokit.data.collate import Collator
from tpokit.data.mixing import number
from tpokit.errors import DataError
from tpokit.losses import ASSIGN, LANGUAGE, CombinedLoss
from tpokit.model import TpoModel
from tpokit.parts import parameter_groups
from tpokit.recipe import Recipe, StageEntry
from tpokit.reporting.log_columns import BAD_SAMPLES, RATE, SKIPPED_STEPS
from tpokit.training.arguments import IN_ORDER, backward, load_engine, save_engine, update
from tpokit.training.bad_samples import BadSampleList
from tpokit.training.interruption import take_in_worker
from tpokit.training.meter import TermMeter
from tpokit.training.ranks import Ranks
from tpokit.training.resume import StageCheckpoints, world_of
from tpokit.training.same_task import name_called_tasks
from tpokit.training.skipped import SKIPPED_STEPS_FILE, SkippedSteps
from tpokit.training.watching import Step, StepWatcher, Wish
from tpokit.types import Example

_SEEING = ("vision", "connector")
_TRAINED = "trained.safetensors"
_STATE = "trainer_state.json"
_SCHEDULER = "scheduler.pt"


class TpoTrainer(Trainer):  # type: ignore[misc] # transformers is not typed
    """Trains one stage.

    Attributes:
        loss_is_scaled_for_ga: Nothing but `compute_loss` scales the loss. Before transformers 5.23
            this is said by ``model_accepts_loss_kwargs`` and a count that is not ``None``.
    """

    loss_is_scaled_for_ga = True
    optimizer: Any

    def __init__(
        self,
        model: TpoModel,
        arguments: TrainingArguments,
        dataset: Dataset[Reading] | Dataset[Example],
        recipe: Recipe,
        stage: StageEntry,
        checkpoints: StageCheckpoints,
        bad_samples: BadSampleList,
        watchers: Sequence[StepWatcher] = (),
    ) -> None:
        """Prepare a stage.

        Args:
            model: With its modes set.
            arguments: From `tpokit.training.arguments.training_arguments`.
            dataset: In the order of training.
            recipe: For loss weights and rates.
            stage: The stage.
            checkpoints: Where checkpoints inside the stage go.
            bad_samples: Takes in what the data set replaced.
            watchers: Look at every step, in this order.
        """
        self._watchers = tuple(watchers)
        self._stage = stage
        self._bad_samples = bad_samples
        self._rates = recipe.rates(stage)
        self._ranks = Ranks.here()
        self._checkpoints = checkpoints
        self._combined = CombinedLoss(recipe.loss_weights(stage))
        self._term_names = sorted(
            {LANGUAGE, ASSIGN}
            | {f"{task}.{term}" for task in model.trained_tasks for term in model.head(task).terms}
        )
        # Without media the tower and connector must have a gradient of zero, not none: ranks would
        # disagree, and one process would skip their weight decay where two would not.
        seeing = any(stage.train.get(part, "frozen") != "frozen" for part in _SEEING)
        model.alike = self._ranks.world > 1 or seeing
        self._engine = recipe.run.engine
        model.in_order = self._ranks.world > 1 and self._engine in IN_ORDER
        model.logit_chunks = recipe.run.logit_chunks
        self._same_task = recipe.run.schedule == "same_task"
        processor, heads = (
            model.backbone.processor,
            {task: model.head(task) for task in model.heads},
        )
        collator = Collator(processor, heads, model.tokens, packs=model.backbone.packs)
        self._idle = collator.idle()
        super().__init__(
            model=model,
            args=arguments,
            data_collator=ReadingCollator(
                Arrangement.of(recipe.run, model.backbone), collator.rows
            ),
            train_dataset=dataset,
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True
        self._meter = TermMeter(self._term_names, self.args.device)
        self._group_parts: list[str] = []
        self._group_rates: list[float] = []
        self._engine_norm: float | None = None
        self._skipped = SkippedSteps(
            checkpoints.folder.parent / SKIPPED_STEPS_FILE,
            stage.name,
            recipe.run.skipped_steps,
            self._ranks,
        )
        self._watched_step = 0
        set_seed(arguments.seed, device_specific=True)  # dropout differs between ranks

    # ---- data ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """The order is the dataset's own."""
        return SequentialSampler(train_dataset or self.train_dataset)

    def get_train_dataloader(self) -> Any:
        """Its workers take signals as this process does."""
        loader = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # accelerate wraps it
        inner.worker_init_fn = partial(take_in_worker, inner.worker_init_fn)
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[ReadBatch], num_batches: int, device: torch.device
    ) -> tuple[list[ReadBatch], Mapping[str, float]]:
        """The pieces of a step, of as many micro-batches as on every other rank, and the counts of
        all its terms over all ranks.

        Raises:
            DataError: Too many samples could not be read; on all ranks alike.
        """
        began = time.perf_counter()
        try:
            read = list(islice(epoch_iterator, num_batches))
        except DataError as cause:
            raise DataError(_own_message(cause)) from None
        waited_s = time.perf_counter() - began
        batches = [batch for piece in read for batch in piece.batches]
        bad = [sample for piece in read for sample in piece.bad]
        totals = torch.tensor(
            [sum(batch.counts.get(name, 0.0) for batch in batches) for name in self._term_names]
            + [len(bad), sum(not piece.batches for piece in read)]
            + [sum(piece.shortened for piece in read)],
            dtype=torch.float64,
        )
        if self._ranks.world > 1:
            totals = totals.to(device)
            dist.all_reduce(totals)
        *totals_of_terms, bad_count, missing, shortened = totals.tolist()
        if bad_count:
            self._bad_samples.take(self._of_all_ranks(bad), whole=not missing)
        counts = dict(zip(self._term_names, totals_of_terms, strict=True))
        read = self._even(read, device)
        if self._same_task:
            tasks, first_whole = sorted(self.model.trained_tasks), self._engine == "zero3"
            read = name_called_tasks(read, tasks, self._ranks, device, first_whole)
        batches = [batch for piece in read for batch in piece.batches]
        self._meter.step_begins(counts)
        step = Step(self.state.global_step + 1, batches, counts, waited_s, int(shortened))
        for watcher in self._watchers:
            watcher.step_begins(step)
        return read, counts

    def _even(self, read: list[ReadBatch], device: torch.device) -> list[ReadBatch]:
        """The pieces with idle micro-batches behind them where another rank has more."""
        most = torch.tensor([len(piece.batches) for piece in read])
        if self._ranks.world > 1:
            most = most.to(device)
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return [
            replace(piece, batches=piece.batches + (self._idle,) * (wanted - len(piece.batches)))
            for piece, wanted in zip(read, most.tolist(), strict=True)
        ]

    def _of_all_ranks(self, bad: list[BadSample]) -> list[BadSample]:
        if self._ranks.world == 1:
            return bad
        found: list[list[BadSample]] = [[] for _ in range(self._ranks.world)]
        dist.all_gather_object(found, bad)
        return [sample for samples in found for sample in samples]

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        return inputs.to(self.args.device, non_blocking=True)

    def floating_point_ops(self, inputs: ReadBatch) -> int:
        """Not counted; Trainer would look for tensors by name in the batch."""
        return 0

    # ---- loss ----

    def training_step(
        self, model: nn.Module, inputs: ReadBatch, num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of the micro-batches of a piece.

        Args:
            model: As the engine has wrapped it.
            inputs: The piece.
            num_items_in_batch: Counts of the terms of the step.

        Returns:
            Their share of the loss of the step.
        """
        model.train()
        whole = torch.zeros((), device=self.args.device)
        ends_step = bool(self.accelerator.sync_gradients)
        for place, batch in enumerate(inputs.batches, start=1):
            last = ends_step and place == len(inputs.batches)
            alone = nullcontext() if last else self._without_reduction(model)
            with alone:
                batch = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, batch, num_items_in_batch=num_items_in_batch)
                backward(self.accelerator, loss * self._skipped.factor() if last else loss, last)
            whole += loss.detach()
            for watcher in self._watchers:
                watcher.backward_done(batch)
        if ends_step:
            for watcher in self._watchers:
                watcher.gradients_ready()
            self._engine_norm = update(self.accelerator)
        return whole

    def _without_reduction(self, model: nn.Module) -> AbstractContextManager[None]:
        """DDP adds gradients of ranks up in the last micro-batch of a step only."""
        if self.is_deepspeed_enabled:
            return nullcontext()
        deferred: AbstractContextManager[None] = self.accelerator.no_sync(model)
        return deferred

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The share of a micro-batch in the combined loss of its step."""
        terms = model(inputs)
        loss = self._combined(terms, num_items_in_batch, scale=self._ranks.world)
        self._skipped.loss_known(terms, loss, inputs)
        self._meter.add(terms, loss)
        for watcher in self._watchers:
            watcher.loss_known(terms, loss, inputs)
        return (loss, terms) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float | None:
        """Called before the weights change (under DeepSpeed behind that).

        Returns:
            ``None`` for a step that is skipped.

        Raises:
            TrainingError: Too many in a row are.
        """
        norm = self._engine_norm
        if norm is None:
            norm = float(super()._get_grad_norm(model, grad_norm))
        skipped = self._skipped.ended(self.state.global_step + 1, norm)
        self._meter.step_ended(skipped)
        if skipped and not self.is_deepspeed_enabled:
            model.zero_grad()  # an optimizer leaves a parameter without gradient alone
        return None if skipped else norm

    # ---- optimizer ----

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with the groups of `tpokit.parts.parameter_groups`."""
        if self.optimizer is None:
            groups = parameter_groups(self.model, self._rates, self._stage.weight_decay)
            self._group_parts = [group["part"] for group in groups]
            self.optimizer = self.make_optimizer(groups)
        return self.optimizer

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer itself. Fused: a loop over hundreds of small parameters takes far longer
        than the update.
        """
        return torch.optim.AdamW(groups, fused=True)

    def _get_learning_rate(self) -> float:
        self._group_rates = [float(rate) for rate in self.lr_scheduler.get_last_lr()]
        return self._group_rates[0]

    # ---- log ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Put every term into a line of the log: means since the line before, over all ranks."""
        if "loss" in logs:
            del logs["learning_rate"]
            found = self._meter.read(self._ranks.world)
            if not found:
                del logs["loss"]  # every step since the line before was skipped
            logs.update(found)
        if "loss" in logs:
            logs.update(
                {
                    f"{RATE}{part}": rate
                    for part, rate in zip(self._group_parts, self._group_rates, strict=True)
                }
            )
            if self._bad_samples.count:
                logs[BAD_SAMPLES] = self._bad_samples.count
            if self._skipped.count:
                logs[SKIPPED_STEPS] = self._skipped.count
            for watcher in self._watchers:
                logs.update(watcher.row())
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *arguments: Any, **named: Any) -> None:
        """Watchers come between the line of the log and the checkpoint."""
        save, self.control.should_save = self.control.should_save, False
        super()._maybe_log_save_evaluate(*arguments, **named)
        wishes = Wish.NOTHING
        if self._watched_step != self.state.global_step:
            self._watched_step = self.state.global_step
            for watcher in self._watchers:
                wishes |= watcher.step_ended(self._watched_step)
        finished = Wish.FINISH in wishes
        if finished or Wish.STOP in wishes:
            self.control.should_training_stop = True
        self.control.should_save = (save or Wish.SAVE in wishes) and not finished
        super()._maybe_log_save_evaluate(*arguments, **named)

    # ---- checkpoints inside the stage ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a whole checkpoint or none; the last step needs none, the stage itself is saved
        then.
        """
        if self.state.global_step >= self.state.max_steps:
            return
        with self._checkpoints.writing(self.state.global_step) as folder:
            if self._ranks.first and not self.is_deepspeed_enabled:
                wanted = trained_tensors(self.model)
                save_file(trained_state(wanted), folder / _TRAINED)
                read_tensors(folder / _TRAINED, wanted)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
            torch.save(self._rank_state(), folder / _rank_file(self._ranks.rank))
            if self._ranks.first:
                self.state.save_to_json(str(folder / _STATE))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_engine(self.accelerator, Path(output_dir), self._ranks)
        if self._ranks.first:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights, before any engine wraps the model."""
        wanted = trained_tensors(self.model)
        found = read_tensors(Path(resume_from_checkpoint) / _TRAINED, wanted)
        with torch.no_grad():
            for name, tensor in found.items():
                wanted[name].copy_(tensor)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Load what belongs to the engine here: Trainer would insist on frozen weights under
        DeepSpeed.
        """
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            before = world_of(Path(resume_from_checkpoint))
            if self.is_deepspeed_enabled:
                load_engine(self.accelerator, Path(resume_from_checkpoint), before, self._ranks)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._restore(Path(resume_from_checkpoint), before)
            rates = self.lr_scheduler.get_last_lr()
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # a universal checkpoint of DeepSpeed has none for each group
        self._watched_step = self.state.global_step
        self._skipped.go_on(self.state.global_step)
        return prepared

    def _rank_state(self) -> dict[str, Any]:
        """What this rank counts and measures between two lines of the log."""
        watched = [watcher.state() for watcher in self._watchers]
        return {"meter": self._meter.state(), "watchers": watched}

    def _restore(self, checkpoint: Path, world: int) -> None:
        """Go on from what ``world`` ranks wrote; a rank that is new takes what the first one
        watched.
        """
        states = [
            torch.load(checkpoint / _rank_file(rank), weights_only=True) for rank in range(world)
        ]
        own = states[self._ranks.rank if self._ranks.rank < world else 0]
        if world == self._ranks.world:
            self._meter.restore(own["meter"])
        else:
            self._meter.restore_from([state["meter"] for state in states], self._ranks)
        for watcher, found in zip(self._watchers, own["watchers"], strict=True):
            watcher.restore(found)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Generators of this rank; of their own from a step on, if there was another number."""
        if checkpoint is None or world_of(Path(checkpoint)) == self._ranks.world:
            super()._load_rng_state(checkpoint)
            return
        seed = number("generators", self.args.seed, self.state.global_step) % 2**31
        set_seed(seed, device_specific=True)

    # ---- the end ----

    def release(self) -> None:
        """Let go of the engine: the next stage starts from nothing but what is on the disk."""
        if self.is_deepspeed_enabled:
            self.model_wrapped.destroy()
        self.accelerator.free_memory()


def _rank_file(rank: int) -> str:
    return f"rank_{rank}.pt"


def _own_message(cause: DataError) -> str:
    """The message itself; torch puts the traceback of a data worker in front of it."""
    return str(cause).rpartition(f"{DataError.__module__}.{DataError.__name__}: ")[2].strip()
