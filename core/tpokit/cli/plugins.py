"""``tpokit plugins``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plugins(
    registry: Annotated[
        Path | None, typer.Option(help="A registry file with more plugins and a block list.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List what is installed, who provides it, and whether it can be used."""
    from tpokit.plugins import Plugins

    rows = Plugins.load(registry).rows()
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    from tpokit.reporting.console import plugin_table

    plugin_table(rows)
