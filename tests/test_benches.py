"""Benches run, and what they compare is equal; how fast is for a person to read."""

import runpy
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.mark.parametrize(
    "name",
    [
        "arrangement",
        "batch_transport",
        "bridge_overhead",
        "gpu_step",
        "label_logits",
        "mask_tracking",
        "mask_training",
        "mixture_scale",
        "throughput",
        "video_reading",
        "visual_path",
    ],
)
def test_a_bench_runs_at_small_size_and_prints_its_ratio(name, monkeypatch, capsys):
    """As a script, but in this process: importing the libraries would take most of the time."""
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick"])
    runpy.run_path(str(BENCH / f"{name}.py"), run_name="__main__")
    assert "goal" in capsys.readouterr().out
