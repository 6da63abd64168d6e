"""From a recipe to the arguments of transformers' Trainer and to the configuration of DeepSpeed.

The one file that knows DeepSpeed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from tpokit.errors import UsageError
from tpokit.recipe import Recipe, StageEntry
from tpokit.training.ranks import Ranks

ZERO_STAGES = {"zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3}
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True)
class Split:
    """How the samples of one step are spread; the product of all three is the size of the step.

    Attributes:
        piece: Samples that a rank reads together; it arranges them in one or more micro-batches.
        world: Number of processes.
        pieces: Pieces that each of them adds up.
    """

    piece: int
    world: int
    pieces: int

    @classmethod
    def of(cls, samples_per_step: int, device_batch: int, world: int, group: int = 1) -> Split:
        """Spread a step.

        Args:
            samples_per_step: Size of the step.
            device_batch: Largest number of samples that a device takes; fewer if the step is small.
            world: Number of processes.
            group: Samples that a rank arranges together, if that is more; fewer if they would not
                divide its share of the step.

        Raises:
            UsageError: The step cannot be spread evenly.
        """
        share, rest = divmod(samples_per_step, world)
        if rest:
            below, above = samples_per_step - rest or world, samples_per_step - rest + world
            raise UsageError(
                f"samples_per_step is {samples_per_step}, which {world} processes cannot share "
                f"evenly; {below} or {above} would do"
            )
        device_batch = min(device_batch, share)
        if share % device_batch:
            raise UsageError(
                f"each process has {share} samples of a step, which is no multiple of "
                f"run.device_batch = {device_batch}; {_largest_divisor(share, device_batch)} "
                "would do"
            )
        piece = max(device_batch, _largest_divisor(share, group))
        return cls(piece, world, share // piece)

    @classmethod
    def in_recipe(cls, recipe: Recipe, stage: StageEntry, world: int) -> Split:
        """As a recipe says."""
        run = recipe.run
        return cls.of(stage.samples_per_step, run.device_batch, world, run.group or 1)


def _largest_divisor(number: int, at_most: int) -> int:
    return max(size for size in range(1, min(at_most, number) + 1) if not number % size)


def check_engine(recipe: Recipe, ranks: Ranks) -> None:
    """See that the engine fits the processes that were started.

    Raises:
        UsageError: It does not; says what to type.
    """
    engine = recipe.run.engine
    if ranks.world > 1 and engine == "plain":
        raise UsageError(
            f"{ranks.world} processes were started, but run.engine is 'plain'; "
            "choose ddp, zero0, zero1, zero2 or zero3"
        )
    if engine not in ZERO_STAGES:
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise UsageError(f"run.engine is {engine!r}: pip install 'tpokit[deepspeed]'")
    if not ranks.launched:
        raise UsageError(
            f"run.engine is {engine!r}, which needs a launcher: torchrun --nproc-per-node "
            "<devices> -m tpokit train ...; on one device: --set run.engine=plain"
        )


def training_arguments(
    recipe: Recipe, stage: StageEntry, split: Split, checkpoints: Path
) -> TrainingArguments:
    """Arguments of one stage.

    Args:
        recipe: For seed and the ``run:`` section.
        stage: Steps, schedule, warm-up, clipping.
        split: How a step is spread.
        checkpoints: Where checkpoints inside the stage go.
    """
    run = recipe.run
    cpu = not torch.cuda.is_available()
    zero = run.engine in ZERO_STAGES
    if cpu:
        # Accelerate imports DeepSpeed where it is installed; it would look for devices and warn.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if zero and cpu:
        _leave_out_compiled_communication()
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=split.piece,
        gradient_accumulation_steps=split.pieces,
        max_steps=stage.steps,
        lr_scheduler_type=_SCHEDULES[stage.schedule],
        warmup_steps=round(stage.warmup * stage.steps),
        max_grad_norm=stage.clip,
        bf16=run.precision == "bfloat16",
        seed=recipe.seed,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and split.world > 1 else None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        ddp_timeout=run.timeout_s,
        deepspeed=deepspeed_config(recipe, stage, split) if zero else None,
        logging_steps=run.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is not finite is an error here, not a gap
        save_strategy="steps" if run.save_every else "no",
        save_steps=run.save_every or stage.steps,
        dataloader_num_workers=run.workers,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    if split.world == 1:
        # Several GPUs seen by one process would put Trainer into DataParallel, which cannot split a
        # Batch.
        arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def deepspeed_config(recipe: Recipe, stage: StageEntry, split: Split) -> dict[str, Any]:
    """DeepSpeed's configuration; whatever has a default that would change the result is written
    out.
    """
    bfloat16 = recipe.run.precision == "bfloat16"
    return {
        "train_micro_batch_size_per_gpu": split.piece,
        "gradient_accumulation_steps": split.pieces,
        "train_batch_size": split.piece * split.pieces * split.world,
        "gradient_clipping": stage.clip,  # left out, DeepSpeed clips at 1.0
        "bf16": {"enabled": bfloat16},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": ZERO_STAGES[recipe.run.engine],
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": False,  # weights are gathered by name
            **_offload(recipe.run.offload),
        },
        "steps_per_print": stage.steps + 1,
        "wall_clock_breakdown": False,
    }


def _offload(what: str) -> dict[str, Any]:
    """What stands in the memory of the host instead of the device's."""
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    there: dict[str, Any] = {}
    if what != "none":
        there["offload_optimizer"] = host
    if what == "parameters":
        there["offload_param"] = host
    return there


def backward(accelerator: Any, loss: Tensor, last: bool) -> None:
    """The backward pass of a micro-batch.

    DeepSpeed is told here which one is the last of a step; accelerate would update the weights at
    once.

    Args:
        accelerator: Of the trainer.
        loss: The micro-batch's share of the loss of the step.
        last: Whether gradients are summed over ranks now; DeepSpeed's ZeRO-2 and 3 always do.
    """
    engine = _engine(accelerator)
    if engine is None:
        accelerator.backward(loss)
        return
    engine.set_gradient_accumulation_boundary(is_boundary=last)
    engine.backward(loss, scale_wrt_gas=False)


def update(accelerator: Any) -> None:
    """Let DeepSpeed clip the gradients and change the weights; otherwise the trainer does that."""
    engine = _engine(accelerator)
    if engine is not None:
        engine.step()


def _engine(accelerator: Any) -> Any:
    wrapped = getattr(accelerator, "deepspeed_engine_wrapped", None)
    return None if wrapped is None else wrapped.engine


def forget_engine() -> None:
    """Let the next model be built whole: after a ZeRO-3 stage transformers would build it in
    pieces.
    """
    unset_hf_deepspeed_config()


def gather(parameter: Tensor) -> Tensor | None:
    """A whole copy on the CPU of the first rank, ``None`` on the others; all ranks must call it."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().to("cpu", copy=True) if dist.get_rank() == 0 else None
    with importlib.import_module("deepspeed").zero.GatheredParameters([parameter]):
        return parameter.detach().to("cpu", copy=True) if dist.get_rank() == 0 else None


def _leave_out_compiled_communication() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives, which takes minutes and a
    compiler.

    It falls back to those of torch. ``__compatible_ops__`` is where DeepSpeed looks for what it may
    build.
    """
    importlib.import_module("deepspeed").ops.__compatible_ops__["deepspeed_shm_comm"] = False
