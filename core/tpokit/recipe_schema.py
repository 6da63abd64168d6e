"""What may stand in a recipe: one model for each section, in the order in which a user reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationInfo,
    field_validator,
)

from tpokit.errors import UsageError
from tpokit.recipe_mix import MixPlan, MixSection, mix_plan
from tpokit.recipe_values import (
    Count,
    Expression,
    Name,
    Rate,
    Share,
    Weight,
    Whole,
    one_or_many,
)

SCHEMA = 1
"""Version of the recipe's schema."""
BACKBONE_PARTS = ("vision", "connector", "llm")
"""Parts of every backbone."""
PARTS = (*BACKBONE_PARTS, "bridge")
"""Parts of every model besides its heads."""
TRAINING_SECTIONS = ("output", "data", "stages")
"""Sections that a recipe must have to be trained; the recipe of a saved model may lack them."""
WORD_TERMS = ("language", "assign")
"""Loss terms of every model besides those of its heads."""

Mode = Literal["full", "lora", "frozen"]
SlotOrder = Literal["after_trigger", "before_trigger"]
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
Packing = Literal["none", "conversation", "all"]
TooLong = Literal["shorten", "drop"]


class Entry(BaseModel):
    """Base of all sections: an unknown key is an error, nothing changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ConnectorEntry(Entry):
    """``backbone.connector:``: which plugin, and its own options."""

    plugin: str
    options: dict[str, Any] = {}


class BackboneEntry(Entry):
    """``backbone:``: which plugin, its own options, and a connector in place of its own."""

    plugin: str
    options: dict[str, Any] = {}
    connector: ConnectorEntry | None = None


class HeadEntry(Entry):
    """One line of ``heads:``: which plugin does this task, and its own options."""

    plugin: str
    options: dict[str, Any] = {}


class DataEntry(Entry):
    """One line of ``data:``: which source, and its own options."""

    source: str
    options: dict[str, Any] = {}


class LoraEntry(Entry):
    """``lora:``: adapters of every part that a stage trains with ``lora``.

    Attributes:
        rank: r of the two matrices.
        alpha: The update is scaled by alpha / rank.
        dropout: Share of the adapter's inputs that is dropped, in [0, 1].
    """

    rank: Count = 16
    alpha: Rate = 32.0
    dropout: Share = 0.0


class TaskLoss(BaseModel):
    """Weights of one task: a named set of the head, a weight for the task, and weights of terms.

    With neither a set nor a term the head's first set counts; a term that is not named in a set or
    here has weight 0.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Weight] = Field(init=False)

    preset: str | None = None
    weight: Weight | None = None

    @property
    def terms(self) -> dict[str, float]:
        """The weights of terms that are written out."""
        return dict(self.__pydantic_extra__)


class TrainEntry(Entry):
    """One line of ``train:``, written out: a part of which only some parameters are trained.

    Attributes:
        mode: As for a whole part.
        only: Regular expression; parameters of the part with a match in their name
            (``re.search``) are trained, the others are frozen. A name is as seen from the backbone
            for its parts, from the head for a head, from the bridge for the bridge.
    """

    mode: Mode
    only: Expression


TrainSection = dict[
    str,
    Annotated[
        Annotated[Mode, Tag("<one>")] | Annotated[TrainEntry, Tag("<many>")],
        Discriminator(one_or_many),
    ],
]
LossSection = dict[
    str,
    Annotated[
        Annotated[Weight, Tag("<one>")] | Annotated[TaskLoss, Tag("<many>")],
        Discriminator(one_or_many),
    ],
]
RateSection = Annotated[
    Annotated[Rate, Tag("<one>")] | Annotated[dict[str, Rate], Tag("<many>")],
    Discriminator(one_or_many),
]


