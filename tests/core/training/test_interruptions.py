"""Runs that are killed, stopped by a signal, or lose a process or the disk."""

import random
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tests.core.training.test_stages import files, rows
from tests.forked import forked
from tpokit import CheckpointError
from tpokit.checkpoints import store
from tpokit.training import callbacks, stages, trainer
from tpokit.training.json_lines import append_rows
from tpokit.training.stages import train

KILLED = Path(__file__).with_name("killed_anywhere.py")
SIGNALLED = Path(__file__).with_name("signalled.py")
BAD_LINES = Path(__file__).with_name("bad_lines.py")
HEADS = {"llm": "lora", "bridge": "full", "point": "full", "mass": "full"}
KILLS = (
    *("score", "step", "save", "row", "step", "save", "time", "score", "step", "stage"),
    *("step", "row", "save", "time", "score", "step", "save", "row", "step", "stage"),
)
NUMBERS = {"step": (8, 48), "save": (1, 60), "stage": (1, 4), "score": (1, 4), "row": (1, 6)}


def long_recipe(folder, **run):
    """Sixty small steps with dropout, bad samples and losses that are not finite; with checkpoints,
    and scores before, during and after training.
    """
    options = {"kinds": ["talk", "point", "mass", "given", "seen"], "image": "picture.png"}
    bad = {"unreadable": [3, 24], "blind": [27, 29, 10]}
    path = write_recipe(
        folder,
        data={
            "mixed": {"source": "bad_lines", "options": {"count": 30, **options, **bad}},
            "scored": {"source": "lines", "options": {**options, "count": 3}},
        },
        heads={
            "point": {"plugin": "point", "options": {"poison": 0.55}},
            "mass": {"plugin": "mass"},
        },
        stages=[
            stage("assign", {"llm": "lora", "bridge": "full"}, steps=20, samples_per_step=2),
            stage("heads", HEADS, steps=40, samples_per_step=2),
        ],
        evaluate={"data": ["scored"], "samples": 2, "max_new_tokens": 2, "every": 15},
        run={"bad_samples": 1.0, "skipped_steps": 5, "log_every": 2, "save_every": 2, **run},
    )
    registry = yaml.safe_load((folder / "registry.yaml").read_text())
    registry["plugins"].append({"path": str(BAD_LINES)})
    (folder / "registry.yaml").write_text(yaml.safe_dump(registry))
    return path


def written(folder):
    """All files of a run but those that hold times; a recipe holds its own place."""
    found = {path.relative_to(folder): content for path, content in files(folder).items()}
    return {
        path: content
        for path, content in found.items()
        if path.name not in {"log.jsonl", "recipe.yaml"}
    }


