"""Every hook of tpokit, in the order in which a run calls them.

All of them offer: they are called once, when names are first looked up, and return data
(`tpokit.specs`). No hook sits inside a training step. A plugin implements those it needs and leaves
out the others::

    import tpokit

    @tpokit.hookimpl
    def tpokit_heads():
        return [tpokit.HeadSpec(name="depth", task="depth", terms=("l1",),
        factory="my_depth.head:DepthHead")]

and is found by an entry point of the group ``tpokit`` or by ``path:`` in a registry file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from tpokit.specs import (
        BackboneSpec,
        ConnectorSpec,
        DrawingSpec,
        HeadSpec,
        MetricSpec,
        SourceSpec,
        WeightsSpec,
    )

hookspec = pluggy.HookspecMarker("tpokit")
hookimpl = pluggy.HookimplMarker("tpokit")


@hookspec
def tpokit_backbones() -> Sequence[BackboneSpec]:
    """Offer multimodal LLMs to the ``backbone:`` section of recipes.

    :return: One spec for each class of models; which weights it loads is an option of the recipe.

    Used by ``tpokit_llava_onevision`` and ``tpokit_videochat2``.
    """
    raise NotImplementedError


@hookspec
def tpokit_connectors() -> Sequence[ConnectorSpec]:
    """Offer connectors to ``backbone.connector`` of recipes.

    :return: Specs; a connector works with every backbone whose spec says ``connectors=True``.

    Used by ``tpokit_videochat2``.
    """
    raise NotImplementedError


@hookspec
def tpokit_heads() -> Sequence[HeadSpec]:
    """Offer task heads to the ``heads:`` section of recipes.

    :return: Specs, not instances: building a head needs the width of the backbone. Two heads may do
        one task (a recipe chooses); two with one name are shown as a clash, and neither can be used
        until one is blocked.

    Used by ``tpokit_region``.
    """
    raise NotImplementedError


@hookspec
def tpokit_sources() -> Sequence[SourceSpec]:
    """Offer data sources to the ``data:`` section of recipes.

    :return: One spec for each annotation format or generator. A source names tasks by marks
        (``<region>``) and so works with every head of that task.

    Used by ``tpokit_region`` and ``tpokit_shapes_world``.
    """
    raise NotImplementedError


@hookspec
def tpokit_metrics() -> Sequence[MetricSpec]:
    """Offer measures of the results of a task.

    :return: Specs; evaluation uses every metric whose task a recipe's heads do.

    Used by ``tpokit_region``.
    """
    raise NotImplementedError


@hookspec
def tpokit_drawings() -> Sequence[DrawingSpec]:
    """Offer ways to draw the results of a task over its medium.

    :return: Specs; ``tpokit predict`` uses the one of each task that was called.

    Used by ``tpokit_region``.
    """
    raise NotImplementedError


@hookspec
def tpokit_weights() -> Sequence[WeightsSpec]:
    """Offer rules for published weights to ``tpokit weights import`` and ``export``.

    :return: Specs, one for each format and each backbone or head that has a part in it.

    Used by ``tpokit_videochat2`` and ``tpokit_region``.
    """
    raise NotImplementedError
