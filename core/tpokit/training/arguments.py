"""From a recipe to the arguments of transformers' Trainer and to the configuration of DeepSpeed.

The one file that knows DeepSpeed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from tpokit.atomic import partial_name
from tpokit.checkpoints.tensors import declared_shape
from tpokit.errors import CheckpointError, UsageError
from tpokit.recipe import Recipe, StageEntry
from tpokit.training.ranks import Ranks

ZERO_STAGES = {"zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3}
_IN_USE = -1  # in the place of the number of a module that DeepSpeed would wait for
IN_ORDER = ("zero1", "zero2")
"""Engines that add gradients of ranks up in the order in which they come, not by their names."""
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

    def block(self, recipe: Recipe) -> int:
        """Samples in a row of a stage's order that are of one task of its mix."""
        return self.piece * self.world if recipe.run.schedule == "same_task" else 1


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
        max_steps=stage.length,
        lr_scheduler_type=_SCHEDULES[stage.schedule],
        warmup_steps=round(stage.warmup * stage.length),
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
        save_steps=run.save_every or stage.length,
        dataloader_num_workers=run.workers,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",  # `tpokit.training.trackers` makes them
        project=recipe.name,
        run_name=f"{recipe.name}-{stage.name}",
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
        "bf16": {"enabled": bfloat16, "check_grad_overflow": True},
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
        "steps_per_print": stage.length + 1,
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


def update(accelerator: Any) -> float | None:
    """Let DeepSpeed clip the gradients and change the weights; otherwise the trainer does that.

    Returns:
        Norm of the gradients before clipping, over all ranks. If it is not finite, no weight has
        changed and the gradients are gone. ``None`` without DeepSpeed.
    """
    engine = _engine(accelerator)
    if engine is None:
        return None
    if engine.optimizer is engine.basic_optimizer:
        return _update_whole(engine)
    engine.step()
    engine.optimizer.overflow = False  # Trainer would hold the schedule for a skipped step
    return float(engine.get_global_grad_norm())


def _update_whole(engine: Any) -> float:
    """What other stages of ZeRO do by themselves, for ZeRO-0 in float32: it has no norm, and its
    optimizer would take any gradient.
    """
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    drop = None
    if not math.isfinite(norm):  # behind the clipping, which wants gradients
        drop = engine.optimizer.register_step_pre_hook(lambda *_: engine.module.zero_grad())
    engine.step()
    if drop is not None:
        drop.remove()
    return norm


def _engine(accelerator: Any) -> Any:
    wrapped = getattr(accelerator, "deepspeed_engine_wrapped", None)
    return None if wrapped is None else wrapped.engine


def save_engine(accelerator: Any, checkpoint: Path, ranks: Ranks) -> None:
    """Let DeepSpeed write what is trained, and its part of the optimizer on each rank; then open it
    again and see that everything is there.

    Raises:
        CheckpointError: A trained parameter is missing or has another shape; on all ranks alike.
    """
    engine = _engine(accelerator)
    engine.save_checkpoint(str(checkpoint), exclude_frozen_parameters=True)
    ranks.once(lambda: _check_saved(engine.module, checkpoint))


def _check_saved(module: nn.Module, checkpoint: Path) -> None:
    states = _engine_states(checkpoint)
    groups = states["param_shapes"] or [{n: t.shape for n, t in states["module"].items()}]
    found = {name: list(shape) for group in groups for name, shape in group.items()}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and found.get(name) != declared_shape(parameter):
            raise CheckpointError(
                f"{checkpoint} has {name} with shape {found.get(name)}, declared is "
                f"{declared_shape(parameter)}"
            )


def _engine_states(checkpoint: Path) -> dict[str, Any]:
    """What the first rank has written of the model; nothing is unpickled."""
    path = min(checkpoint.glob("global_step*/*mp_rank_00_model_states.pt"))
    states: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return states


