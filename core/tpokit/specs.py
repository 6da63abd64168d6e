"""What a plugin says of the things it offers: plain data, so that listing and checking import
nothing heavy.

``factory`` and ``options`` are import strings (``package.module:Name``), resolved when a run uses
the thing. Modules named by ``options`` must not import torch: ``tpokit recipe check`` loads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

API = 1
"""Version of the contracts; a plugin made for another one is refused with both numbers."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Common to everything that a plugin offers.

    Attributes:
        name: What a recipe writes, ``[a-z][a-z0-9_]*``; unique within its kind.
        factory: Import string of the class.
        options: Import string of its `tpokit.Options` model; ``None`` if it takes no options.
        summary: One line for listings.
        requires: Distributions it needs besides those of its own package, such as ``scipy>=1.11``.
        install: What to type when one of them is missing.
        api: Version of the contract it was written for.
    """

    kind: ClassVar[str]

    name: str
    factory: str
    options: str | None = None
    summary: str = ""
    requires: tuple[str, ...] = ()
    install: str = ""
    api: int = API


@dataclass(frozen=True, kw_only=True)
class HeadSpec(Spec):
    """A `tpokit.TaskHead`.

    Attributes:
        task: The task it does; a recipe has at most one head for a task.
        terms: Names of its loss terms, so that a recipe's weights are checked without torch.
        losses: Named sets of weights, such as ``{"release": {"l1": 2.0, "giou": 0.2}}``; the first
            is the default.
    """

    kind: ClassVar[str] = "head"

    task: str
    terms: tuple[str, ...]
    losses: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BackboneSpec(Spec):
    """A `tpokit.Backbone`.

    Attributes:
        connectors: Whether a recipe may put another connector in place of its own.
    """

    kind: ClassVar[str] = "backbone"

    connectors: bool = False


@dataclass(frozen=True, kw_only=True)
class ConnectorSpec(Spec):
    """A `tpokit.Connector`."""

    kind: ClassVar[str] = "connector"


@dataclass(frozen=True, kw_only=True)
class SourceSpec(Spec):
    """A `tpokit.DataSource`."""

    kind: ClassVar[str] = "source"


@dataclass(frozen=True, kw_only=True)
class MetricSpec(Spec):
    """A `tpokit.Metric`.

    Attributes:
        task: The task whose results it scores; evaluation uses every metric of the tasks of a
            recipe.
    """

    kind: ClassVar[str] = "metric"

    task: str


@dataclass(frozen=True, kw_only=True)
class DrawingSpec(Spec):
    """A `tpokit.Drawing`.

    Attributes:
        task: The task whose results it draws.
    """

    kind: ClassVar[str] = "drawing"

    task: str


@dataclass(frozen=True, kw_only=True)
class WeightsSpec(Spec):
    """A `tpokit.WeightRules`: how weights that somebody published become those of a plugin.

    Attributes:
        format: How the whole model is published, such as ``videochat_tpo``; shared by the rules of
            all plugins that have a part in it.
        of: ``backbone`` or ``head``.
        plugin: Name of that backbone or head.
    """

    kind: ClassVar[str] = "weights"

    format: str
    of: str
    plugin: str
