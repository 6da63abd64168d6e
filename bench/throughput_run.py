"""One run of one tool, with a clock: what `throughput.py` starts in the environment of each tool.

    PYTHON bench/throughput_run.py SIDE SETTINGS.json CLOCK.json

The clock is a callback of transformers' Trainer, which all of these tools are built upon, so that
each is timed in the same way: the time by the clock and the processor time of the process and of
its data workers at the end of every step, and the losses that the tool logs. Nothing here knows
tpokit but the side of that name, because the other environments do not have it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, trainer


class StepClock(TrainerCallback):
    """Writes when each step ended, and what was logged."""

    def __init__(self, path: Path) -> None:
        """Write to a JSON file at the end of training."""
        self._path = path
        self._own = psutil.Process()
        self._workers: dict[psutil.Process, float] | None = None
        self._gpu = torch.cuda.is_available()
        self.steps: list[dict[str, float]] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Take the times; on a GPU when its work is done."""
        if self._gpu:
            torch.cuda.synchronize()
        if self._workers is None:  # they live as long as the one pass over the data
            self._workers = dict.fromkeys(self._own.children(recursive=True), 0.0)
        for worker in self._workers:
            with contextlib.suppress(psutil.NoSuchProcess):  # nothing left to read: its last count
                used = worker.cpu_times()
                self._workers[worker] = float(used.user + used.system)
        self.steps.append(
            {
                "clock_s": time.perf_counter(),
                "main_s": time.process_time(),
                "workers_s": sum(self._workers.values()),
            }
        )

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        """Keep the loss."""
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Write."""
        found = {"steps": self.steps, "losses": self.losses}
        self._path.write_text(json.dumps(found), encoding="utf-8")


def run_tpokit(settings: dict[str, Any], clock: StepClock) -> None:
    """A recipe."""
    from tpokit.recipe import open_recipe
    from tpokit.training.stages import train

    trainer.DEFAULT_CALLBACKS.append(clock)
    train(*open_recipe(settings["recipe"]))


def run_llama_factory(settings: dict[str, Any], clock: StepClock) -> None:
    """Its own entry."""
    from llamafactory.train.tuner import run_exp

    run_exp(settings, callbacks=[clock])


def run_ms_swift(settings: dict[str, Any], clock: StepClock) -> None:
    """Its own entry."""
    from swift.callbacks import callbacks_map
    from swift.pipelines import sft_main

    callbacks_map["clock"] = lambda *_: clock
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    sft_main(["--callbacks", "clock", *words])


def run_plain(settings: dict[str, Any], clock: StepClock) -> None:
    """Trainer and processor of transformers and PEFT, as a tutorial puts them together."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(settings["model"])
    model = AutoModelForImageTextToText.from_pretrained(
        settings["model"], dtype=getattr(torch, settings["dtype"]), attn_implementation="sdpa"
    )
    model = get_peft_model(model, LoraConfig(**settings["lora"]))
    data = [json.loads(line) for line in Path(settings["data"]).read_text().splitlines()]
    loop = InOrder(
        model=model,
        args=TrainingArguments(**settings["arguments"]),
        data_collator=ConversationCollator(processor),
        train_dataset=data,
        callbacks=[clock],
    )
    loop.train()


class InOrder(Trainer):
    """Takes the samples in their order, as the other sides do."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)


class ConversationCollator:
    """Messages to what the model takes; the answers of the assistant are learnt."""

    def __init__(self, processor: Any) -> None:
        """Keep the processor."""
        self._processor = processor
        ids = processor.tokenizer.convert_tokens_to_ids
        self._start, self._end, self._says = map(ids, ("<|im_start|>", "<|im_end|>", "assistant"))

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Ids, pixels and labels."""
        from PIL import Image

        texts = [
            self._processor.apply_chat_template(sample["messages"], tokenize=False)
            for sample in samples
        ]
        images = [Image.open(sample["image"]).convert("RGB") for sample in samples]
        batch = self._processor(images=images, text=texts, padding=True, return_tensors="pt")
        labels = torch.full_like(batch["input_ids"], -100)
        for row, ids in enumerate(batch["input_ids"].tolist()):
            for start, (token, speaker) in enumerate(itertools.pairwise(ids)):
                if (token, speaker) == (self._start, self._says):
                    answer = slice(start + 2, ids.index(self._end, start) + 1)
                    labels[row, answer] = batch["input_ids"][row, answer]
        return {**batch, "labels": labels}


SIDES: dict[str, Callable[[dict[str, Any], StepClock], None]] = {
    "tpokit": run_tpokit,
    "plain Trainer": run_plain,
    "LLaMA-Factory": run_llama_factory,
    "ms-swift": run_ms_swift,
}


def run(side: str, settings: dict[str, Any], clock: Path, threads: int) -> None:
    """Train with a tool while its steps are timed."""
    torch.set_num_threads(threads)
    SIDES[side](settings, StepClock(clock))


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    run(sys.argv[1], found["settings"], Path(sys.argv[3]), found["threads"])
