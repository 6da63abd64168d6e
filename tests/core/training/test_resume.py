"""Where a run goes on, and with what."""

from pathlib import Path

import pytest
import torch

from tests.core.training.small_runs import read_recipe, stage, write_recipe
from tests.core.training.test_interruptions import HEADS, assert_alike, full_disk, short_recipe
from tests.core.training.test_stages import rows
from tests.forked import forked, load_deepspeed
from tpokit import CheckpointError, UsageError
from tpokit.training import stages, trainer
from tpokit.training.json_lines import append_rows, read_rows
from tpokit.training.meter import TermMeter
from tpokit.training.ranks import Ranks
from tpokit.training.resume import ResumePoint, StageCheckpoints
from tpokit.training.run_folder import RunFolder
from tpokit.training.stages import train
from tpokit.types import LossTerm

ALONE = Ranks(0, 1, False)
ZERO = ("zero2", "zero3")


def checkpoint(output, name, step):
    with StageCheckpoints(output, name, ALONE).writing(step) as folder:
        (folder / "something").write_text("x")
    return output / f"{name}.checkpoints" / f"step-{step}"


@pytest.fixture(scope="module", autouse=True)
def _no_curves():
    """They take longer than the runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "loss_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return train(*read_recipe(short_recipe(tmp_path_factory.mktemp("unbroken"))))


@pytest.fixture
def stopped(tmp_path):
    """A run that could not save its third step."""
    path = short_recipe(tmp_path, run={"save_every": 1})
    whole_save = trainer.save_file

    def save(tensors, place):
        with full_disk(100 if "step-3" in str(place) else 10**9):
            whole_save(tensors, place)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(CheckpointError):
        patch.setattr(trainer, "save_file", save)
        train(*read_recipe(path))
    return path


def test_a_run_goes_back_to_a_given_checkpoint_and_says_what_is_done_again(
    tmp_path, stopped, unbroken, capsys
):
    run = tmp_path / "run"
    append_rows(run / "skipped_steps.jsonl", [{"stage": "heads", "step": 2}])
    train(*read_recipe(stopped), resume=run / "heads.checkpoints" / "step-1")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == ("going back to step 1 of stage heads; done again: heads.checkpoints/step-2")
    assert said[1].startswith(f"stage heads goes on from {run}/heads.checkpoints/step-1: loaded")
    assert rows(run) == rows(unbroken)
    assert_alike(run, unbroken)
    assert not (run / "skipped_steps.jsonl").exists()


def test_a_run_in_another_folder_goes_on_there(tmp_path, stopped, unbroken):
    moved = tmp_path / "elsewhere"
    (tmp_path / "run").rename(moved)
    assert train(*read_recipe(stopped), resume=moved) == moved
    assert not (tmp_path / "run").exists()
    assert rows(moved) == rows(unbroken)


def test_auto_starts_a_run_that_is_not_there_and_goes_on_with_one_that_is(tmp_path, capsys):
    path = short_recipe(tmp_path)
    train(*read_recipe(path), resume="auto")
    capsys.readouterr()
    train(*read_recipe(path), resume="auto")
    assert capsys.readouterr().out == "stage heads is done already\n"


def test_what_arranges_steps_in_another_way_may_differ_and_is_told(tmp_path, stopped, capsys):
    path = ("run.device_batch=1", "run.gradient_checkpointing=true")
    run = RunFolder(read_recipe(stopped, *path)[0])
    run.check(None, resume=True, overwrite=False)
    assert run.rearranged() == [
        "run.device_batch: 2 -> 1",
        "run.gradient_checkpointing: False -> True",
    ]
    train(*read_recipe(stopped, path[0]), resume=True)
    told = "run.device_batch: 2 -> 1: the same steps up to rounding and dropout\n"
    assert capsys.readouterr().out.startswith(told)


def test_later_stages_are_done_again(tmp_path):
    path = write_recipe(tmp_path)
    recipe, _ = read_recipe(path)
    run = RunFolder(recipe)
    run.start()
    for name in ("assign", "heads", "joint"):
        (run.path / name).mkdir()
        (run.path / name / "model.json").write_text("{}")
        checkpoint(run.path, name, 2)
    point = ResumePoint.at(checkpoint(run.path, "heads", 1))
    again = RunFolder(recipe)
    lost = again.plan_back(point)
    assert lost == ["heads.checkpoints/step-2", "heads", "joint", "joint.checkpoints"]
    assert (run.path / "heads" / "model.json").exists()
    assert [again.done(entry) for entry in recipe.stages] == [True, False, False]
    again.start()
    left = {str(place.relative_to(run.path)) for place in run.path.rglob("*") if place.is_dir()}
    assert left == {
        "assign",
        "assign.checkpoints",
        "assign.checkpoints/step-2",
        "heads.checkpoints",
        "heads.checkpoints/step-1",
    }


def test_what_is_no_checkpoint_is_refused_with_what_would_be(tmp_path):
    whole = checkpoint(tmp_path, "heads", 20)
    assert ResumePoint.at(whole) == ResumePoint(tmp_path, "heads", 20)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "model.json").write_text("{}")
    refused = {
        whole.parent / "step-40": r"does not exist or is not whole; whole ones in .*: step-20",
        whole.parent: r"is no run and no checkpoint of one; name a run \(it has run.json\) or",
        tmp_path / "nowhere": r"this folder does not exist; name a run",
        tmp_path / "saved": r"this is a saved model, .* write init_from into the recipe",
    }
    for place, message in refused.items():
        with pytest.raises(UsageError, match=message):
            ResumePoint.at(place)


def test_a_checkpoint_of_another_stage_than_the_wanted_one_is_refused(tmp_path, stopped):
    place = tmp_path / "run" / "heads.checkpoints" / "step-1"
    with pytest.raises(UsageError, match="no stage 'joint'"):
        train(*read_recipe(stopped), stage="joint", resume=place)
    place.rename(tmp_path / "step-1")
    (tmp_path / "run" / "other.checkpoints").mkdir()
    other = (tmp_path / "step-1").rename(tmp_path / "run" / "other.checkpoints" / "step-1")
    with pytest.raises(UsageError, match="checkpoint of stage 'other', but --stage is 'heads'"):
        train(*read_recipe(stopped), stage="heads", resume=other)
    with pytest.raises(UsageError, match="no stage 'other'"):
        train(*read_recipe(stopped), resume=other)


def test_a_checkpoint_from_another_base_is_refused_with_both_hashes(tmp_path):
    made = StageCheckpoints(tmp_path, "heads", ALONE, {"name": "lm", "hash": "abc"})
    with made.writing(4):
        pass
    now = StageCheckpoints(tmp_path, "heads", ALONE, {"name": "lm", "hash": "def"})
    with pytest.raises(CheckpointError, match=r"'lm' with hash abc, but 'lm' has hash def"):
        now.newest()


def test_a_file_that_was_cut_short_is_noticed_before_older_checkpoints_go(tmp_path):
    checkpoints = StageCheckpoints(tmp_path, "heads", ALONE)
    checkpoint(tmp_path, "heads", 2)
    refused = pytest.raises(CheckpointError, match=r"optimizer.pt was cut short.*step-2, go on")
    with refused, checkpoints.writing(4) as folder:
        torch.save({"state": torch.zeros(100)}, folder / "optimizer.pt")
        whole = (folder / "optimizer.pt").read_bytes()
        (folder / "optimizer.pt").write_bytes(whole[: len(whole) // 2])
    assert [path.name for path in checkpoints.whole()] == ["step-2"]


def test_ranks_fail_together_when_one_cannot_write(tmp_path):
    ran = forked(Path(__file__).with_name("failing_rank.py"), tmp_path, processes=2)
    assert ran.returncode == 0, ran.stderr[-3000:]
    place = tmp_path / "heads.checkpoints"
    told = (
        f"cannot save {place / 'step-4'}: [Errno 28] No space left on device; the newest whole "
        f"checkpoint is {place / 'step-2'}, go on from it with --resume\n"
    )
    assert ran.stdout == 2 * told
    assert [path.name for path in place.iterdir()] == ["step-2"]


def test_the_unfinished_line_of_other_ranks_is_kept():
    terms = [{"language": LossTerm(torch.tensor(value), 2.0)} for value in (3.0, 5.0)]
    states = []
    for term in terms:
        meter = TermMeter(["language"], torch.device("cpu"))
        meter.step_begins({"language": 4.0})
        meter.add(term, term["language"].sum * 2 / 4.0)  # two ranks: each share counts twice
        meter.step_ended(skipped=False)
        states.append(meter.state())
    alone = TermMeter(["language"], torch.device("cpu"))
    alone.restore_from(states, ALONE)
    assert alone.read(world=1) == {"loss": 2.0, "language": 2.0}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Runs that two ranks began and one finished, beside the same run of one process."""
    folder = tmp_path_factory.mktemp("resumed")
    rates = {"llm": 0.01, "bridge": 0.02, "point": 0.005, "mass": 0.01}
    stages = [stage("heads", HEADS, steps=6, learning_rate=rates, weight_decay=0.1)]
    plain = {"backbone": {"plugin": "tiny"}, "lora": {"rank": 2, "alpha": 4}}
    path = write_recipe(folder, stages=stages, run={"log_every": 2}, **plain)
    train(*read_recipe(path, f"output={folder / 'plain'}"))
    load_deepspeed()
    script = Path(__file__).with_name("resumed_ranks.py")
    for step, processes in ((3, 2), (0, 1)):
        ran = forked(script, step, path, folder, *ZERO, processes=processes)
        assert ran.returncode == 0, ran.stderr[-3000:]
    return folder


@pytest.mark.parametrize("engine", ZERO)
def test_a_divided_optimizer_goes_on_with_another_number_of_ranks(resumed, engine):
    assert_alike(resumed / engine, resumed / "plain")
    found, expected = (read_rows(resumed / place / "log.jsonl") for place in (engine, "plain"))
    assert [row["step"] for row in found] == [1, 2, 4, 6]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected])
    assert not list(resumed.rglob("*.partial"))