@pytest.fixture(autouse=True, scope="module")
def _no_curves():
    """They take longer than the runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "loss_curves", lambda *_: None)
        yield


def test_killed_twenty_times_anywhere_a_run_ends_as_if_it_had_never_been(tmp_path):
    """SIGKILL in steps, while checkpoints and stages are saved, and in evaluation."""
    path = long_recipe(tmp_path)
    unbroken, broken, note = (tmp_path / name for name in ("unbroken", "broken", "note"))
    train(*read_recipe(path, f"output={unbroken}"))
    draw = random.Random(7)
    for number, kind in enumerate(KILLS):
        moment = draw.randint(*NUMBERS[kind]) if kind in NUMBERS else 0.05 + 0.15 * draw.random()
        more = ["run.workers=1"] if number % 7 == 3 else []
        killed = forked(KILLED, note, kind, moment, path, f"output={broken}", *more)
        assert killed.returncode == -9, killed.stderr[-3000:]
    places = note.read_text().splitlines()
    assert len(places) == len(KILLS) == 20
    train(*read_recipe(path, f"output={broken}"), resume=True)
    assert rows(broken) == rows(unbroken)
    assert written(broken) == written(unbroken)


def short_recipe(folder, **changes):
    """One stage of four steps without dropout, which no number of ranks changes."""
    stages = [stage("heads", HEADS, steps=4, warmup=0.0)]
    plain = {"backbone": {"plugin": "tiny"}, "lora": {"rank": 2, "alpha": 4}, **changes}
    return write_recipe(folder, stages=stages, **plain)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return train(*read_recipe(short_recipe(tmp_path_factory.mktemp("unbroken"))))


def assert_alike(found, expected):
    for path in sorted(expected.glob("heads/*.safetensors")):
        tensors = load_file(found / "heads" / path.name)
        for name, tensor in load_file(path).items():
            torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_signal_saves_stops_and_spares_the_data_workers(tmp_path, unbroken, name):
    path = short_recipe(tmp_path, run={"workers": 1})
    ended = forked(SIGNALLED, name, 1, 0, "step", "train", path)
    assert ended.returncode == 128 + signal.Signals[name], ended.stderr[-3000:]
    checkpoints = tmp_path / "run" / "heads.checkpoints"
    assert ended.stderr == (
        f"Stopped: {name}: stopped after step 3 of stage heads, {checkpoints} has it; go on with "
        "--resume auto\n"
    )
    assert [path.name for path in checkpoints.iterdir()] == ["step-3"]
    train(*read_recipe(path), resume=True)
    assert rows(tmp_path / "run") == rows(unbroken)


def test_ranks_stop_together_for_one_of_them_and_another_number_goes_on(tmp_path, unbroken, capsys):
    path = short_recipe(tmp_path)
    arguments = ("train", path, "--set", "run.engine=ddp")
    ended = forked(SIGNALLED, "SIGTERM", 1, 1, "step", *arguments, processes=2)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr[-3000:]
    assert ended.stderr.count("Stopped: SIGTERM: stopped after step 3 of stage heads") == 1
    train(*read_recipe(path), resume=True)
    place = tmp_path / "run" / "heads.checkpoints" / "step-3"
    assert (
        f"stage heads goes on from {place}: loaded bridge, llm, mass, point, optimizer, schedule; "
        "fresh generators (dropout differs: 2 ranks before, 1 now)\n" in capsys.readouterr().out
    )
    assert_alike(tmp_path / "run", unbroken)


def test_a_second_signal_kills_at_once(tmp_path):
    ended = forked(SIGNALLED, "SIGTERM", 2, 0, "step", "train", short_recipe(tmp_path))
    assert ended.returncode == -signal.SIGTERM
    assert not list((tmp_path / "run" / "heads.checkpoints").iterdir())


def test_a_signal_while_the_model_is_scored_stops_without_saving(tmp_path):
    data = {"mixed": {"source": "lines", "options": {"kinds": ["talk", "point", "mass"]}}}
    path = short_recipe(tmp_path, data=data, evaluate={"data": ["mixed"], "samples": 1})
    ended = forked(SIGNALLED, "SIGTERM", 1, 0, "score", "train", path)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr[-3000:]
    told = "Stopped: SIGTERM: nothing that is done was lost; go on with --resume auto\n"
    assert ended.stderr == told
    assert not (tmp_path / "run").exists()


def test_a_process_that_is_killed_stops_the_others_with_one_line(tmp_path):
    arguments = ("train", short_recipe(tmp_path), "--set", "run.engine=ddp")
    ended = forked(SIGNALLED, "SIGKILL", 1, 1, "step", *arguments, processes=2)
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if "rank 0" in line]
    assert len(said) == 1
    assert said[0].startswith("TrainingError: rank 0 waited for another process in vain (")
    assert said[0].endswith("what was saved is untouched, go on with --resume")
    assert "Traceback" not in ended.stderr


@contextmanager
def full_disk(size):
    """The kernel refuses to let a file grow beyond a size in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("place", ["log.jsonl", "step-3", "heads"])
def test_a_full_disk_stops_with_one_line_and_the_run_goes_on(
    tmp_path, unbroken, monkeypatch, place
):
    path = short_recipe(tmp_path, run={"save_every": 1})
    run = tmp_path / "run"

    def append(log, rows):
        size = log.stat().st_size + 20 if place == log.name and log.exists() else 10**9
        with full_disk(size):
            append_rows(log, rows)

    def filled(work, name, size):
        def fill(*arguments):
            found = [part for part in arguments if name in str(part)]
            with full_disk(size if found and place == name else 10**9):
                return work(*arguments)

        return fill

    monkeypatch.setattr(callbacks, "append_rows", append)
    monkeypatch.setattr(trainer, "save_file", filled(trainer.save_file, "step-3", 100))
    monkeypatch.setattr(store, "save_file", filled(store.save_file, "heads", 100))
    with pytest.raises(CheckpointError, match=r"cannot (save|write) .*go on .*--resume") as told:
        train(*read_recipe(path))
    assert place in str(told.value)
    assert not list(run.rglob("*.partial"))
    left = sorted(place.name for place in (run / "heads.checkpoints").iterdir())
    assert left == {"log.jsonl": ["step-1"], "step-3": ["step-1", "step-2"]}.get(
        place, ["step-2", "step-3"]
    )
    monkeypatch.undo()
    train(*read_recipe(path), resume=True)
    assert rows(run) == rows(unbroken)
    assert_alike(run, unbroken)
