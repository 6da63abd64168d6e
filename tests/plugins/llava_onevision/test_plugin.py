"""How the plugin shows itself."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

import tpokit_llava_onevision
from tpokit_llava_onevision.options import LlavaOnevisionOptions


def test_it_offers_one_backbone_without_importing_torch():
    program = (
        "import sys, importlib, tpokit_llava_onevision as plugin\n"
        "spec, = plugin.tpokit_backbones()\n"
        "module, _, name = spec.options.partition(':')\n"
        "getattr(importlib.import_module(module), name)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "print(spec.name)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("llava_onevision", 0), done.stderr


def test_its_names_can_be_imported():
    (spec,) = tpokit_llava_onevision.tpokit_backbones()
    module, _, name = spec.factory.partition(":")
    assert getattr(__import__(module, fromlist=[name]), name).Options is LlavaOnevisionOptions


@pytest.mark.parametrize(
    "wrong",
    [{"model": ""}, {"frames": 0}, {"crops": "many"}, {"dtype": "int8"}, {"weigths": "random"}],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        LlavaOnevisionOptions(**{"model": "tiny", **wrong})
