"""Our own annotation format: conversations with media, targets and given values of any task."""

from __future__ import annotations

from collections.abc import Sequence

import tpokit


@tpokit.hookimpl
def tpokit_sources() -> Sequence[tpokit.SourceSpec]:
    """The data source."""
    return [
        tpokit.SourceSpec(
            name="jsonl",
            factory="tpokit_jsonl.source:JsonlSource",
            options="tpokit_jsonl.options:JsonlOptions",
            summary="conversations with media and targets of any task, one JSON object a line",
        )
    ]
