"""Files of published weights: what is in them, and what is wrong with them."""

import json
import pickle

import pytest
import torch

from tests.core.weights import toy
from tests.core.weights.releases import write_index
from tpokit import CheckpointError, UsageError
from tpokit.weights.reading import open_source

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TENSORS = {
    "a": torch.arange(12.0).reshape(4, 3),
    "b": torch.tensor(7),
    "c": torch.ones(2, dtype=torch.bfloat16),
}


@pytest.fixture
def sharded(tmp_path):
    toy.save({"a": TENSORS["a"]}, tmp_path / ONE)
    toy.save({"b": TENSORS["b"], "c": TENSORS["c"]}, tmp_path / TWO)
    write_index(tmp_path, {"a": ONE, "b": TWO, "c": TWO})
    return tmp_path


def listed(source):
    return {name: (info.shape, info.dtype, info.file) for name, info in source.tensors.items()}


@pytest.mark.parametrize("opened", ["", "model.safetensors.index.json"])
def test_an_index_is_read_by_folder_or_by_name(sharded, opened):
    source = open_source(sharded / opened)
    assert listed(source) == {
        "a": ((4, 3), torch.float32, ONE),
        "b": ((), torch.int64, TWO),
        "c": ((2,), torch.bfloat16, TWO),
    }
    assert source.folder == sharded
    assert sum(info.bytes for info in source.tensors.values()) == 48 + 8 + 4
    for name, tensor in TENSORS.items():
        assert torch.equal(source.read(name), tensor)
    assert torch.equal(source.read("a", (1, 3)), TENSORS["a"][1:3])


def test_what_is_read_holds_no_more_memory_than_it_has_numbers(sharded):
    source = open_source(sharded)
    assert source.read("a").untyped_storage().nbytes() == 48
    assert source.read("a", (1, 2)).untyped_storage().nbytes() == 12


def test_one_file_and_several_without_an_index_do(sharded):
    assert set(open_source(sharded / TWO).tensors) == {"b", "c"}
    (sharded / "model.safetensors.index.json").unlink()
    assert listed(open_source(sharded))["c"][2] == TWO
    (sharded / "training_args.bin").write_bytes(b"anything")
    (sharded / "model.pth").write_bytes(b"anything")  # safetensors are preferred
    assert set(open_source(sharded).tensors) == {"a", "b", "c"}
    toy.save({"d": TENSORS["a"]}, sharded / "model.safetensors")  # by its name a whole model
    assert set(open_source(sharded).tensors) == {"d"}


def test_a_missing_shard_is_named_with_what_is_lost(sharded):
    (sharded / TWO).unlink()
    with pytest.raises(CheckpointError) as told:
        open_source(sharded)
    assert f"files are missing that model.safetensors.index.json names: {TWO} (2 tensors)" in str(
        told.value
    )
    assert "of 3 tensors in 2 files" in str(told.value)


@pytest.mark.parametrize("left", [-5, 30, 4, 0])
def test_a_truncated_file_is_named(sharded, left):
    path = sharded / TWO
    content = path.read_bytes()[:left]
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as told:
        open_source(sharded)
    assert f"{path} is not whole or no safetensors file" in str(told.value)
    assert f"it has {len(content)} bytes; copy or download it again" in str(told.value)