def load_engine(accelerator: Any, checkpoint: Path, world: int, ranks: Ranks) -> None:
    """Load weights and optimizer into DeepSpeed.

    Under ZeRO-1 to 3 each rank has written its part of the optimizer. For another number of ranks
    the first one puts them together in DeepSpeed's universal format, from which all take theirs.

    Args:
        accelerator: Of the trainer.
        checkpoint: Written by DeepSpeed, together with other things.
        world: Number of ranks that wrote it.
        ranks: Those of now.
    """
    engine = _engine(accelerator)
    if world == ranks.world or not engine.zero_optimization():
        engine.load_checkpoint(str(checkpoint), load_module_strict=False)
        return
    universal = partial_name(checkpoint)
    ranks.once(lambda: _make_universal(checkpoint, universal, engine.zero_optimization_stage()))
    groups = engine.optimizer.param_groups
    own = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    engine._config.load_universal_checkpoint = True
    engine.load_checkpoint(str(universal), load_module_strict=False)
    engine._config.load_universal_checkpoint = False
    for group, values in zip(engine.optimizer.param_groups, own, strict=True):
        group.update(values)  # DeepSpeed gives all groups the rate and the decay of the first
    for state in engine.optimizer.optimizer.state.values():
        state["step"] = state["step"].clone()  # ZeRO-3 gives all groups one, and each would count
    _load_buffers(engine.module, checkpoint)
    ranks.wait()
    ranks.once(lambda: shutil.rmtree(universal))


def _make_universal(checkpoint: Path, folder: Path, stage: int) -> None:
    """DeepSpeed's own command, in this process."""
    (tag,) = (path.name for path in checkpoint.glob("global_step*"))
    shutil.rmtree(folder, ignore_errors=True)
    options = argparse.Namespace(
        input_folder=str(checkpoint / tag),
        output_folder=str(folder / tag),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=stage < 3,
    )
    (folder / tag).mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        importlib.import_module("deepspeed.checkpoint.ds_to_universal").main(options)


def _load_buffers(module: nn.Module, checkpoint: Path) -> None:
    """They are no part of the universal format."""
    found = _engine_states(checkpoint)["module"]
    for name, buffer in module.named_buffers():
        if name in found:
            buffer.copy_(found[name])


def forget_engine() -> None:
    """Let the next model be built whole: after a ZeRO-3 stage transformers would build it in
    pieces.
    """
    unset_hf_deepspeed_config()


def gradient_of(parameter: Tensor) -> Tensor | None:
    """The whole gradient of a parameter, summed over ranks, between the last backward pass of a
    step and the update; ``None`` if it got none. All ranks must call it.
    """
    if not hasattr(parameter, "_hp_mapping") and not hasattr(parameter, "ds_id"):
        return parameter.grad
    whole: Tensor | None = importlib.import_module("deepspeed.utils").safe_get_full_grad(parameter)
    return whole


def gather(parameter: Tensor) -> Tensor | None:
    """A whole copy on the CPU of the first rank, ``None`` on the others; all ranks must call it."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().to("cpu", copy=True) if dist.get_rank() == 0 else None
    with importlib.import_module("deepspeed").zero.GatheredParameters([parameter]):
        return parameter.detach().to("cpu", copy=True) if dist.get_rank() == 0 else None


def gathers_for(node: Any) -> nn.Module | None:
    """The module whose weights ZeRO-3 gathers when a backward pass comes to a node of its graph;
    ``None`` for other nodes.
    """
    return node.module if hasattr(node, "pre_backward_function") else None


def lies_in_pieces(model: nn.Module) -> bool:
    """Whether a model is spread over the ranks (ZeRO-3) and put together layer by layer."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def forget_order(model: nn.Module) -> None:
    """Let DeepSpeed forget in which order the modules of a model in pieces run: it fetches ahead by
    the order that it has seen, which is another one in evaluation and may differ between ranks.

    It sees the order anew in the next training steps. There is no public name for this in 0.19.
    """
    parameter = next(parameter for parameter in model.parameters() if hasattr(parameter, "ds_id"))
    order = parameter._z3_optimizer.parameter_offload.get_param_coordinator()  # type: ignore[attr-defined]
    if not order.is_invalid_trace():
        order._invalidate_trace()


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """A module of a model in pieces, whole on every rank; all ranks enter and leave together, and
    in between each may run it as often as it likes.
    """
    parameters = list(module.parameters())
    with importlib.import_module("deepspeed").zero.GatheredParameters(parameters):
        for parameter in parameters:  # otherwise the first run would take it to pieces again
            parameter.ds_active_sub_modules.add(_IN_USE)  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.ds_active_sub_modules.discard(_IN_USE)  # type: ignore[attr-defined]


def _leave_out_compiled_communication() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives, which takes minutes and a
    compiler.

    It falls back to those of torch. ``__compatible_ops__`` is where DeepSpeed looks for what it may
    build.
    """
    importlib.import_module("deepspeed").ops.__compatible_ops__["deepspeed_shm_comm"] = False
