"""What a plugin subclasses.

`TaskHead`, `Backbone` with its `Processor`, `DataSource`, `Metric`, `Drawing`. Ours use nothing
that is not here.
"""

from tpokit.interfaces.backbones import Backbone, Processor
from tpokit.interfaces.heads import Host, TaskHead
from tpokit.interfaces.results import Drawing, Metric
from tpokit.interfaces.sources import DataSource

__all__ = ["Backbone", "DataSource", "Drawing", "Host", "Metric", "Processor", "TaskHead"]
