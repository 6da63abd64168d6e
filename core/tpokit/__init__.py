"""tpokit: Task Preference Optimization for multimodal LLMs with vision task heads.

The public names of the core. Importing this package does not import torch; names that need it load
when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tpokit.answers import Answer, Box, Call, NoResult
from tpokit.batch import Batch
from tpokit.errors import (
    CheckpointError,
    DataError,
    PluginError,
    Problem,
    RecipeError,
    TpokitError,
    TrainingError,
    UsageError,
)
from tpokit.hookspecs import hookimpl
from tpokit.specs import (
    BackboneSpec,
    ConnectorSpec,
    DrawingSpec,
    HeadSpec,
    MetricSpec,
    SourceSpec,
    WeightsSpec,
)
from tpokit.tokens import TaskTokens, TokenTable
from tpokit.types import (
    Context,
    ContextNeed,
    Example,
    Frames,
    LossTerm,
    Media,
    MediaInfo,
    MediaNeed,
    Sample,
    Seen,
    Turn,
    View,
    Words,
)

if TYPE_CHECKING:
    from tpokit.checkpoints.store import load_model
    from tpokit.inference.predictor import Predictor, load
    from tpokit.interfaces import (
        AddedProduct,
        Backbone,
        BackboneWeightRules,
        Connector,
        ConnectorChoice,
        ConnectorHost,
        DataSource,
        Drawing,
        FeatureNeed,
        Host,
        Instruction,
        Metric,
        Place,
        Processor,
        Published,
        TaskHead,
        WeightRules,
    )
    from tpokit.model import TpoModel
    from tpokit.options import NoOptions, Options
    from tpokit.recipe import Recipe, load_recipe

__version__ = "0.1.0"

_LAZY = {
    "AddedProduct": "tpokit.interfaces",
    "Backbone": "tpokit.interfaces",
    "BackboneWeightRules": "tpokit.interfaces",
    "Connector": "tpokit.interfaces",
    "ConnectorChoice": "tpokit.interfaces",
    "ConnectorHost": "tpokit.interfaces",
    "DataSource": "tpokit.interfaces",
    "Drawing": "tpokit.interfaces",
    "FeatureNeed": "tpokit.interfaces",
    "Host": "tpokit.interfaces",
    "Instruction": "tpokit.interfaces",
    "Metric": "tpokit.interfaces",
    "NoOptions": "tpokit.options",
    "Options": "tpokit.options",
    "Place": "tpokit.interfaces",
    "Predictor": "tpokit.inference.predictor",
    "Processor": "tpokit.interfaces",
    "Published": "tpokit.interfaces",
    "Recipe": "tpokit.recipe",
    "TaskHead": "tpokit.interfaces",
    "TpoModel": "tpokit.model",
    "WeightRules": "tpokit.interfaces",
    "load": "tpokit.inference.predictor",
    "load_model": "tpokit.checkpoints.store",
    "load_recipe": "tpokit.recipe",
}

__all__ = [
    "AddedProduct",
    "Answer",
    "Backbone",
    "BackboneSpec",
    "BackboneWeightRules",
    "Batch",
    "Box",
    "Call",
    "CheckpointError",
    "Connector",
    "ConnectorChoice",
    "ConnectorHost",
    "ConnectorSpec",
    "Context",
    "ContextNeed",
    "DataError",
    "DataSource",
    "Drawing",
    "DrawingSpec",
    "Example",
    "FeatureNeed",
    "Frames",
    "HeadSpec",
    "Host",
    "Instruction",
    "LossTerm",
    "Media",
    "MediaInfo",
    "MediaNeed",
    "Metric",
    "MetricSpec",
    "NoOptions",
    "NoResult",
    "Options",
    "Place",
    "PluginError",
    "Predictor",
    "Problem",
    "Processor",
    "Published",
    "Recipe",
    "RecipeError",
    "Sample",
    "Seen",
    "SourceSpec",
    "TaskHead",
    "TaskTokens",
    "TokenTable",
    "TpoModel",
    "TpokitError",
    "TrainingError",
    "Turn",
    "UsageError",
    "View",
    "WeightRules",
    "WeightsSpec",
    "Words",
    "hookimpl",
    "load",
    "load_model",
    "load_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tpokit' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
