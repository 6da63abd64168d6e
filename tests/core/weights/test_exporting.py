"""A model goes back to published names: what was taken in is given back, bit by bit."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.core.training import tiny
from tests.core.weights import toy
from tests.core.weights.releases import (
    WIDTH,
    files_of,
    plugins_of,
    recipe_of,
    release,
    saved,
    write_release,
)
from tpokit import CheckpointError, UsageError
from tpokit.cli import main
from tpokit.plugins import Plugins
from tpokit.weights.exporting import ExportOptions, export_weights
from tpokit.weights.importing import ImportOptions, import_weights


@pytest.fixture
def place(tmp_path):
    """A folder with a release and the model that was made of it, and the plugins that know it."""
    write_release(tmp_path / "release", release())
    plugins = plugins_of(tmp_path)
    take_in(tmp_path, plugins, "release", "model")
    return tmp_path, plugins


def take_in(folder, plugins, source, output, **options):
    asked = ImportOptions(registry=folder / "registry.yaml", **options)
    import_weights(folder / source, folder / output, asked, plugins)
    return folder / output


def give_back(place, run="model", output="back", **options):
    folder, plugins = place
    asked = ExportOptions(**{"format": "toy_release", **options})
    report = export_weights(folder / run, folder / output, asked, plugins)
    return folder / output, report


def test_all_names_come_back_with_what_was_published(place):
    back, report = give_back(place)
    theirs, found = release(), load_file(back / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {
        n: (t.shape, t.dtype) for n, t in theirs.items()
    }
    taken_in = {"lm.head.base.weight", "lm.head.lora_B"}
    for name, tensor in theirs.items():
        assert name in taken_in or torch.equal(found[name], tensor), name
    assert torch.equal(found["lm.head.lora_B"][:24], theirs["lm.head.lora_B"][:24])
    # the product of a trigger's rows is in its row of the base, so that their sum is the same
    product = toy.SCALE * theirs["lm.head.lora_B"] @ theirs["lm.head.lora_A"]
    again = toy.SCALE * found["lm.head.lora_B"] @ found["lm.head.lora_A"]
    torch.testing.assert_close(
        found["lm.head.base.weight"] + again, theirs["lm.head.base.weight"] + product
    )
    assert not found["lm.head.lora_B"][[24, 26]].any()
    assert {row.state for row in report.tensors} == {"written", "kept"}
    with safe_open(back / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses files without it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("merged", [False, True], ids=["lora", "merged"])
def test_a_model_that_goes_there_and_back_is_the_same_in_every_file(tmp_path, dtype, merged):
    write_release(tmp_path / "release", release(dtype))
    plugins = plugins_of(tmp_path)
    first = take_in(tmp_path, plugins, "release", "model", merge_lora=merged)
    back, _ = give_back((tmp_path, plugins), max_shard="4KB")
    again = take_in(tmp_path, plugins, back.name, "again", merge_lora=merged)
    assert files_of(again) == files_of(first)


def test_shards_are_named_as_hugging_face_does(place):
    back, report = give_back(place, max_shard="4KB")
    index = json.loads((back / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in back.glob("*.safetensors"))
    assert files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    assert len(files) > 3
    assert index["metadata"]["total_size"] == report.bytes
    whole = give_back(place, output="whole")[0] / "model.safetensors"
    pieces = {}
    for file in files:
        pieces.update(load_file(back / file))
    assert {name: file for name, file in index["weight_map"].items()}.keys() == pieces.keys()
    assert all(torch.equal(pieces[name], tensor) for name, tensor in load_file(whole).items())


def test_one_number_format_can_be_asked_for(place):
    back, report = give_back(place, dtype="bfloat16")
    found = load_file(back / "model.safetensors")
    kept = {"ids", "box_ids"}
    assert all(found[name].dtype == torch.bfloat16 for name in found.keys() - kept)
    assert all(found[name].dtype == torch.int64 for name in kept)
    assert report.bytes == sum(tensor.nbytes for tensor in found.values())


def test_a_head_that_was_left_out_comes_back_with_the_rest(tmp_path):
    write_release(tmp_path / "release", release())
    plugins = plugins_of(tmp_path)
    take_in(tmp_path, plugins, "release", "model", without=("mass",))
    back, _ = give_back((tmp_path, plugins))
    found, theirs = load_file(back / "model.safetensors"), release()
    assert found.keys() == theirs.keys()
    for name in (n for n in theirs if n.startswith("mass")):
        assert torch.equal(found[name], theirs[name])
    assert torch.equal(found["lm.embed.weight"], theirs["lm.embed.weight"])
    assert torch.equal(found["lm.head.lora_B"][24], theirs["lm.head.lora_B"][24])


def test_what_nothing_is_known_of_is_zero_or_left_out_and_the_report_says_so(place):
    folder, plugins = place
    theirs = release()
    (folder / "model" / "unused.safetensors").unlink()
    back, report = give_back(place)
    found = load_file(back / "model.safetensors")
    assert found.keys() == theirs.keys() - {"ids"}
    assert not found["old.proj"].any()
    assert (found["box_ids"].dtype, found["box_ids"].any()) == (torch.int64, False)
    assert not found["lm.embed.weight"][[25, 27, 28, 29]].any()
    states = {row.name: row.state for row in report.tensors}
    assert states["old.proj"] == states["lm.embed.weight"] == "zeros"
    assert (states["ids"], states["vis.weight"]) == ("left out", "written")
    assert "nothing is known of it" in next(r.reason for r in report.tensors if r.name == "ids")
    take_in(folder, plugins, "back", "again")
    assert (folder / "again" / "backbone" / "weights.safetensors").read_bytes() == (
        folder / "model" / "backbone" / "weights.safetensors"
    ).read_bytes()


def as_trained(folder):
    """The model as a run would save it: its base is named, and nothing of the import is beside."""
    run = folder / "run"
    run.mkdir()
    for path in (folder / "model").iterdir():
        if path.is_file() and path.name not in {"unused.safetensors", "import.json"}:
            (run / path.name).write_bytes(path.read_bytes())
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("model: backbone", "model: ../model/backbone"))


def test_unused_tensors_are_found_by_the_base_that_a_model_names(place):
    as_trained(place[0])
    found = load_file(give_back(place, "run")[0] / "model.safetensors")
    assert torch.equal(found["old.proj"], release()["old.proj"])


def test_unused_tensors_can_be_named(place):
    folder, _ = place
    as_trained(folder)
    (folder / "imported").mkdir()
    (folder / "model" / "unused.safetensors").rename(folder / "imported" / "unused.safetensors")
    assert not load_file(give_back(place, "run")[0] / "model.safetensors")["old.proj"].any()
    named = give_back(place, "run", "named", unused=folder / "imported")[0]
    assert torch.equal(load_file(named / "model.safetensors")["old.proj"], release()["old.proj"])
    with pytest.raises(UsageError, match=r"--unused .*: there is no unused\.safetensors in it"):
        give_back(place, "run", "other", unused=folder)


def test_unused_tensors_of_another_model_are_refused(place):
    folder, _ = place
    unused = saved(folder / "model", "unused")
    toy.save({**unused, "old.proj": torch.zeros(2, 2)}, folder / "model" / "unused.safetensors")
    with pytest.raises(CheckpointError, match=r"old\.proj was kept as \[2, 2\] .*has \[3, 3\]"):
        give_back(place)
    assert not (folder / "back").exists()


# ---- what is refused ----


def test_a_model_that_the_format_cannot_hold_is_refused_before_anything_is_written(place):
    folder, _ = place
    with pytest.raises(UsageError, match=r"no format 'toy_relase'; did you mean 'toy_release'"):
        give_back(place, format="toy_relase")
    with pytest.raises(UsageError) as told:
        give_back(place, format="toy_stage")
    assert "'toy_stage' has no place for the head 'toy_mass' (formats that have: toy_rel" in str(
        told.value
    )
    with pytest.raises(UsageError, match="--max-shard many"):
        give_back(place, max_shard="many")
    with pytest.raises(UsageError, match="'word' is no floating-point type"):
        give_back(place, dtype="word")
    assert {path.name for path in folder.iterdir()} == {"release", "model", "registry.yaml"}


def test_a_part_that_the_rules_forget_is_named(place, monkeypatch):
    tensors = plugins_rules(place[1]).tensors

    def forgetful(self, tokens):
        return [one for one in tensors(self, tokens) if one.name != "vis.bias"]

    monkeypatch.setattr(plugins_rules(place[1]), "tensors", forgetful)
    with pytest.raises(CheckpointError) as told:
        give_back(place)
    assert "model in the format 'toy_release' does not fit: 1 of our model without a place in" in (
        str(told.value)
    )
    assert "backbone.vision.bias [4]" in str(told.value)


def plugins_rules(plugins: Plugins):
    return plugins.factory(plugins.spec("weights", "toy_backbone"))


def test_a_folder_with_something_in_it_is_not_touched(place):
    with pytest.raises(UsageError, match="release is not empty; name another folder"):
        give_back(place, output="release")


def test_a_full_disk_leaves_nothing_behind(place, monkeypatch):
    def full(self, published):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plugins_rules(place[1]), "write_files", full)
    with pytest.raises(CheckpointError, match=r"cannot save .*back: .*No space left.*untouched"):
        give_back(place)
    assert not (place[0] / "back").exists()
    assert not list(place[0].glob(".*"))


def test_a_base_llm_that_lies_apart_is_not_written(tmp_path):
    plugins = plugins_of(tmp_path)
    empty = tiny.TinyBackbone(tiny.TinyOptions(width=WIDTH)).state_dict()
    names = {name: name.replace("connector", "up") for name in empty}
    apart = [name for name in empty if not name.startswith(("vision", "connector"))]
    toy.write_table(tmp_path / "llm")
    toy.save({name: empty[name] for name in apart}, tmp_path / "llm" / "model.safetensors")
    toy.write_table(tmp_path / "own")
    own = {f"stage.{names[n]}": t for n, t in empty.items() if n not in apart}
    toy.save(own, tmp_path / "own" / "model.safetensors")
    take_in(tmp_path, plugins, "own", "model", llm=tmp_path / "llm")
    back, report = give_back((tmp_path, plugins), format="toy_stage")
    assert load_file(back / "model.safetensors").keys() == own.keys()
    assert {row.state for row in report.tensors} == {"written", "left out"}
    again = take_in(tmp_path, plugins, "back", "again", llm=tmp_path / "llm")
    assert files_of(again) == files_of(tmp_path / "model")


def test_the_command_writes_what_the_function_writes(place, capsys):
    folder, _ = place
    expected = files_of(give_back(place)[0])
    assert recipe_of(folder / "model")["registry"] == str(folder / "registry.yaml")
    arguments = ["--format", "toy_release", "--report", f"{folder / 'report.json'}"]
    place_of = ["--output", f"{folder / 'by_command'}"]
    with pytest.raises(SystemExit) as left:
        main(["weights", "export", f"{folder / 'model'}", *place_of, *arguments])
    assert left.value.code == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == f"the files are in {folder / 'by_command'}"
    assert files_of(folder / "by_command") == expected
    assert json.loads((folder / "report.json").read_text())["states"]["kept"]["tensors"] == 3
