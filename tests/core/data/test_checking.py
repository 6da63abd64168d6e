"""`tpokit data check` finds what training would stumble over."""

import json

import pytest
from PIL import Image

from tests.core.test_cli import run
from tests.test_bad_input import line, recipe
from tpokit import DataError, Media, MediaNeed
from tpokit.data.blank_media import blank_media
from tpokit.data.checking import CheckOptions, DataProblem, check_data
from tpokit.data.media import read_media
from tpokit.recipe import open_recipe

LINES = [
    line(id="good"),
    line(id="flat", targets={"region": [[0.2, 0.1, 0.2, 0.5]]}),
    line(id="talk", image=None, answer="yes", targets={}),
    line(id="thin", targets={"region": [[0.4, 0.3, 0.4, 0.9]]}),
    line(id="gone", image="no.png"),
    line(id="other", answer="it is here <moment>", targets={"moment": [1]}),
    line(id="bare", targets={}),
    "{",
    line(id="cut", image="cut.png"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A recipe over lines of which two are right, and an entry that cannot be opened."""
    folder = tmp_path_factory.mktemp("data")
    closed = {"source": "jsonl", "options": {"annotations": "missing.jsonl"}}
    made = recipe(folder, line(), **{"data.closed": closed, "run.workers": 0})
    rows = []
    for entry in LINES:
        plain = entry if isinstance(entry, str) else {k: v for k, v in entry.items() if v}
        rows.append(plain if isinstance(plain, str) else json.dumps(plain))
    (folder / "data.jsonl").write_text("\n".join(rows) + "\n")
    whole = folder / "cut.png"
    Image.effect_noise((64, 64), 50).convert("RGB").save(whole)
    whole.write_bytes(whole.read_bytes()[:3000])  # its head is right
    return made


@pytest.fixture(scope="module")
def reports(path):
    return check_data(*open_recipe(path), CheckOptions(("closed", "mine")))


def test_every_wrong_sample_is_listed_with_what_is_wrong(reports, path):
    found = {problem.sample: problem.message for problem in reports[1].problems}
    assert found["flat"].startswith("mine/flat: the box [0.2, 0.1, 0.2, 0.5] ")
    assert found["thin"].startswith("mine/thin: the box [0.4, 0.3, 0.4, 0.9] ")
    assert found["gone"] == f"mine/gone: {path.parent}/no.png: there is no such file"
    assert found["other"] == (
        "mine/other: has a target of task 'moment', but the model's heads do region"
    )
    assert found["bare"].startswith("mine/bare: <region> stands 1 times in the answers")
    assert found[None].startswith(f"{path.parent}/data.jsonl, line 8: ")
    assert [problem.index for problem in reports[1].problems] == [1, 3, 4, 5, 6, 7]


def test_an_entry_that_cannot_be_opened_is_a_problem_and_stops_no_other(reports):
    closed = reports[0]
    assert (closed.samples, closed.looked_at, closed.tokens["max"]) == (0, 0, None)
    assert closed.problems[0].index is None
    assert "missing.jsonl" in closed.problems[0].message


def test_what_is_right_is_counted(reports):
    mine = reports[1]
    assert (mine.samples, mine.looked_at, mine.conversations) == (9, 9, 2)  # bare calls nothing
    assert mine.calls == {"moment": 1, "region": 5}
    assert len(mine.lengths) == 3
    assert mine.tokens["max"] == mine.lengths[-1] > 17  # its picture alone has 17


def test_problems_are_grouped_by_what_they_say(reports):
    kinds = reports[1].kinds()
    assert [kind.count for kind in kinds] == [2, 1, 1, 1, 1]
    assert [problem.sample for problem in kinds[0].first] == ["flat", "thin"]


def test_two_processes_and_more_chunks_find_the_same(reports, path, monkeypatch):
    monkeypatch.setattr("tpokit.data.checking._CHUNK", 2)
    told = []
    found = check_data(
        *open_recipe(path),
        CheckOptions(("mine",), workers=2),
        lambda done, count: told.append((done, count)),
    )
    assert found[0].to_json() == reports[1].to_json()
    assert told == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]


def test_decoding_finds_a_file_that_is_cut_off(path):
    report = check_data(*open_recipe(path), CheckOptions(("mine",), decode=True))[0]
    (cut,) = [problem for problem in report.problems if problem.sample == "cut"]
    assert "cut.png: cannot be read as an image" in cut.message


def test_some_samples_are_taken_evenly(path):
    report = check_data(*open_recipe(path), CheckOptions(("mine",), samples=3))[0]
    assert [problem.index for problem in report.problems] == [3, 6]
    assert report.looked_at == 3


def test_samples_that_are_shortened_are_counted(tmp_path):
    more = {"role": "user", "text": "where is the ring " * 5}
    turns = [more, {"role": "assistant", "text": "yes"}] * 4
    made = recipe(tmp_path, {"id": "long", "turns": turns}, **{"run.max_length": 60})
    report = check_data(*open_recipe(made), CheckOptions(("mine",)))[0]
    assert (report.shortened, report.problems) == (1, ())
    assert report.tokens["max"] <= 60


def test_the_kind_of_a_problem_has_no_names_and_numbers():
    one = DataProblem("a", 1, "x", "a/x: /some/file.png: 3 of 'cup' at 0.5, 1e-3")
    other = DataProblem("a", 2, "y", 'a/y: other/f: 12 of "jug" at 7, 2')
    assert one.kind == other.kind == ".../... 0 of '...' at 0, 0"


def test_the_command_shows_kinds_writes_all_and_ends_with_1(path, tmp_path, capsys):
    written = tmp_path / "found.json"
    code, out, err = run(capsys, "data", "check", str(path), "--json", str(written))
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["entry", "samples", "looked", "at"]
    assert lines[2].split()[:4] == ["mine", "9", "9", "6"]
    assert "moment 1, region 5" in lines[2]
    place = lines.index(next(text for text in lines if text.startswith("data.mine: 2 x mine/flat")))
    assert lines[place + 1] == "    also thin"
    assert lines[-1] == "7 problems"
    entries = json.loads(written.read_text())
    assert [len(entry["problems"]) for entry in entries] == [1, 6]


def test_the_command_ends_with_0_where_all_is_right(tmp_path, capsys):
    path = str(recipe(tmp_path, line()))
    code, out, _ = run(capsys, "data", "check", path, "--entry", "mine")
    assert code == 0
    assert out.splitlines()[-1] == "0 problems"
    code, out, err = run(capsys, "data", "check", path, "--entry", "mne")
    assert (code, out) == (2, "")
    assert err == "UsageError: no data entry 'mne'; did you mean 'mine'? (there are: mine)\n"


def test_preparing_opens_every_entry(tmp_path, capsys):
    code, out, _ = run(capsys, "data", "prepare", str(recipe(tmp_path, line())))
    assert code == 0
    assert out.startswith("data.mine: 1 samples, opened in ")


# ---- media that are not decoded ----

NEEDS = {
    "a": MediaNeed(frames=3),
    "b": MediaNeed(rate=4.0, frames_max=5),
    "c": MediaNeed(frames=2, pick="random"),
}


def folder_of_frames(folder):
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (20, 10)).save(folder / f"{number}.png")
    return folder


def test_blank_media_have_the_sizes_of_decoded_ones(tmp_path):
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(turned, exif=exif)
    frames = folder_of_frames(tmp_path / "frames")
    video = Media("video", frames, start_s=0.5, end_s=2.0, rate=3.0)
    for media in (Media("image", turned), video):
        blank, real = blank_media(media, NEEDS), read_media(media, NEEDS)
        for name in NEEDS:
            assert blank[name].info == real[name].info
            assert blank[name].frames.shape == real[name].frames.shape
            assert not blank[name].frames.any()
    assert blank["a"].times_s == pytest.approx([0.75, 1.25, 1.75])


def test_blank_media_refuse_what_is_no_medium(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    frames = Media("video", folder_of_frames(tmp_path / "frames"), start_s=9.0, rate=3.0)
    for media, message in (
        (Media("image", tmp_path / "none.png"), "there is no such file"),
        (Media("image", tmp_path / "a.png"), "cannot be read as an image"),
        (frames, "is beyond the end"),
    ):
        with pytest.raises(DataError, match=message):
            blank_media(media, NEEDS)
