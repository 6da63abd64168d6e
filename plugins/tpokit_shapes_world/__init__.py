"""The shapes world: a procedural data set with exact truth, and a tiny pretrained LLaVA-OneVision.

It is tpokit's embedded example: everything that a published set of images and videos with boxes,
masks, moments and conversations offers, from a seed, on a laptop.
"""

from __future__ import annotations

from collections.abc import Sequence

import tpokit


@tpokit.hookimpl
def tpokit_sources() -> Sequence[tpokit.SourceSpec]:
    """The data source."""
    return [
        tpokit.SourceSpec(
            name="shapes_world",
            factory="tpokit_shapes_world.source:ShapesWorld",
            options="tpokit_shapes_world.options:ShapesWorldOptions",
            summary="procedural scenes: conversations, boxes, masks, moments; real PNG, mp4 files",
        )
    ]
