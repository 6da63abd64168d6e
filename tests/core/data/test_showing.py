"""`tpokit data show` shows what training sees."""

import json

import pytest
from PIL import Image

from tests.core.test_cli import run
from tests.test_bad_input import line, recipe
from tpokit import DataError, UsageError
from tpokit.data.bad_samples import BadSampleLimit
from tpokit.data.dataset import MixedDataset, open_sources
from tpokit.data.sample_reader import reader_of
from tpokit.data.showing import in_short, sample_at, sample_of
from tpokit.recipe import open_recipe
from tpokit.reporting.tables import in_bytes
from tpokit.variants import empty_model

GIVEN = line(
    id="given",
    question="what is in <region>",
    answer="the ring is here <region> yes",
    given={"region": [[0.25, 0.25, 0.5, 0.5]]},
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("show")
    made = recipe(folder, line(), **{"stages.0.steps": 4})
    lines = [line(), GIVEN, line(id="gone", image="no.png")]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return made


@pytest.fixture(scope="module")
def stage(path):
    """The first samples of the stage, as they are shown."""
    opened = open_recipe(path)
    return [sample_at(*opened, opened[0].stages[0], position) for position in range(3)]


@pytest.fixture(scope="module")
def given(path):
    return sample_of(*open_recipe(path), "mine", 1, "only")


def test_a_position_shows_what_training_reads_there(path, stage):
    recipe, plugins = open_recipe(path)
    sources = open_sources(recipe, plugins, ["mine"])
    reader = reader_of(recipe, "only", sources, empty_model(recipe, plugins).train())
    limit = BadSampleLimit(1.0, 8)
    dataset = MixedDataset(sources, recipe.stages[0].mix, reader.seed, reader.encoder, limit)
    for position, shown in enumerate(stage):
        reading = dataset[position]
        example = reading.example
        assert (shown.sample, shown.replaced) == (example.sample.id, reading.bad)
        assert shown.tokens == len(example.ids)
        assert sum(p.tokens for p in shown.pieces if p.learnt) == sum(
            label >= 0 for label in example.labels
        )
        ends = [piece.start + piece.tokens for piece in shown.pieces]
        assert [piece.start for piece in shown.pieces] == [0, *ends[:-1]]


def test_a_sample_that_was_replaced_is_named(stage):
    (replaced,) = [shown.replaced for shown in stage if shown.replaced]  # an epoch has three
    assert replaced[0].index == 2
    assert replaced[0].message.endswith("no.png: there is no such file")


def test_pieces_say_what_tokens_are(given):
    found = [(piece.kind, piece.learnt, piece.text) for piece in given.pieces]
    assert ("media", False, "<image>") in found
    assert ("given", False, "<region_box>") in found
    assert ("trigger", True, "<box_begin>") in found
    assert ("slot", False, "<boxes>") in found
    learnt = [text.strip() for kind, learnt, text in found if learnt and kind == "text"]
    assert learnt == ["the ring is here", "yes <|im_end|>"]
    assert given.pieces[1].tokens == 17


def test_targets_are_shown_in_both_units(given):
    target, box = given.targets
    assert (target.value, target.result.to_json()) == (
        "[0.1, 0.1, 0.5, 0.5]",
        {"box": [6.4, 6.4, 32.0, 32.0]},
    )
    assert (box.given, box.value, box.result) == (True, "[0.25, 0.25, 0.5, 0.5]", None)


def test_what_is_not_there_is_said(path):
    opened = open_recipe(path)
    with pytest.raises(UsageError, match=r"data.mine has no sample 3: it has 3, counted from 0"):
        sample_of(*opened, "mine", 3, "only")
    with pytest.raises(UsageError, match=r"stage 'only' has no position 8: it reads 8 samples"):
        sample_at(*opened, opened[0].stages[0], 8)
    with pytest.raises(DataError, match=r"mine/gone: .*no.png: there is no such file"):
        sample_of(*opened, "mine", 2, "only")


def test_the_command_marks_the_prompt_and_draws(path, tmp_path, capsys):
    drawn = tmp_path / "drawn.png"
    code, out, err = run(
        capsys, "data", "show", str(path), "--entry", "mine", "--index", "1", "--draw", str(drawn)
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "data.mine, sample 1, epoch 0; id given"
    prompt = " ".join(lines[2 : lines.index("marks: [learnt] {slot} (given)")])
    assert "<image> x 17" in prompt
    assert "what is in(<region_box>)" in prompt
    assert "[ the ring is here][<box_begin>]{<boxes>}[yes <|im_end|>]" in prompt
    assert "region target: [0.1, 0.1, 0.5, 0.5]" in lines
    assert "    is box [6.4, 6.4, 32.0, 32.0]" in lines
    assert "region given: [0.25, 0.25, 0.5, 0.5]" in lines
    with Image.open(drawn) as picture:
        assert len(picture.convert("RGB").getcolors()) > 1  # the medium is grey all over


def test_the_command_shows_positions_of_a_stage_and_refuses_what_makes_no_sense(path, capsys):
    code, out, _ = run(capsys, "data", "show", str(path), "--index", "0")
    assert code == 0
    assert out.startswith("position 0: data.mine, sample ")
    for more, message in (
        (("--epoch", "1"), "--epoch belongs to --entry: in a stage it follows from the position"),
        (("--stage", "joint"), "recipe 'bad' has no stage 'joint' (stages: only)"),
        (("--entry", "my"), "no data entry 'my' (there are: mine)"),
    ):
        code, out, err = run(capsys, "data", "show", str(path), "--index", "0", *more)
        assert (code, out) == (2, "")
        assert err == f"UsageError: {message}\n"


def test_values_are_shown_in_a_line():
    import numpy as np

    value = {"mask": np.zeros((2, 3), bool), "points": list(range(20)), "name": "a"}
    assert in_short(value) == (
        "{mask: bool[2, 3], points: [0, 1, 2, 3, 4, 5, 6, 7, ...], name: 'a'}"
    )


def test_bytes_have_a_unit():
    sizes = [in_bytes(size) for size in (12, 2048, 1.5 * 2**20, 3 * 2**30, 5000 * 2**30)]
    assert sizes == ["12 B", "2 KiB", "1.5 MiB", "3.0 GiB", "5,000.0 GiB"]