def test_an_index_that_names_what_is_not_there_is_refused_both_ways(sharded):
    write_index(sharded, {"a": TWO, "b": TWO, "d": ONE})
    with pytest.raises(CheckpointError) as told:
        open_source(sharded)
    assert "2 tensors are not in the files that it names for them: a, d" in str(told.value)
    assert "1 tensors are in the files and not in it: c" in str(told.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_broken_index_is_refused(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="is no index of weights"):
        open_source(sharded)


def test_two_indices_need_a_choice(sharded):
    (sharded / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(UsageError, match=r"has several indices, model.*; give one of them"):
        open_source(sharded)


def test_a_name_in_two_files_is_refused(tmp_path):
    for name in ("one", "two"):
        toy.save({"a": TENSORS["a"]}, tmp_path / f"{name}.safetensors")
    with pytest.raises(
        CheckpointError, match=r"1 tensors are in two files, a in one\.safet.* and two"
    ):
        open_source(tmp_path)


def test_a_number_format_that_torch_has_not_is_named(tmp_path):
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(CheckpointError, match=r"odd\.safetensors"):
        open_source(path)


# ---- pickles ----


@pytest.mark.parametrize("name", ["model.bin", "model.pth", "model.pt"])
def test_a_pickle_is_refused_unless_only_tensors_are_read(tmp_path, name):
    torch.save({"a": TENSORS["a"]}, tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UsageError) as told:
            open_source(path)
        assert f"{name} is a pickle, which can run any code while it is read" in str(told.value)
        assert "--weights-only" in str(told.value)
        source = open_source(path, weights_only=True)
        assert torch.equal(source.read("a", (2, 4)), TENSORS["a"][2:4])


@pytest.mark.parametrize("key", ["model", "module", "state_dict"])
def test_tensors_of_a_pickle_may_lie_one_step_deeper(tmp_path, key):
    torch.save({"epoch": 3, key: TENSORS}, tmp_path / "model.pth")
    source = open_source(tmp_path, weights_only=True)
    assert listed(source)["c"] == ((2,), torch.bfloat16, "model.pth")


def test_a_pickle_of_an_old_torch_is_read(tmp_path):
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    source = open_source(tmp_path, weights_only=True)
    assert torch.equal(source.read("a"), TENSORS["a"])


def test_an_index_of_pickles_is_read(tmp_path):
    torch.save({"a": TENSORS["a"]}, tmp_path / "pytorch_model-1.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"pytorch_model-1\.bin is a pickle"):
        open_source(tmp_path)
    assert set(open_source(tmp_path, weights_only=True).tensors) == {"a"}


class _Trap:
    def __reduce__(self):
        return print, ("code of a pickle ran",)


def test_a_pickle_that_holds_code_is_refused_and_the_code_does_not_run(tmp_path, capsys):
    path = tmp_path / "model.bin"
    path.write_bytes(pickle.dumps({"a": _Trap()}, protocol=2))
    with pytest.raises(
        CheckpointError, match=r"model\.bin is not whole or holds more than tensors"
    ):
        open_source(path, weights_only=True)
    assert capsys.readouterr().out == ""


def test_a_truncated_pickle_is_named(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        CheckpointError, match=r"model\.pth is not whole or holds more than tensors"
    ):
        open_source(path, weights_only=True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"epoch": 3}, "'epoch' is a int"),
        ([TENSORS["a"]], "it is a list"),
        ({}, "it is empty"),
        ({"model": {"a": TENSORS["a"], "step": 3}}, "'step' is a int"),
    ],
)
def test_a_pickle_without_a_model_is_no_checkpoint(tmp_path, content, reason):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError) as told:
        open_source(tmp_path, weights_only=True)
    assert f"model.pth is no checkpoint, names with tensors: {reason}" in str(told.value)


# ---- what is no checkpoint ----


def test_what_is_no_checkpoint_is_said(tmp_path):
    (tmp_path / "notes.txt").write_text("a note")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UsageError, match=r"notes\.txt is no checkpoint by its name; give a folder"):
        open_source(tmp_path / "notes.txt")
    with pytest.raises(UsageError, match=r"has no weights: no \*\.safetensors and no \*\.bin"):
        open_source(tmp_path)
    with pytest.raises(UsageError, match="there is no file or folder"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"list\.json is no listing of tensors"):
        open_source(tmp_path / "list.json", listing=True)


def test_a_listing_has_shapes_and_no_numbers(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(
        json.dumps(
            {"dtype": "bfloat16, except x.b (int64)", "tensors": {"a": [[2, 3], 1], "x.b": [[], 2]}}
        )
    )
    source = open_source(path, listing=True)
    assert listed(source) == {"a": ((2, 3), torch.bfloat16, "1"), "x.b": ((), torch.int64, "2")}
    with pytest.raises(UsageError, match="has none of them, such as a"):
        source.read("a")
