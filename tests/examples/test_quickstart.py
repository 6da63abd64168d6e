"""The main job, as a newcomer runs it, at reduced length; and what a stranger plugs into it."""

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

import tpokit
from tests.forked import forked
from tpokit.recipe import open_recipe
from tpokit.training.stages import train

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart.yaml"
LONGER = ROOT / "examples" / "shapes_world.yaml"
SHORT = (
    "stages[*].steps=2",
    "stages[*].samples_per_step=4",
    "evaluate.samples=6",
    "run.device_batch=4",
    "run.threads=1",
)


def tpokit_command(*arguments, folder, home):
    return subprocess.run(
        [sys.executable, "-m", "tpokit", *map(str, arguments)],
        cwd=folder,
        env={"HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(tmp_path_factory, home):
    """The quickstart, trained by the command of the README."""
    folder = tmp_path_factory.mktemp("work")
    settings = [part for setting in SHORT for part in ("--set", setting)]
    done = tpokit_command("train", QUICKSTART, *settings, folder=folder, home=home)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "quickstart", done.stdout


def test_the_three_stages_are_trained_shown_scored_and_saved(run):
    folder, shown = run
    for stage in ("assign", "heads", "joint"):
        assert f"stage {stage}" in shown
        assert (folder / stage / "bridge.safetensors").is_file()
        assert (folder / stage / "recipe.yaml").is_file()
    for word in ("lora", "frozen", "region", "learning rate", "before", "after", "best constant"):
        assert word in shown
    measures = {"region.acc@0.5", "temporal.r1@0.5", "temporal.hl_hit1", "mask.giou", "mask.j&f"}
    measures |= {"trigger_accuracy", "conversation_accuracy"}
    scores = json.loads((folder / "evaluation.json").read_text())
    assert measures <= set(scores["before"]["scores"]) & set(scores["after"]["scores"])
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"assign", "heads", "joint"}
    terms = {"language", "assign", "region.l1", "temporal.label", "mask.focal"}
    assert terms <= set().union(*rows)  # not every step has every kind of sample
    assert Image.open(folder / "loss.png").size[0] > 300


def test_a_stage_trains_what_the_recipe_says(run):
    folder, _ = run
    described = json.loads((folder / "assign" / "model.json").read_text())
    assert described["modes"] == {"llm": "lora", "bridge": "full"}
    assert set(described["files"]) == {"bridge", "llm-lora", "mask", "region", "temporal"}
    joint = json.loads((folder / "joint" / "model.json").read_text())
    assert joint["modes"] == {
        "llm": "lora",
        "bridge": "full",
        "mask": "full",
        "region": "full",
        "temporal": "full",
    }
    assert set(joint["files"]) == {"bridge", "llm-lora", "mask", "region", "temporal"}


def test_it_is_asked_about_an_image_and_answers_in_words_json_and_a_picture(run, home, tmp_path):
    folder, _ = run
    picture = ROOT / "examples" / "shapes.png"
    done = forked(
        *("-m", "tpokit", "predict", folder, "--media", picture),
        *("--ask", "where is the red ring?"),
        *("--json", tmp_path / "a.json", "--draw", tmp_path / "a.png"),
        cwd=tmp_path,
        home=home,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "a.json").read_text())
    assert answer["question"] == "where is the red ring?"
    assert answer["text"]
    assert answer["media"][0]["width"] == 64
    assert Image.open(tmp_path / "a.png").size == (64, 64)


def test_the_longer_example_has_the_same_model_and_losses_and_trains_longer():
    short, longer = (open_recipe(path)[0] for path in (QUICKSTART, LONGER))
    for part in ("backbone", "heads", "loss", "lora"):
        assert getattr(short, part) == getattr(longer, part)
    assert [stage.train for stage in short.stages] == [stage.train for stage in longer.stages]
    samples = [
        sum(stage.steps * stage.samples_per_step for stage in recipe.stages)
        for recipe in (short, longer)
    ]
    assert samples[1] > 3 * samples[0]