class StageEntry(Entry):
    """One leg of training.

    Attributes:
        name: Names its folder.
        train: Part to mode, or to mode and names; a part that is not named is frozen.
        learning_rate: Peak rate, one for all trained parts or one for each.
        mix: Data entries and their shares of the samples; see `tpokit.recipe_mix`.
        samples_per_step: Over all devices, gradient accumulation included.
        epochs: Length in epochs, as many samples as all entries of the mix have; ``null`` with
            ``steps``.
        steps: Length in optimizer steps; ``null`` with ``epochs``.
        warmup: Share of the steps in which the rate rises from 0.
        schedule: How it falls afterwards.
        weight_decay: Of matrices; vectors and the bridge's rows do not decay.
        clip: Largest norm of the gradient; 0: not clipped.
        loss: Weights that differ from the recipe's in this stage.
        without_conversation: Train heads together with the LLM although no data entry of the mix
            has samples without calls.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    train: Annotated[TrainSection, Field(min_length=1)]
    learning_rate: RateSection
    mix: MixSection
    samples_per_step: Count
    epochs: Rate | None = None
    steps: Annotated[Count | None, Field(validate_default=True)] = None
    warmup: Share = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: Weight = 0.0
    clip: Weight = 1.0
    loss: LossSection = {}
    without_conversation: bool = False

    @field_validator("steps")
    @classmethod
    def _one_length(cls, steps: int | None, others: ValidationInfo) -> int | None:
        if "epochs" not in others.data:
            return steps  # epochs are wrong themselves
        if steps is None and others.data["epochs"] is None:
            raise ValueError("must be given, or epochs in its place")
        if steps is not None and others.data["epochs"] is not None:
            raise ValueError("the stage has epochs, too; one of both must go (or be null)")
        return steps

    @property
    def plan(self) -> MixPlan:
        """The mix in one form, whatever form it was written in."""
        return mix_plan(self.mix)

    @property
    def length(self) -> int:
        """Optimizer steps.

        Raises:
            UsageError: The stage has epochs; `tpokit.data.mixing.with_lengths` counts their steps
                when sizes of the data are known.
        """
        if self.steps is None:
            raise UsageError(f"stage {self.name!r}: its epochs are counted when its data are open")
        return self.steps

    @property
    def modes(self) -> dict[str, Mode]:
        """What the stage does with each part that it names."""
        return {
            part: entry.mode if isinstance(entry, TrainEntry) else entry
            for part, entry in self.train.items()
        }

    @property
    def patterns(self) -> dict[str, str]:
        """Part to the regular expression for its trained parameters, if it is trained in part."""
        return {
            part: entry.only for part, entry in self.train.items() if isinstance(entry, TrainEntry)
        }


class DecodingEntry(Entry):
    """``decoding:``: how answers are written.

    Attributes:
        slots: When a head's slots are fed: ``after_trigger``, as in training, or
            ``before_trigger``, as the released code does, which forgets them again.
    """

    slots: SlotOrder = "after_trigger"


class StopEntry(Entry):
    """``evaluate.probe.stop:``: when a stage ends early because the model forgets how to talk.

    Attributes:
        accuracy_drop: Largest loss of accuracy, in [0, 1]; ``null``: any.
        kl: Largest divergence per token of the answers, in nats; ``null``: any.
        patience: So many evaluations in a row must be beyond a limit.
    """

    accuracy_drop: Share | None = None
    kl: Weight | None = None
    patience: Count = 1


class ProbeEntry(Entry):
    """``evaluate.probe:``: conversations by which a stage shows whether the model still talks.

    Attributes:
        prompts: Data entry; those of its samples that call no head.
        samples: At most so many, the first ones.
        stop: When a stage ends early; ``null``: never.
    """

    prompts: str
    samples: Count = 64
    stop: StopEntry | None = None


class EvaluateEntry(Entry):
    """``evaluate:``: what is measured.

    Attributes:
        data: Data entries.
        samples: At most so many of each.
        batch: Questions answered at once.
        max_new_tokens: Longest answer.
        before: Measure before the first stage, too.
        every: Steps between two evaluations during a stage, which is evaluated after its last step,
            too; 0: none.
        probe: Conversations that are measured at these evaluations; ``null``: none.
    """

    data: Annotated[tuple[str, ...], Field(min_length=1)]
    samples: Count = 500
    batch: Count = 64
    max_new_tokens: Count = 32
    before: bool = True
    every: Whole = 0
    probe: ProbeEntry | None = None


class RunEntry(Entry):
    """``run:``: how it runs on this machine.

    Attributes:
        device_batch: Samples that a device takes at once, at most.
        device_tokens: Tokens that a device takes at once, padding included: rows times the longest;
            ``null``: any.
        device_pixels: Pixels that a device takes through the vision tower at once; ``null``: any.
        packing: Samples that may share a row of a micro-batch: ``none``, those of ``conversation``,
            which call no head, or ``all``; ``null``: conversation, if the backbone packs.
        precision: Of the backbone's arithmetic.
        workers: Processes that read data, on each device; 0: none besides the training itself.
        engine: How the model is spread over devices.
        offload: What zero3 keeps in the memory of the host: nothing, the ``optimizer``, or the
            ``parameters`` too.
        group: Samples that a rank reads and arranges together; ``null``: device_batch.
        schedule: What ranks have at the same time: samples of ``any_task``, and heads that one of
            them does not call run idle there; or of the ``same_task`` of the mix, and heads that
            none of them calls are left out.
        without_gradient: Regular expressions; a trained parameter with a match in its full name
            (``re.search``) may get no gradient, any other stops the run.
        timeout_s: How long a process waits for the others before the run stops, in seconds.
        log_every: Steps between two lines of the log.
        gradients_every: Steps between two in which the gradients of tasks are compared; 0: never.
        report_to: Trackers that get every line of the log, too.
        save_every: Steps between two checkpoints inside a stage; 0: only at its end.
        max_length: Longest sample in tokens; ``null``: what the backbone can.
        too_long: What happens in training to a longer sample: ``shorten`` leaves out older turns,
            then frames, but never a medium or a call; ``drop`` replaces it.
        bad_samples: Share of a stage's samples that may be unreadable; more stop the run.
        skipped_steps: Steps in a row that may change no weight, because a loss or a gradient is not
            finite; one more stops the run.
        threads: Threads of the arithmetic on a CPU; ``null``: the library's choice.
        gradient_checkpointing: Less memory, about a third slower.
        logit_chunks: Logits of answers in so many chunks, one at a time; more than 1 takes less
            memory and computes logits once more.
    """

    device_batch: Count = 8
    device_tokens: Count | None = None
    device_pixels: Count | None = None
    packing: Packing | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    workers: Whole = 0
    engine: Literal["plain", "ddp", "zero0", "zero1", "zero2", "zero3"] = "plain"
    offload: Literal["none", "optimizer", "parameters"] = "none"
    group: Count | None = None
    schedule: Literal["any_task", "same_task"] = "any_task"
    without_gradient: tuple[Expression, ...] = ()
    timeout_s: Count = 1800
    log_every: Count = 10
    gradients_every: Whole = 0
    report_to: tuple[Tracker, ...] = ()
    save_every: Whole = 0
    max_length: Count | None = None
    too_long: TooLong = "shorten"
    bad_samples: Share = 0.01
    skipped_steps: Whole = 3
    threads: Count | None = None
    gradient_checkpointing: bool = False
    logit_chunks: Count = 1


class Recipe(Entry):
    """A whole recipe; made by `tpokit.load_recipe`, which resolves and checks it.

    The sections in `TRAINING_SECTIONS` have defaults because the recipe of a saved model may lack
    them; one that is trained must have them.
    """

    recipe: Literal[1]
    name: Annotated[str, Field(min_length=1)]
    seed: Whole = 0
    registry: Path | None = None
    output: Path = Path("run")
    init_from: Path | None = None
    backbone: BackboneEntry
    heads: dict[Name, HeadEntry] = {}
    data: dict[Name, DataEntry] = {}
    loss: LossSection = {}
    lora: LoraEntry = LoraEntry()
    stages: tuple[StageEntry, ...] = ()
    decoding: DecodingEntry = DecodingEntry()
    evaluate: EvaluateEntry | None = None
    run: RunEntry = RunEntry()

    _folder: Path = PrivateAttr(default_factory=Path)

    @property
    def folder(self) -> Path:
        """Where relative paths of options start: the folder of the file that was first read."""
        return self._folder

    @property
    def registry_path(self) -> Path | None:
        """The registry file that the recipe names."""
        return None if self.registry is None else self.folder / self.registry

    @property
    def init_path(self) -> Path | None:
        """The saved model whose weights the first stage starts from."""
        return None if self.init_from is None else self.folder / self.init_from

    def stage(self, name: str) -> StageEntry:
        """The stage of that name.

        Raises:
            UsageError: There is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.stages)
        raise UsageError(f"recipe {self.name!r} has no stage {name!r} (stages: {names})")

    def modes(self, stage: StageEntry | str) -> dict[str, Mode]:
        """What a stage does with each part that it names."""
        return self._of(stage).modes

    def rates(self, stage: StageEntry | str) -> dict[str, float]:
        """Peak learning rate of each part that a stage trains."""
        entry = self._of(stage)
        rate = entry.learning_rate
        trained = [part for part, mode in entry.modes.items() if mode != "frozen"]
        return {part: rate[part] if isinstance(rate, dict) else rate for part in trained}

    def loss_weights(self, stage: StageEntry | str) -> dict[str, float]:
        """Weight of every loss term in a stage, by full name.

        Returns:
            ``language``, ``assign``, and ``task.term``: the weight of the task times that of the
            term.

        Raises:
            UsageError: The recipe was loaded without plugins, and so does not know the terms.
        """
        weights: dict[str, float] = dict.fromkeys(WORD_TERMS, 1.0)
        for name, entry in {**self.loss, **self._of(stage).loss}.items():
            if not isinstance(entry, TaskLoss):
                weights[name] = entry
                continue
            if entry.preset is not None or entry.weight is None:
                raise UsageError(f"loss.{name}: load the recipe with plugins to know its weights")
            for term, weight in entry.terms.items():
                weights[f"{name}.{term}"] = entry.weight * weight
        unknown = [task for task in self.heads if task not in self.loss]
        if unknown:
            raise UsageError(f"loss.{unknown[0]}: load the recipe with plugins to know its weights")
        return weights

    def _of(self, stage: StageEntry | str) -> StageEntry:
        return self.stage(stage) if isinstance(stage, str) else stage

    def resolved(self) -> dict[str, Any]:
        """Plain data: every key with its value, defaults included."""
        plain: dict[str, Any] = self.model_dump(mode="json")
        for losses in [plain["loss"], *(stage["loss"] for stage in plain["stages"])]:
            for name, entry in losses.items():
                if isinstance(entry, Mapping):
                    losses[name] = {k: v for k, v in entry.items() if v is not None}
        for stage in plain["stages"]:
            if stage["epochs"] is not None:
                stage["steps"] = None  # counted from sizes of the data, which are no part of it
        return plain

    def dump(self) -> str:
        """The recipe as YAML, as resolved; read from anywhere it means the same."""
        plain = {**self.resolved(), "folder": str(self.folder.resolve())}
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
