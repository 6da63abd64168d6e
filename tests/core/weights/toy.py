"""A backbone, two heads and their rules for two made-up formats, as a stranger's plugin."""

import hashlib
import json
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

import tpokit
from tests.core.training import tiny
from tpokit import AddedProduct, CheckpointError, Place, Published, UsageError

TOKENS = (
    "<mass_begin>",
    "<mass_slot>",
    "<point_begin>",
    "<point_x>",
    "<point_y>",
    "<point_given>",
)
"""Words that the release has behind its vocabulary, in its order."""
SCALE = 2.0
SIZES = "sizes.json"
LAYERS = 2


class ToyOptions(tiny.TinyOptions):
    model: str
    weights: Literal["pretrained", "random"] = "pretrained"


class ToyBackbone(tiny.TinyBackbone):
    """Loads numbers as they are in the file, in whatever format."""

    Options = ToyOptions

    @classmethod
    def build(cls, options, folder):
        place = folder / options.model
        if options.weights == "random":
            width = json.loads((place / SIZES).read_text())["width"]
            made = cls(options.model_copy(update={"width": width}))
            made.base = {"name": options.model, "hash": "random"}
            return made
        width = json.loads((place / "options.json").read_text())["width"]
        made = cls(options.model_copy(update={"width": width}))
        path = place / "weights.safetensors"
        made.load_state_dict(load_file(path), assign=True)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        made.base = {"name": options.model, "hash": digest}
        return made

    def lora_targets(self):
        return r"layers\.\d+\.query|words"


class MassOptions(tiny.TinyHeadOptions):
    extra: str = ""


class ToyMass(tiny.MassHead):
    """Adds a number of a file of its own."""

    Options = MassOptions

    def __init__(self, options, host):
        super().__init__(options, host)
        self.extra = load_file(host.folder / options.extra) if options.extra else {}


class ToyRules(tpokit.BackboneWeightRules):
    """The format ``toy_release``: fused attention, LoRA, rows of task tokens behind the words."""

    def __init__(self, width, lora=True):
        self.width = width
        self.with_lora = lora

    @classmethod
    def from_published(cls, shapes):
        if "lm.embed.weight" not in shapes:
            return None
        rows, width = shapes["lm.embed.weight"]
        if rows != tiny.ROWS + len(TOKENS):
            raise CheckpointError(
                f"lm.embed.weight has {rows} words; the release has {tiny.ROWS + len(TOKENS)}"
            )
        return cls(width)

    @classmethod
    def from_model(cls, part):
        if part.width > 64:
            raise UsageError("the toy release has no width above 64")
        return cls(part.width, any(".lora_" in name for name, _ in part.named_parameters()))

    def options(self):
        return {"dropout": 0.1}

    def lora(self):
        return {"rank": 2, "alpha": 4.0, "dropout": 0.1}

    def prepare(self, source, backbone, llm=None):
        if not (source / SIZES).is_file():
            raise CheckpointError(f"{source} has no {SIZES}")
        (backbone / SIZES).write_text((source / SIZES).read_text())

    def write_files(self, published):
        (published / SIZES).write_text(json.dumps({"width": self.width}))

    def tensors(self, tokens):
        w = self.width
        words, rows = (0, tiny.ROWS), tiny.ROWS + len(TOKENS)
        table, output, adapter = [], [], []
        for task in tokens.tasks.values():
            ours = tokens.ids[task.trigger] - tokens.rows
            theirs = tiny.ROWS + TOKENS.index(task.trigger)
            table.append(Place("bridge.input.weight", (theirs, theirs + 1), (ours, ours + 1)))
            output.append(Place("bridge.output.weight", (theirs, theirs + 1), (ours, ours + 1)))
        why = "rows of slots and given tokens: learnt vectors stand in their places"
        yield Published(
            "lm.embed.weight", (rows, w), (Place("backbone.table.weight", words), *table), why
        )
        yield Published(
            "lm.head.base.weight", (rows, w), (Place("backbone.words.weight", words), *output), why
        )
        if self.with_lora:
            adapter = [Place("backbone.words.lora_B.default.weight", words)]
        yield Published("lm.head.lora_B", (rows, 2), tuple(adapter), why)
        yield self.adapter("lm.head.lora_A", (2, w), "words.lora_A")
        yield Published("lm.places.weight", (100, w), (Place("backbone.places.weight"),))
        for i in range(LAYERS):
            yield from self.layer(i)
        for theirs, ours, inner in (("vis", "vision", (4, 1)), ("up", "connector", (2 * w, 4))):
            yield Published(f"{theirs}.weight", inner, (Place(f"backbone.{ours}.weight"),))
            yield Published(f"{theirs}.bias", inner[:1], (Place(f"backbone.{ours}.bias"),))
        yield Published("old.proj", (3, 3), unused="the release never uses it")
        yield Published("ids", (1, 5), unused="counts", optional=True, dtype="int64")
        yield Published("box_ids", (2,), unused="counts", dtype="int64")

    def adapter(self, name, shape, ours):
        places = (Place(f"backbone.{ours}.default.weight"),) if self.with_lora else ()
        return Published(name, shape, places, "" if places else "merged")

    def layer(self, i):
        w, ours, theirs = self.width, f"backbone.layers.{i}", f"lm.layers.{i}"
        pieces = enumerate(("query", "key", "value"))
        fused = tuple(Place(f"{ours}.{n}.weight", (k * w, k * w + w)) for k, n in pieces)
        yield Published(f"{theirs}.qkv", (3 * w, w), fused)
        for name in ("query.bias", "value.bias", "inner.bias"):
            yield Published(f"{theirs}.{name}", (w,), (Place(f"{ours}.{name}"),))
        yield Published(f"{theirs}.inner.weight", (w, w), (Place(f"{ours}.inner.weight"),))
        for matrix, shape in (("A", (2, w)), ("B", (w, 2))):
            name = f"layers.{i}.query.lora_{matrix}"
            yield self.adapter(f"{theirs}.lora_{matrix}", shape, name)

    def added(self, tokens):
        return [
            AddedProduct(
                ours="bridge.output.weight",
                our_rows=(ours, ours + 1),
                left="lm.head.lora_B",
                rows=(theirs, theirs + 1),
                right="lm.head.lora_A",
                scale=SCALE,
            )
            for task in tokens.tasks.values()
            for ours in [tokens.ids[task.trigger] - tokens.rows]
            for theirs in [tiny.ROWS + TOKENS.index(task.trigger)]
        ]


