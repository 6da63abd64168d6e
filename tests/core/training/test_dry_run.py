"""`tpokit train --dry-run`: sizes at full size, two small steps of each stage, nothing written."""

import pytest

from tests.core.test_cli import run
from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tests.core.training.test_bad_sample_runs import bad_recipe
from tpokit import DataError, UsageError
from tpokit.model import build_model
from tpokit.training.arguments import Split
from tpokit.training.dry_run import look_ahead, try_stages


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dry")
    options = {
        "points": {"kinds": ["point", "given"], "count": 5},
        "masses": {"kinds": ["mass"]},
        "seen": {"kinds": ["talk", "seen"], "image": "picture.png"},
    }
    return write_recipe(
        folder,
        data={name: {"source": "lines", "options": own} for name, own in options.items()},
        stages=[
            stage("assign", {"llm": "lora", "bridge": "full"}, mix={"points": 1.0}),
            stage(
                "heads",
                {"llm": "full", "bridge": "full", "point": "full", "mass": "full"},
                mix={"points": 0.9, "masses": 0.01, "seen": 0.09},
                steps=1000,
            ),
        ],
        run={"device_batch": 3, "engine": "zero2", "workers": 2, "save_every": 1},
    )


def test_the_look_ahead_tells_lengths_parts_and_memory(path):
    recipe, plugins = read_recipe(path)
    found = look_ahead(recipe, plugins)
    _, points, seen = found.lengths
    assert (points.entry, points.samples, points.looked_at) == ("points", 5, 5)
    assert (seen.samples, seen.looked_at, seen.pixels) == (40, 8, 16)
    assert 0 < points.shortest <= points.median <= points.longest
    assert found.worst[1].looked_at.entry == "seen"
    assert found.worst[0].memory is None  # this backbone does not say what its layers are
    parts = {row.part: row.parameters for row in found.stages[1].parts}
    real = build_model(recipe, plugins)
    assert parts["mass"] == sum(p.numel() for p in real.head("mass").parameters())
    states = {(state.engine, state.devices): state for state in found.stages[1].states}
    assert set(states) == {(f"zero{z}", n) for z in range(4) for n in (1, 8, 64)}
    assert states["zero2", 64].gradients == states["zero0", 1].gradients / 64
    assert found.stages[1].load.samples == 3


def test_every_stage_does_two_steps_over_all_its_entries(path):
    recipe, plugins = read_recipe(path)
    assign, heads = try_stages(recipe, plugins)
    assert [row["step"] for row in assign.rows] == [row["step"] for row in heads.rows] == [1, 2]
    for row in heads.rows:  # an entry with a share of 0.01, too
        assert row["calls.mass"] == 1
        assert row["calls.point"] >= 1
    assert not recipe.output.exists()


def test_the_command_shows_it_and_writes_nothing(path, tmp_path, capsys):
    before = sorted(path.parent.iterdir())
    code, out, err = run(capsys, "train", str(path), "--dry-run", "--stage", "heads")
    assert (code, err) == (0, "")
    lines = [text.rstrip() for text in out.splitlines()]
    assert lines[0] == "what training reads first"
    assert "stage heads at full size" in lines
    assert "stage assign at full size" not in lines
    zero3 = [text.split() for text in lines if text.startswith("zero3")]
    assert [(row[1], row[-2:]) for row in zero3] == [("8", ["-", "-"]), ("64", ["-", "-"])]
    assert any(text.startswith("stage heads at small size, step 2: loss ") for text in lines)
    assert lines[-1] == "everything runs; nothing was written"
    assert sorted(path.parent.iterdir()) == before


def test_what_writes_goes_with_no_dry_run(path, capsys):
    for option in ("--resume", "--overwrite"):
        code, out, err = run(capsys, "train", str(path), "--dry-run", option)
        assert (code, out) == (2, "")
        assert err == ("UsageError: --dry-run writes nothing; leave out --resume and --overwrite\n")


def test_a_bad_sample_stops_it_whatever_the_limit(tmp_path):
    opened = read_recipe(bad_recipe(tmp_path, {"unreadable": [i for i in range(30) if i % 5]}))
    with pytest.raises(DataError, match=r"line \d+ is no JSON"):
        look_ahead(*opened)
    with pytest.raises(DataError, match=r"line \d+ is no JSON"):
        list(try_stages(*opened))


def test_it_is_one_process(path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--dry-run is one process; start it without torchrun"):
        look_ahead(*read_recipe(path))


def test_blocks_of_one_task_are_what_all_processes_read_at_once(path):
    recipe, _ = read_recipe(path)
    split = Split(piece=2, world=3, pieces=4)
    assert split.block(recipe) == 1
    run = recipe.run.model_copy(update={"schedule": "same_task"})
    assert split.block(recipe.model_copy(update={"run": run})) == 6
