"""What the region plugin offers can be looked up, and listing it imports nothing heavy."""

import importlib
import subprocess
import sys

import pytest

import tpokit
import tpokit_region
from tpokit.interfaces import DataSource, Drawing, Metric, TaskHead

SPECS = [
    *tpokit_region.tpokit_heads(),
    *tpokit_region.tpokit_sources(),
    *tpokit_region.tpokit_metrics(),
    *tpokit_region.tpokit_drawings(),
]
BASES = {"head": TaskHead, "source": DataSource, "metric": Metric, "drawing": Drawing}


def resolve(name):
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{spec.name}")
def test_every_spec_names_what_it_says(spec):
    made = resolve(spec.factory)
    assert issubclass(made, BASES[spec.kind])
    assert spec.summary
    if spec.options is not None:
        assert made.Options is resolve(spec.options)
        assert issubclass(made.Options, tpokit.Options)
    if spec.kind in ("head", "metric", "drawing"):
        assert made.task == spec.task == "region"


def test_the_terms_of_the_head_and_of_its_weights_are_those_of_the_spec():
    (spec,) = tpokit_region.tpokit_heads()
    assert resolve(spec.factory).terms == spec.terms
    assert next(iter(spec.losses)) == "release"  # the default
    assert spec.losses == {"release": {"l1": 2.0, "giou": 0.2}, "paper": {"mse": 1.0}}
    assert all(set(weights) <= set(spec.terms) for weights in spec.losses.values())


def test_offers_and_options_do_not_import_torch():
    code = (
        "import sys, tpokit_region, tpokit_region.options\n"
        "tpokit_region.tpokit_heads()\n"
        "print([name for name in ('torch', 'PIL', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
