"""Benches run, and what they compare is equal; how fast is for a person to read."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.mark.parametrize(
    "name", ["bridge_overhead", "label_logits", "mask_tracking", "video_reading"]
)
def test_a_bench_runs_at_small_size_and_prints_its_ratio(name):
    done = subprocess.run(
        [sys.executable, BENCH / f"{name}.py", "--quick"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "goal" in done.stdout
