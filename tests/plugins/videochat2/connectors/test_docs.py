"""The reference page of the connectors says what is there."""

import re
from pathlib import Path

import pytest
import yaml

from tpokit_videochat2.connectors.options import MlpOptions, PoolAdapterOptions, QFormerOptions

PAGE = (Path(__file__).parents[4] / "docs" / "connectors.md").read_text()
OPTIONS = {"qformer": QFormerOptions, "mlp": MlpOptions, "pool_adapter": PoolAdapterOptions}


def section(name):
    return PAGE.split(f"\n## `{name}`\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_stands_in_the_table_of_its_connector(name):
    cells = re.findall(r"^\| (`.*?) \|", section(name), re.MULTILINE)
    documented = {option for cell in cells for option in re.findall(r"`(\w+)`", cell)}
    assert documented | {"vision_layers"} == set(OPTIONS[name].model_fields)


def test_every_connector_of_the_page_has_options_that_can_be_meant():
    shown = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    connectors = [block["backbone"]["connector"] for block in shown]
    assert {connector["plugin"] for connector in connectors} == set(OPTIONS)
    for connector in connectors:
        OPTIONS[connector["plugin"]].model_validate(connector.get("options", {}))
