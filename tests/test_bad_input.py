"""Bad input, as a user meets it: one clear error, the right exit code, nothing lost."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tpokit.cli import main

ROOT = Path(__file__).parent.parent


def recipe(tmp_path, line, **changes):
    """A recipe over one JSONL line and the shipped base; ``changes`` by dotted path."""
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "a.png")
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    plain = {
        "recipe": 1,
        "name": "bad",
        "output": str(tmp_path / "run"),
        "backbone": {
            "plugin": "llava_onevision",
            "options": {
                "model": "package://tpokit_shapes_world/base",
                "crops": "single",
                "weights": "random",
            },
        },
        "heads": {"region": {"plugin": "region"}},
        "data": {"mine": {"source": "jsonl", "options": {"annotations": "data.jsonl"}}},
        "stages": [
            {
                "name": "only",
                "train": {"llm": "lora", "bridge": "full", "region": "full"},
                "learning_rate": 1e-3,
                "mix": {"mine": 1.0},
                "samples_per_step": 2,
                "steps": 1,
                "without_conversation": True,
            }
        ],
        "run": {"device_batch": 2, "threads": 1},
    }
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = plain
        for parent in parents:
            place = place[int(parent) if isinstance(place, list) else parent]
        place[last] = value
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def line(**changes):
    return {
        "id": "cup",
        "image": "a.png",
        "question": "where is the ring",
        "answer": "it is here <region>",
        "targets": {"region": [[0.1, 0.1, 0.5, 0.5]]},
        **changes,
    }


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return leaving.value.code, error


def test_the_good_line_trains(tmp_path, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["train", str(recipe(tmp_path, line()))])
    assert leaving.value.code == 0
    assert (tmp_path / "run" / "only" / "region.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"heads": {"region": {"plugin": "regoin"}}},
            ["heads.region.plugin", "regoin", "'region'"],
        ),
        (
            {"heads": {"region": {"plugin": "region", "options": {"hiden": 8}}}},
            ["heads.region.options.hiden", "hidden"],
        ),
        ({"data.mine.source": "jsonlines"}, ["data.mine.source", "jsonlines", "jsonl"]),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_written(tmp_path, capsys, changes, words):
    code, error = refusal(capsys, "train", recipe(tmp_path, line(), **changes))
    assert code == 2
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (line(targets={"region": [[0.5, 0.1, 0.1, 0.5]]}), ["mine/cup", "0.5", "x"]),
        (line(targets={"region": [[0.1, 0.1, 0.5, 1.5]]}), ["mine/cup", "1.5"]),
        (line(targets={}), ["mine/cup", "<region> stands 1 times", "0 targets"]),
        (line(answer="it is here"), ["mine/cup", "stands 0 times", "1 targets"]),
        (line(image="gone.png"), ["mine/cup", "gone.png"]),
        (line(image="data.jsonl"), ["mine/cup", "data.jsonl"]),
    ],
    ids=["swapped", "outside", "no target", "no trigger", "missing image", "no image at all"],
)
def test_a_wrong_sample_is_named(tmp_path, capsys, annotation, words):
    code, error = refusal(capsys, "train", recipe(tmp_path, annotation))
    assert code == 1
    assert error.startswith("DataError")
    assert all(word in error for word in words), error


def test_a_truncated_image_is_named(tmp_path, capsys):
    path = recipe(tmp_path, line())
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    code, error = refusal(capsys, "train", path)
    assert code == 1
    assert "mine/cup" in error
    assert "a.png" in error


def test_a_cut_that_would_drop_a_slot_is_refused(tmp_path, capsys):
    path = recipe(tmp_path, line(), **{"run.max_length": 20})
    code, error = refusal(capsys, "train", path)
    assert code == 1
    assert "at most 20 fit" in error
    assert "mine/cup" in error


def test_weights_of_another_width_are_refused_with_both_shapes(tmp_path, capsys):
    path = recipe(tmp_path, line())
    with pytest.raises(SystemExit):
        main(["train", str(path)])
    capsys.readouterr()
    saved = tmp_path / "run" / "only" / "recipe.yaml"
    plain = yaml.safe_load(saved.read_text())
    plain["heads"]["region"]["options"]["hidden"] = 8
    saved.write_text(yaml.safe_dump(plain))
    picture = tmp_path / "a.png"
    code, error = refusal(capsys, "predict", tmp_path / "run", "--media", picture, "--ask", "where")
    assert code == 1
    assert "[64, 128]" in error
    assert "[8, 128]" in error
    assert "another width" in error


def test_a_run_that_is_there_is_not_written_over(tmp_path, capsys):
    path = recipe(tmp_path, line())
    with pytest.raises(SystemExit):
        main(["train", str(path)])
    capsys.readouterr()
    before = (tmp_path / "run" / "only" / "region.safetensors").read_bytes()
    code, error = refusal(capsys, "train", path)
    assert code == 2
    assert "--resume" in error
    assert "--overwrite" in error
    code, error = refusal(capsys, "train", path, "--resume", "--set", "stages[0].learning_rate=0.1")
    assert code == 2
    assert "stages[0].learning_rate" in error
    assert (tmp_path / "run" / "only" / "region.safetensors").read_bytes() == before
