"""Published weights become a model: each number in its place, or nothing at all."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.core.training.small_runs import python
from tests.core.weights import toy
from tests.core.weights.releases import (
    WIDTH,
    files_of,
    plugins_of,
    recipe_of,
    release,
    saved,
    write_index,
    write_release,
)
from tests.forked import forked
from tpokit import CheckpointError, UsageError, load_model
from tpokit.cli import main
from tpokit.weights.filling import NumberFormats, fill
from tpokit.weights.importing import ImportOptions, check_weights, import_weights
from tpokit.weights.sources import Source

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def place(tmp_path):
    """A folder with a release, and the plugins that know it."""
    tensors = release()
    write_release(tmp_path / "release", tensors)
    return tmp_path, tensors, plugins_of(tmp_path)


def imported(place, source="release", **options):
    folder, _, plugins = place
    asked = ImportOptions(registry=folder / "registry.yaml", **options)
    report = import_weights(folder / source, folder / "model", asked, plugins)
    return folder / "model", report


def test_every_number_is_in_its_place(place):
    folder, report = imported(place)
    theirs = place[1]
    model = load_model(folder, place[2])
    ours = dict(model.named_parameters())
    llm = "backbone.layers.1."
    assert torch.equal(ours["backbone.table.weight"], theirs["lm.embed.weight"][:24])
    assert torch.equal(ours["backbone.vision.weight"], theirs["vis.weight"])
    fused = theirs["lm.layers.1.qkv"].chunk(3)
    assert torch.equal(ours[f"{llm}query.base_layer.weight"], fused[0])
    assert torch.equal(ours[f"{llm}key.weight"], fused[1])
    assert torch.equal(ours[f"{llm}value.weight"], fused[2])
    assert torch.equal(ours[f"{llm}query.lora_B.default.weight"], theirs["lm.layers.1.lora_B"])
    assert torch.equal(model.head("mass").inner.weight, theirs["mass.inner.weight"])
    assert torch.equal(model.head("mass").offset, theirs["mass.offset"])
    assert torch.equal(model.head("mass").extra["extra"], theirs["mass.extra"])
    triggers, slots = [24, 26], ("mass_slot_token", "point_x_token", "point_y_token")
    rows = [theirs["lm.embed.weight"][triggers], *(theirs[name][0] for name in slots)]
    assert torch.equal(model.bridge.input.weight, torch.cat(rows))
    base, adapters = theirs["lm.head.base.weight"], theirs["lm.head.lora_B"]
    total = base + toy.SCALE * adapters @ theirs["lm.head.lora_A"]
    torch.testing.assert_close(model.bridge.output.weight, total[triggers])
    assert torch.equal(ours["backbone.words.base_layer.weight"], base[:24])
    assert report.faults == {}
    assert report.bytes == sum(t.nbytes for t in theirs.values())


def test_the_folder_holds_a_model_that_says_how_it_is_built(place):
    folder, _ = imported(place)
    assert set(files_of(folder)) == {
        "backbone/options.json",
        "backbone/weights.safetensors",
        "bridge.safetensors",
        "extra.safetensors",
        "llm-lora.safetensors",
        "mass.safetensors",
        "model.json",
        "point.safetensors",
        "recipe.yaml",
        "unused.safetensors",
    }
    recipe = recipe_of(folder)
    assert recipe["lora"] == {"rank": 2, "alpha": 4.0, "dropout": 0.1}
    assert recipe["heads"]["mass"]["options"]["extra"] == "extra.safetensors"
    assert recipe["backbone"]["options"]["model"] == "backbone"
    assert recipe["backbone"]["options"]["weights"] == "pretrained"
    assert "stages" not in recipe
    assert "data" not in recipe
    assert json.loads((folder / "import.json").read_text())["format"] == "toy_release"


def test_what_is_not_used_is_kept_under_its_name(place):
    folder, report = imported(place)
    kept, theirs = saved(folder, "unused"), place[1]
    assert torch.equal(kept["old.proj"], theirs["old.proj"])
    assert torch.equal(kept["ids"], theirs["ids"])
    assert torch.equal(kept["lm.embed.weight[25:26]"], theirs["lm.embed.weight"][25:26])
    assert torch.equal(kept["lm.head.lora_B[27:30]"], theirs["lm.head.lora_B"][27:30])
    rows = {row.name: row for row in report.tensors}
    assert (rows["old.proj"].state, rows["old.proj"].reason) == (
        "unused",
        "the release never uses it",
    )
    assert rows["lm.embed.weight"].state == "placed in part"
    assert rows["lm.embed.weight"].parts == ("bridge", "llm")
    assert rows["mass.extra"].parts == ("extra.safetensors",)
    assert "added to bridge.output.weight[0:1]" in rows["lm.head.lora_A"].places


def test_adapters_can_be_merged(place):
    kept = load_model(imported(place)[0], place[2])
    folder = place[0] / "merged"
    options = ImportOptions(merge_lora=True, registry=place[0] / "registry.yaml")
    import_weights(place[0] / "release", folder, options, place[2])
    merged = load_model(folder, place[2])
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    hidden = torch.randn(3, WIDTH)
    torch.testing.assert_close(merged.backbone.logits(hidden), kept.backbone.logits(hidden))
    query, other = merged.backbone.layers[0].query, kept.backbone.layers[0].query
    torch.testing.assert_close(query(hidden), other(hidden))
    assert not (folder / "llm-lora.safetensors").exists()


def test_a_model_can_be_moved_and_needs_neither_the_release_nor_its_place(place):
    folder, _ = imported(place)
    expected = {name: p.clone() for name, p in load_model(folder, place[2]).named_parameters()}
    moved = folder.rename(place[0] / "elsewhere")
    (place[0] / "release" / "model.safetensors").unlink()
    found = dict(load_model(moved, place[2]).named_parameters())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_head_can_be_left_out_and_its_tensors_are_kept(place):
    folder, report = imported(place, without=("mass",))
    model = load_model(folder, place[2])
    assert list(model.heads) == ["point"]
    assert model.tokens.triggers == ("<point_begin>",)
    kept = saved(folder, "unused")
    assert torch.equal(kept["mass.inner.weight"], place[1]["mass.inner.weight"])
    assert torch.equal(kept["lm.embed.weight[24:26]"], place[1]["lm.embed.weight"][24:26])
    reasons = {row.name: row.reason for row in report.tensors}
    assert reasons["mass_slot_token"] == "the head of mass was left out"
    assert not (folder / "extra.safetensors").exists()
    with pytest.raises(UsageError, match=r"--without mas: the files hold no such head; did you"):
        check_weights(place[0] / "release", ImportOptions(without=("mas",)), place[2])


def test_files_without_a_head_give_a_model_without_it(place):
    folder, tensors, _ = place
    fewer = {n: t for n, t in tensors.items() if not n.startswith(("mass", "point"))}
    write_release(folder / "bare", fewer)
    model = load_model(imported(place, "bare")[0], place[2])
    assert list(model.heads) == []
    assert model.bridge.input.weight.shape == (0, WIDTH)


# ---- number formats ----


def test_a_backbone_keeps_the_published_number_format_and_the_rest_is_float32(place):
    folder, _, plugins = place
    write_release(folder / "half", release(torch.bfloat16))
    model, _ = imported(place, "half")
    assert {t.dtype for t in load_file(model / "backbone" / "weights.safetensors").values()} == {
        torch.bfloat16
    }
    assert {t.dtype for t in saved(model, "llm-lora").values()} == {torch.bfloat16}
    assert {t.dtype for t in saved(model, "extra").values()} == {torch.bfloat16}
    for file in ("bridge", "mass", "point"):
        assert {t.dtype for t in saved(model, file).values()} == {torch.float32}
    half = release(torch.bfloat16)
    row = half["lm.head.base.weight"][24].float() + toy.SCALE * (
        half["lm.head.lora_B"][24].float() @ half["lm.head.lora_A"].float()
    )
    torch.testing.assert_close(saved(model, "bridge")["bridge.output.weight"][0], row)
    assert load_model(model, plugins).backbone.table.weight.dtype == torch.bfloat16


def test_a_number_format_can_be_asked_for(place):
    model, _ = imported(place, dtype="bfloat16")
    weights = load_file(model / "backbone" / "weights.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert saved(model, "bridge")["bridge.input.weight"].dtype == torch.float32
    with pytest.raises(UsageError, match="'int8' is no floating-point type"):
        import_weights(place[0] / "release", place[0] / "x", ImportOptions(dtype="int8"))


def test_a_tensor_that_would_lose_by_the_usual_format_stays_as_it_was_published(place):
    folder, tensors, _ = place
    mixed = {
        name: tensor.bfloat16() for name, tensor in tensors.items() if tensor.is_floating_point()
    }
    mixed = {**tensors, **mixed}
    mixed["vis.bias"] = torch.full((4,), 1 / 3)
    mixed["up.bias"] = torch.ones(2 * WIDTH)
    write_release(folder / "mixed", mixed)
    weights = load_file(imported(place, "mixed")[0] / "backbone" / "weights.safetensors")
    assert weights["vision.bias"].dtype == torch.float32
    assert weights["connector.bias"].dtype == torch.bfloat16  # ones are exact in it


# ---- other sources ----


def test_shards_give_what_one_file_gives(place):
    folder, tensors, plugins = place
    whole = files_of(imported(place)[0])
    write_index(folder / "sharded", write_release(folder / "sharded", tensors, SHARDS))
    options = ImportOptions(registry=folder / "registry.yaml")
    import_weights(folder / "sharded", folder / "again", options, plugins)
    assert files_of(folder / "again") == whole
    (folder / "sharded" / "model.safetensors.index.json").unlink()
    import_weights(folder / "sharded", folder / "loose", options, plugins)
    assert files_of(folder / "loose") == whole


def test_a_base_llm_comes_from_a_folder_of_its_own(place):
    folder, _, plugins = place
    rules = toy.StageRules(WIDTH)
    own, llm = {}, {}
    for one in rules.tensors(None):
        numbers = torch.randn(one.shape)
        apart = one.name.startswith("llm::")
        (llm if apart else own)[one.name.removeprefix("llm::")] = numbers
    (folder / "stage").mkdir()
    torch.save({"epoch": 3, "model": own}, folder / "stage" / "stage.pth")
    toy.write_table(folder / "llm")
    toy.save(llm, folder / "llm" / "model.safetensors")
    with pytest.raises(CheckpointError, match="give the base LLM by --llm"):
        imported(place, "stage/stage.pth", weights_only=True)
    model, report = imported(place, "stage", weights_only=True, llm=folder / "llm")
    found = load_model(model, plugins).backbone
    assert torch.equal(found.connector.weight, own["stage.up.weight"])
    assert torch.equal(found.words.weight, llm["words.weight"])
    assert {row.name for row in report.groups()} >= {"llm::words", "stage"}


# ---- what is refused ----


def test_all_that_does_not_fit_is_one_message(place):
    folder, tensors, _ = place
    wrong = dict(tensors)
    del wrong["vis.weight"], wrong["lm.layers.0.qkv"], wrong["ids"]
    wrong["strange"] = torch.zeros(2, 3)
    wrong["up.bias"] = torch.zeros(7)
    write_release(folder / "wrong", wrong)
    report = folder / "report.json"
    with pytest.raises(CheckpointError) as told:
        imported(place, "wrong", report=report)
    text = str(told.value)
    assert "wrong, of the format 'toy_release', does not fit: " in text
    assert "2 missing: lm.layers.0.qkv [48, 16], vis.weight [4, 1]" in text
    assert "1 unexpected: strange [2, 3]" in text
    assert "1 of another shape: up.bias: it is [7] and should be [32]" in text
    assert "4 of our model left empty: " in text
    assert text.count("ids") == 0  # files may lack it
    assert "\n" not in text
    assert not (folder / "model").exists()
    assert not list(folder.glob(".*"))
    listed = json.loads(report.read_text())
    assert listed["states"]["missing"]["tensors"] == 2
    assert {"name": "strange", "state": "unexpected"}.items() <= next(
        row for row in listed["tensors"] if row["name"] == "strange"
    ).items()


def test_another_vocabulary_is_said_by_the_rules(place):
    folder, tensors, _ = place
    bigger = {**tensors, "lm.embed.weight": torch.zeros(40, WIDTH)}
    write_release(folder / "bigger", bigger)
    with pytest.raises(
        CheckpointError, match=r"lm\.embed\.weight has 40 words; the release has 30"
    ):
        imported(place, "bigger")
    assert not (folder / "model").exists()


def test_files_of_no_known_format_are_refused_with_the_formats(place):
    folder, _, _ = place
    write_release(folder / "other", {"a": torch.zeros(2)})
    with pytest.raises(UsageError) as told:
        imported(place, "other")
    assert "the 1 tensors are not of any format that is known" in str(told.value)
    assert "toy_release, toy_stage" in str(told.value)
    with pytest.raises(UsageError, match="not of the format 'toy_stage'"):
        imported(place, format="toy_stage")
    with pytest.raises(UsageError, match=r"no format 'toy_relase'; did you mean 'toy_release'\?"):
        imported(place, format="toy_relase")


def test_files_that_could_be_of_two_formats_need_a_word(place):
    folder, tensors, _ = place
    both = {**tensors, "stage.up.weight": torch.zeros(2, 2), "llm::table.weight": torch.zeros(1)}
    write_release(folder / "both", both)
    with pytest.raises(UsageError, match="toy_release and toy_stage; say which by --format"):
        imported(place, "both")


def test_a_missing_description_stops_before_numbers_are_read(place):
    folder, _, _ = place
    (folder / "release" / toy.SIZES).unlink()
    with pytest.raises(CheckpointError, match=f"has no {toy.SIZES}"):
        imported(place)
    assert not (folder / "model").exists()


def test_a_folder_with_something_in_it_is_not_touched(place):
    (place[0] / "model").mkdir()
    (place[0] / "model" / "note").write_text("mine")
    with pytest.raises(UsageError, match="model is not empty; name another folder"):
        imported(place)
    assert (place[0] / "model" / "note").read_text() == "mine"


def test_a_backbone_that_does_not_load_as_it_was_saved_leaves_nothing_behind(place, monkeypatch):
    from tests.core.training.tiny import TinyBackbone

    save = TinyBackbone.save

    def careless(self, folder):
        self.vision.bias.data[0] += 1
        save(self, folder)

    monkeypatch.setattr(TinyBackbone, "save", careless)
    with pytest.raises(CheckpointError, match=r"backbone\.vision\.bias does not load as it was"):
        imported(place)
    assert not (place[0] / "model").exists()
    assert not list(place[0].glob(".*"))


def test_a_full_disk_leaves_nothing_behind(place, monkeypatch):
    from tests.core.training.tiny import TinyBackbone

    def full(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TinyBackbone, "save", full)
    with pytest.raises(CheckpointError, match=r"cannot save .*model: .*No space left.*untouched"):
        imported(place)
    assert not (place[0] / "model").exists()
    assert not list(place[0].glob(".*"))


# ---- how much is read ----


class Counting(Source):
    """A source that remembers what was asked of it and how much was held at once."""

    def __init__(self, inner):
        super().__init__(inner.origin, inner.folder, inner.tensors)
        self.inner = inner
        self.asked = []

    def read(self, name, rows=None):
        tensor = self.inner.read(name, rows)
        self.asked.append((name, tensor.untyped_storage().nbytes()))
        return tensor


def test_numbers_are_read_once_and_in_pieces_no_larger_than_a_tensor(place):
    from tpokit.weights.importing import _open, _plan

    folder, tensors, plugins = place
    options = ImportOptions(registry=folder / "registry.yaml")
    (folder / "partial").mkdir()
    source = Counting(_open(folder / "release", options))
    plan = _plan(source, options, plugins, folder / "partial")
    assert source.asked == []  # the comparison needs names and shapes only
    formats = NumberFormats(source, plan.published, None)
    fill(source, plan.published, plan.added, plan.ours, formats)
    assert all(size <= tensors[name].nbytes for name, size in source.asked)
    read = sum(size for name, size in source.asked if not name.startswith("lm.head.lora"))
    assert read <= sum(tensor.nbytes for tensor in tensors.values())


# ---- dry runs and the command line ----


def test_a_dry_run_needs_a_listing_only_and_writes_nothing(place):
    folder, tensors, plugins = place
    listing = {
        "dtype": "bfloat16, except ids (int64) and box_ids (int64)",
        "tensors": {name: [list(t.shape), 1] for name, t in tensors.items()},
    }
    (folder / "release" / "listing.json").write_text(json.dumps(listing))
    before = files_of(folder)
    report = check_weights(
        folder / "release" / "listing.json",
        ImportOptions(registry=folder / "registry.yaml"),
        plugins,
    )
    expected = sum(t.numel() * (2 if t.is_floating_point() else 8) for t in tensors.values())
    assert (report.bytes, report.faults) == (expected, {})
    assert files_of(folder) == before
    with pytest.raises(UsageError, match="it will do for --dry-run"):
        imported(place, "release/listing.json")


def test_the_command_says_where_everything_went(place):
    folder, tensors, _ = place
    done = forked(
        "-m", "tpokit", "weights", "import", folder / "release", "--output", folder / "model",
        "--registry", folder / "registry.yaml", "--report", folder / "report.json",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == f"the model is in {folder / 'model'}"
    assert any("old" in line and "the release never uses it" in line for line in lines)
    count = f"{len(tensors)}"
    assert any(line.startswith("in all") and count in line for line in lines)
    assert json.loads((folder / "report.json").read_text())["faults"] == {}
    assert load_model(folder / "model", place[2]).tokens.triggers == (
        "<mass_begin>",
        "<point_begin>",
    )


def test_the_command_fails_with_one_line(place, capsys):
    folder, _, _ = place
    path = folder / "release" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SystemExit) as left:
        main(["weights", "import", f"{folder / 'release'}", "--output", f"{folder / 'model'}"])
    assert left.value.code == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith(f"CheckpointError: {path} is not whole or no safetensors file")
    assert not (folder / "model").exists()


def test_a_command_without_a_folder_to_write_is_asked_wrongly(place):
    done = python("-m", "tpokit", "weights", "import", place[0] / "release")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--output is missing" in done.stderr
