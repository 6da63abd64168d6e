import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.core.test_recipe import PLAIN
from tpokit import Answer, Media, __version__, cli
from tpokit.cli import main
from tpokit.errors import TrainingError
from tpokit.evaluation.runner import Report
from tpokit.evaluation.sharing import Sharing
from tpokit.training import stages


def run(capsys, *arguments):
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(PLAIN))
    return str(path)


def test_help_names_every_verb(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for verb in ("plugins", "recipe", "data", "train", "predict", "evaluate", "weights"):
        assert re.search(rf"\b{verb}\b", out)


def test_the_version_is_shown(capsys):
    assert run(capsys, "--version") == (0, f"{__version__}\n", "")


def test_plugins_prints_a_table(capsys):
    code, out, _ = run(capsys, "plugins")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["kind", "name", "version", "provided", "by", "state", "summary"]
    assert any(
        line.split()[:5] == ["head", "region", __version__, "tpokit", "ready"] for line in lines
    )


def test_plugins_shows_why_something_cannot_be_used(capsys, tmp_path):
    (tmp_path / "mine.py").write_text("import no_such_library_at_all")
    registry = tmp_path / "registry.yaml"
    registry.write_text(
        "version: 1\nplugins: [{path: mine.py}]\nheads: {far: {package: tpokit-far}}\n"
    )
    code, out, _ = run(capsys, "plugins", "--registry", str(registry))
    assert code == 0
    assert "needs `pip install no_such_library_at_all`" in out
    assert "needs `pip install tpokit-far` (tpokit-far is not installed)" in out


def test_plugins_as_json(capsys):
    code, out, _ = run(capsys, "plugins", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {row["state"] for row in rows if row["provided_by"] == "tpokit"} == {"ready"}


def test_a_missing_registry_is_one_line_and_exit_code_2(capsys, tmp_path):
    code, out, err = run(capsys, "plugins", "--registry", str(tmp_path / "no.yaml"))
    assert (code, out) == (2, "")
    assert err == f"UsageError: no such registry: {tmp_path / 'no.yaml'}\n"


def test_a_good_recipe_is_fine(capsys, recipe):
    code, out, err = run(capsys, "recipe", "check", recipe)
    assert (code, err) == (0, "")
    assert out == (
        f"{recipe} is fine: backbone llava_onevision; heads region; "
        "stages assign (100 steps), heads (100 steps)\n"
    )


def test_a_bad_recipe_is_reported_whole(capsys, recipe):
    code, out, err = run(
        capsys,
        "recipe",
        "check",
        recipe,
        "--set",
        "stages[0].steps=x",
        "--set",
        "heads.region.plugin=r",
    )
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == f"{recipe} has 2 problems"
    assert err.splitlines()[2] == "  stages[0].steps      'x' is not a whole number"


def test_train_refuses_a_bad_recipe_with_its_type_and_no_traceback(capsys, recipe):
    code, out, err = run(capsys, "train", recipe, "--set", "seed=-1")
    assert (code, out) == (2, "")
    assert err == f"RecipeError: {recipe} has 1 problem\n  seed  -1 must be at least 0\n"


def test_what_a_recipe_lacks_to_be_trained_is_named(capsys, recipe):
    for command in (("recipe", "check"), ("train",)):
        code, out, err = run(capsys, *command, recipe, "--set", "data=", "--set", "stages=[]")
        assert (code, out) == (2, "")
        assert err.splitlines()[-2:] == [
            "  data    must be given",
            "  stages  must not be empty",
        ]


def test_train_refuses_an_unknown_stage(capsys, recipe):
    code, _, err = run(capsys, "train", recipe, "--stage", "joint")
    assert code == 2
    assert err == "UsageError: recipe 'tiny' has no stage 'joint' (stages: assign, heads)\n"


@pytest.mark.parametrize(
    ("order", "meant"),
    [
        ("{recipe}", False),
        ("{recipe} --resume", True),
        ("--resume {recipe}", True),
        ("{recipe} --resume --stage assign", True),
        ("{recipe} --resume auto", "auto"),
        ("{recipe} --resume runs/a --stage assign", Path("runs/a")),
        ("--resume=runs/a {recipe}", Path("runs/a")),
        ("--local_rank=1 {recipe} --resume auto", "auto"),  # as DeepSpeed's launcher starts it
    ],
)
def test_train_goes_on_where_resume_says(capsys, recipe, monkeypatch, order, meant):
    seen = []
    monkeypatch.setattr(stages, "train", lambda *_, resume, **__: seen.append(resume))
    assert run(capsys, "train", *order.format(recipe=recipe).split())[0] == 0
    assert seen == [meant]


def test_train_refuses_to_keep_and_throw_away(capsys, recipe):
    code, _, err = run(capsys, "train", recipe, "--resume", "--overwrite")
    assert code == 2
    assert err == "UsageError: --resume keeps what --overwrite throws away; choose one\n"


def test_a_medium_that_is_not_there_is_refused_before_a_model_is_loaded(capsys, tmp_path):
    missing = str(tmp_path / "none.png")
    code, _, err = run(capsys, "predict", str(tmp_path), "--media", missing, "--ask", "what?")
    assert code == 2
    assert "does not exist" in err


class Asked:
    """Stands for a loaded model and keeps what it is asked."""

    def ask(self, question, media, **more):
        self.asked = (question, media, more)
        return Answer(question, "there")

    def draw(self, answer, media, out):
        self.drawn = (answer.text, media, out)


def test_boxes_are_given_by_task_in_their_order_and_the_answer_is_drawn(
    capsys, monkeypatch, tmp_path
):
    asked = Asked()
    monkeypatch.setattr("tpokit.inference.predictor.load", lambda run, slots: asked)
    (tmp_path / "a.mp4").write_text("")
    code, _, err = run(
        capsys,
        *("predict", "run", "--media", str(tmp_path / "a.mp4"), "--ask", "follow <mask>"),
        *("--given", "mask=0.1,0.2,0.5,0.6", "--given", "point = 0,0,1,1"),
        *("--given", "mask=0,0,1,1e0", "--draw", str(tmp_path / "b.mp4")),
    )
    assert (code, err) == (0, "")
    media = [Media("video", tmp_path / "a.mp4")]
    given = {"mask": [(0.1, 0.2, 0.5, 0.6), (0.0, 0.0, 1.0, 1.0)], "point": [(0.0, 0.0, 1.0, 1.0)]}
    assert asked.asked == ("follow <mask>", media, {"given": given, "max_new_tokens": 128})
    assert asked.drawn == ("there", media, tmp_path / "b.mp4")


@pytest.mark.parametrize(
    "given", ["mask", "=0,0,1,1", "mask=0,0,1", "mask=0,0,1,x", "mask=0,0,1,nan", "mask=0,0,1,1,1"]
)
def test_a_box_that_is_none_is_refused_before_a_model_is_loaded(capsys, given):
    code, out, err = run(capsys, "predict", "run", "--ask", "what?", "--given", given)
    assert (code, out) == (2, "")
    assert err == (
        f"UsageError: --given {given}: must be TASK=x0,y0,x1,y1, a box as fractions of the image\n"
    )


def test_what_cannot_be_drawn_is_refused_before_a_model_is_loaded(capsys, tmp_path):
    (tmp_path / "a.png").write_text("")
    for media, out, message in (
        ("a.png", "b.mp4", "is an image, which makes no video"),
        ("a.png", "b.tif", "'.tif' is neither"),
        (".", "b.mp4", "is a folder; a folder of frames does not say how many are shown"),
    ):
        code, _, err = run(
            capsys,
            *("predict", "run", "--media", str(tmp_path / media), "--ask", "what?"),
            *("--draw", str(tmp_path / out)),
        )
        assert code == 2
        assert err.startswith("UsageError: ")
        assert message in err


def test_evaluate_hands_on_where_answers_go(capsys, monkeypatch, tmp_path):
    heard = []
    monkeypatch.setattr(
        "tpokit.evaluation.runner.evaluate_run",
        lambda *rest: heard.append(rest) or Report({"point.error": 0.5}),
    )
    path = tmp_path / "answers.jsonl"
    code, out, _ = run(capsys, "evaluate", "run", "--set", "seed=1", "--answers", str(path))
    assert code == 0
    assert "point.error" in out
    alone = Sharing()
    assert heard == [(Path("run"), ["seed=1"], None, path, None, alone)]
    run(capsys, "evaluate", "run", "--recipe", "other.yaml")
    assert heard[1] == (Path("run"), (), None, None, Path("other.yaml"), alone)


def test_predict_hands_on_when_slots_are_fed(capsys, monkeypatch):
    heard = []
    load = lambda run, slots: heard.append(slots) or Asked()  # noqa: E731 - three words
    monkeypatch.setattr("tpokit.inference.predictor.load", load)
    for more in ((), ("--slots", "before_trigger"), ("--slots", "after_trigger")):
        assert run(capsys, "predict", "run", "--ask", "what?", *more)[0] == 0
    assert heard == [None, "before_trigger", "after_trigger"]
    code, _, err = run(capsys, "predict", "run", "--ask", "what?", "--slots", "never")
    assert code == 2
    assert err == "UsageError: --slots never: must be after_trigger or before_trigger\n"


@pytest.mark.parametrize("verb", [["evaluate"], ["predict", "--ask", "what?"]])
def test_a_folder_that_is_no_model_is_one_line_and_exit_code_1(capsys, tmp_path, verb):
    code, out, err = run(capsys, *verb, str(tmp_path))
    assert (code, out) == (1, "")
    assert err.startswith(f"CheckpointError: {tmp_path}")


def raising(error):
    def raise_it(*_, **__):
        raise error

    return raise_it


def test_a_run_that_failed_has_exit_code_1(capsys, monkeypatch):
    monkeypatch.setattr(cli, "app", raising(TrainingError("loss is [red]nan[/red]")))
    assert run(capsys, "train", "x") == (1, "", "TrainingError: loss is [red]nan[/red]\n")


def test_ctrl_c_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("tpokit.plugins.Plugins.load", raising(KeyboardInterrupt()))
    assert run(capsys, "plugins") == (130, "", "interrupted\n")


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("tpokit.plugins.Plugins.load", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["plugins"])


def test_the_module_is_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "tpokit", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"{__version__}\n"
    script = Path(sys.executable).with_name("tpokit")
    result = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"{__version__}\n"
