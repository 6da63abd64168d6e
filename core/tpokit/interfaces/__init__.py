"""What a plugin subclasses.

`TaskHead`, `Backbone` with its `Processor`, `Connector`, `DataSource`, `Metric`, `Drawing`,
`WeightRules`. Ours use nothing that is not here.
"""

from tpokit.interfaces.backbones import Backbone, LayerStack, Processor
from tpokit.interfaces.connectors import (
    Connector,
    ConnectorChoice,
    ConnectorHost,
    FeatureNeed,
    Instruction,
)
from tpokit.interfaces.heads import Host, TaskHead
from tpokit.interfaces.results import Drawing, Metric
from tpokit.interfaces.sources import DataSource
from tpokit.interfaces.weights import (
    OF_LLM,
    AddedProduct,
    BackboneWeightRules,
    Place,
    Published,
    Shape,
    Shapes,
    WeightRules,
)

__all__ = [
    "OF_LLM",
    "AddedProduct",
    "Backbone",
    "BackboneWeightRules",
    "Connector",
    "ConnectorChoice",
    "ConnectorHost",
    "DataSource",
    "Drawing",
    "FeatureNeed",
    "Host",
    "Instruction",
    "LayerStack",
    "Metric",
    "Place",
    "Processor",
    "Published",
    "Shape",
    "Shapes",
    "TaskHead",
    "WeightRules",
]