class StageRules(tpokit.BackboneWeightRules):
    """The format ``toy_stage``: trained tensors only; the rest is a base LLM."""

    def __init__(self, width):
        self.width = width

    @classmethod
    def from_published(cls, shapes):
        if "stage.up.weight" not in shapes:
            return None
        if "llm::table.weight" not in shapes:
            raise CheckpointError("these are trained tensors only; give the base LLM by --llm")
        return cls(shapes["stage.up.weight"][0] // 2)

    @classmethod
    def from_model(cls, part):
        return cls(part.width)

    def options(self):
        return {}

    def lora(self):
        return None

    def prepare(self, source, backbone, llm=None):
        (backbone / SIZES).write_text((llm / SIZES).read_text())

    def tensors(self, tokens):
        with torch.device("meta"):
            empty = tiny.TinyBackbone(tiny.TinyOptions(width=self.width)).state_dict()
        for name, tensor in empty.items():
            start = "stage." if name.startswith(("vision", "connector")) else "llm::"
            theirs = name.replace("connector", "up")
            yield Published(f"{start}{theirs}", tuple(tensor.shape), (Place(f"backbone.{name}"),))


class HeadRules(tpokit.WeightRules):
    """A head whose layers go by their own names, and whose slots have a vector each."""

    def __init__(self, width, inner):
        self.width = width
        self.inner = inner

    @classmethod
    def from_published(cls, shapes):
        name = f"{cls.task}.inner.weight"
        return cls(shapes[name][1], shapes[name][0]) if name in shapes else None

    @classmethod
    def from_model(cls, part):
        made = cls(part.inner.in_features, part.inner.out_features)
        made.part = part
        return made

    def options(self):
        return {"inner": self.inner}

    def tensors(self, tokens):
        inner, w = self.inner, self.width
        shapes = {
            "inner.weight": (inner, w),
            "inner.bias": (inner,),
            "outer.weight": (1, inner),
            "outer.bias": (1,),
            **self.own(w),
        }
        for name, shape in shapes.items():
            yield Published(f"{self.task}.{name}", shape, (Place(f"heads.{self.task}.{name}"),))
        for slot in tokens.tasks[self.task].slots:
            row = tokens.ids[slot] - tokens.rows
            place = Place("bridge.input.weight", our_rows=(row, row + 1))
            yield Published(f"{slot[1:-1]}_token", (1, 1, w), (place,))


class PointRules(HeadRules):
    task = "point"

    def own(self, width):
        return {"giver.weight": (width, 1), "giver.bias": (width,)}


class MassRules(HeadRules):
    task = "mass"
    file = "extra.safetensors"

    def own(self, width):
        return {"offset": (1,)}

    def options(self):
        return {"inner": self.inner, "extra": self.file}

    def empty_options(self):
        return {"inner": self.inner}

    def tensors(self, tokens):
        yield from super().tensors(tokens)
        yield Published("mass.extra", (5, 2), (Place("extra", file=self.file),))

    def file_tensors(self, file):
        return self.part.extra


@tpokit.hookimpl
def tpokit_backbones():
    return [tpokit.BackboneSpec(name="toy", factory=":ToyBackbone", options=":ToyOptions")]


@tpokit.hookimpl
def tpokit_heads():
    return [
        tpokit.HeadSpec(
            name="point",
            task="point",
            terms=("error", "square"),
            factory="tests.core.training.tiny:PointHead",
            options="tests.core.training.tiny:TinyHeadOptions",
        ),
        tpokit.HeadSpec(
            name="toy_mass",
            task="mass",
            terms=("error",),
            factory=":ToyMass",
            options=":MassOptions",
        ),
    ]


@tpokit.hookimpl
def tpokit_weights():
    return [
        tpokit.WeightsSpec(name=name, format=form, of=of, plugin=plugin, factory=f":{factory}")
        for name, form, of, plugin, factory in (
            ("toy_backbone", "toy_release", "backbone", "toy", "ToyRules"),
            ("toy_trained", "toy_stage", "backbone", "toy", "StageRules"),
            ("toy_point", "toy_release", "head", "point", "PointRules"),
            ("toy_mass", "toy_release", "head", "toy_mass", "MassRules"),
        )
    ]


def registry(folder):
    """A registry file that names this file."""
    path = Path(folder) / "registry.yaml"
    path.write_text(f"version: 1\nplugins:\n  - path: {Path(__file__).resolve()}\n")
    return path


def write_table(folder, width=16):
    """Sizes beside published files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SIZES).write_text(json.dumps({"width": width}))


def save(tensors, path):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
