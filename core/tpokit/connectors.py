"""Connectors that a recipe puts in place of a backbone's own: building, saving and naming them.

A backbone that is saved as a whole keeps such a connector beside its own files: ``connector.json``
says which it is, ``connector.safetensors`` holds its weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from tpokit.errors import CheckpointError
from tpokit.interfaces.connectors import Connector, ConnectorChoice, ConnectorHost

DESCRIPTION_FILE = "connector.json"
WEIGHTS_FILE = "connector.safetensors"


def build_connector(choice: ConnectorChoice, host: ConnectorHost, folder: Path) -> Connector:
    """The connector of a choice, with the weights that a folder has of it, else with fresh ones.

    Args:
        choice: Of the recipe; fresh weights come from torch's global generator.
        host: What it stands between.
        folder: Of the backbone's model.

    Raises:
        UsageError: The connector does not fit the backbone.
        CheckpointError: Its weights are broken.
    """
    connector = choice.build(host)
    if saved_description(folder) != choice.description:
        return connector
    path = folder / WEIGHTS_FILE
    try:
        load_model(connector, path)
    except (SafetensorError, OSError, RuntimeError) as cause:
        raise CheckpointError(f"{path} cannot be loaded: {cause}") from cause
    return connector


def saved_description(folder: Path) -> object:
    """What `save_connector` wrote of a connector into a folder; ``None``: there is none."""
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        return None
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise CheckpointError(f"{path} cannot be read: {cause}") from cause
    return found


def save_connector(connector: nn.Module, choice: ConnectorChoice, folder: Path) -> None:
    """Write a connector beside the model of a backbone; `build_connector` finds it there.

    Raises:
        CheckpointError: It cannot be written.
    """
    try:
        text = json.dumps(choice.description, indent=2) + "\n"
        (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
        save_model(connector, str(folder / WEIGHTS_FILE))
    except OSError as cause:
        raise CheckpointError(f"{folder} cannot be written: {cause}") from cause
