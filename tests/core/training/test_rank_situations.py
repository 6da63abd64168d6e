"""Whatever samples fall to which rank, the gradients are those of one process.

One process takes the micro-batches of both ranks one after another: some losses of the temporal
head compare the samples of a micro-batch with each other.
"""

import pytest
from safetensors.torch import load_file

from tests.core.training import rank_situations
from tests.core.training.rank_situations import SITUATIONS
from tests.forked import forked, load_deepspeed

ENGINES = ("ddp", "zero0", "zero1", "zero2", "zero3")
NOISE = 1e-7
"""Of the largest gradient of a part: some weights, as the bias of keys, have one of zero but for
rounding."""


def part_of(name):
    kind, first, *rest = name.split(".")
    return first if kind == "heads" else kind if kind == "bridge" else rest[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("situations")
    rank_situations.write_recipe(found)
    return found


@pytest.fixture(scope="module")
def alone(folder):
    """One process; and samples are encoded before others become copies of this one."""
    return rank_situations.gradients(folder, "plain")


@pytest.fixture(scope="module")
def together(folder, alone):
    load_deepspeed()
    ran = forked(rank_situations.__file__, folder, *ENGINES, processes=2, timeout_s=280)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return {engine: load_file(folder / f"{engine}.safetensors") for engine in ENGINES}


def largest_of_parts(gradients, situation):
    largest = {}
    for name, gradient in gradients.items():
        where, _, weight = name.partition("/")
        if where == situation:
            part = part_of(weight)
            largest[part] = max(largest.get(part, 0.0), float(gradient.norm()))
    return largest


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_of_two_ranks_are_those_of_one_process(alone, together, engine, situation):
    largest = largest_of_parts(alone, situation)
    expected = {name: g for name, g in alone.items() if name.startswith(f"{situation}/")}
    assert {n for n in together[engine] if n.startswith(f"{situation}/")} == set(expected)
    for name, gradient in expected.items():
        wrong = float((together[engine][name] - gradient).norm())
        noise = NOISE * largest[part_of(name.partition("/")[2])]
        assert wrong <= 1e-5 * float(gradient.norm()) + noise, name


def test_what_is_called_learns_and_what_is_not_does_not(alone):
    for situation in SITUATIONS:
        largest = largest_of_parts(alone, situation)
        called = {
            "region": any("boxes" in name for name in SITUATIONS[situation].samples),
            "temporal": any("moment" in name for name in SITUATIONS[situation].samples),
        }
        assert {part: largest[part] > 0 for part in called} == called | (
            {"region": True} if "given" in SITUATIONS[situation].samples else {}
        )
        assert largest["language_model"] > 0