def test_it_is_asked_about_a_clip_and_answers_with_moments_and_a_timeline(run, tmp_path):
    """After two steps it may not call the head by itself, so its call is made by hand."""
    folder, _ = run
    clip = ROOT / "examples" / "shapes.mp4"
    predictor = tpokit.load(folder)
    always_call(predictor, "temporal")
    answer = predictor.ask("when is the red ring visible?", [clip], max_new_tokens=1)
    (call,) = answer.calls
    assert call.task == "temporal"
    assert answer.to_json()["media"][0]["duration_s"] == pytest.approx(2.0)
    assert all(0 <= m.start_s <= m.end_s <= 2.0 for m in call.result.moments)
    assert len(call.result.saliency) == 16
    predictor.draw(answer, [clip], tmp_path / "timeline.png")
    assert Image.open(tmp_path / "timeline.png").size[0] >= 720


def always_call(predictor, task):
    """Let the next word be the trigger of a task."""
    tasks = list(predictor.model.tokens.tasks)
    always = torch.nn.Linear(predictor.model.backbone.width, len(tasks))
    torch.nn.init.zeros_(always.weight)
    always.bias.data = torch.tensor([1e4 if name == task else -1e4 for name in tasks])
    predictor.model.bridge.output = always


def test_it_follows_an_object_through_a_clip_into_run_lengths_and_a_film(run, tmp_path):
    folder, _ = run
    clip, picture = ROOT / "examples" / "shapes.mp4", ROOT / "examples" / "shapes.png"
    predictor = tpokit.load(folder)
    always_call(predictor, "mask")
    answer = predictor.ask("follow the red ring", [clip], max_new_tokens=1)
    (call,) = answer.calls
    found = call.result.to_json()["masks"]
    assert [frame["time_s"] for frame in found] == [frame / 8 for frame in range(16)]
    assert all(frame["rle"]["size"] == [64, 64] for frame in found)
    predictor.draw(answer, [clip], tmp_path / "track.mp4")
    with av.open(str(tmp_path / "track.mp4")) as film:
        assert film.streams.video[0].frames == 16
    answer = predictor.ask(
        "track the thing at <mask>",
        [clip],
        given={"mask": [(0.1, 0.1, 0.5, 0.5)]},
        max_new_tokens=1,
    )
    assert len(answer.calls[0].result.frames) == 16
    answer = predictor.ask("segment the red ring", [picture], max_new_tokens=1)
    assert set(answer.calls[0].result.to_json()) == {"mask", "box", "score"}
    predictor.draw(answer, [picture], tmp_path / "mask.png")
    assert Image.open(tmp_path / "mask.png").size == (64, 64)


def test_a_merged_model_stands_alone_and_says_the_same(run, tmp_path):
    from tpokit.checkpoints.merge import merge

    folder, _ = run
    merge(folder, tmp_path / "merged")
    picture = ROOT / "examples" / "shapes.png"
    question = "what colour is the ring?"
    kept = tpokit.load(folder).ask(question, [picture], max_new_tokens=8)
    merged = tpokit.load(tmp_path / "merged").ask(question, [picture], max_new_tokens=8)
    assert merged == kept


def test_a_strangers_head_of_one_file_trains_in_the_quickstart(tmp_path):
    source = ROOT / "examples" / "third_party" / "centre_head.py"
    assert len(source.read_text().splitlines()) <= 60
    recipe, plugins = open_recipe(
        QUICKSTART,
        (
            *SHORT,
            "heads.region={plugin: centre}",
            "loss.region={smooth_l1: 1.0}",
            f"output={tmp_path / 'run'}",
            f"data.boxes.options.folder={tmp_path}",
            f"data.talk.options.folder={tmp_path}",
            *(f"data.{name}.options.folder={tmp_path}" for name in ("moments", "masks", "tracks")),
            "evaluate=null",
        ),
        source.parent / "registry.yaml",
    )
    folder = train(recipe, plugins)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["region.smooth_l1"] > 0
    answer = tpokit.load(folder).ask("find the ring", [ROOT / "examples" / "shapes.png"])
    assert isinstance(answer.text, str)
    assert "<find>" in json.loads((folder / "joint" / "model.json").read_text())["tokens"]
