"""The connector that a VideoChat2 model has of its own."""

from __future__ import annotations

from pydantic import ValidationError

from tpokit.errors import CheckpointError
from tpokit.interfaces import Connector, ConnectorChoice
from tpokit.options import Options
from tpokit_videochat2.config import CONFIG_FILE, ConnectorEntry
from tpokit_videochat2.connectors.mlp import MlpConnector
from tpokit_videochat2.connectors.options import MlpOptions, PoolAdapterOptions, QFormerOptions
from tpokit_videochat2.connectors.pool_adapter import PoolAdapter
from tpokit_videochat2.connectors.qformer import QFormerConnector

_OWN: dict[str, tuple[type[Connector], type[Options]]] = {
    "qformer": (QFormerConnector, QFormerOptions),
    "mlp": (MlpConnector, MlpOptions),
    "pool_adapter": (PoolAdapter, PoolAdapterOptions),
}


def own_connector(entry: ConnectorEntry) -> ConnectorChoice:
    """What the configuration of a model names.

    Raises:
        CheckpointError: Its options are wrong.
    """
    factory, options = _OWN[entry.plugin]
    try:
        return ConnectorChoice(factory, options.model_validate(entry.options))
    except ValidationError as cause:
        first = cause.errors()[0]
        place = ".".join(str(step) for step in ("connector.options", *first["loc"]))
        raise CheckpointError(f"{CONFIG_FILE}: {place}: {first['msg']}") from cause
