"""What is installed is what is in the tree, and what the README says is there."""

import configparser
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tpokit.plugins import Plugins
from tpokit.recipe import open_recipe
from tpokit.registry import SECTIONS

ROOT = Path(__file__).parent.parent
TOPS = {
    "tpokit": "core/tpokit",
    "tpokit_mask": "heads/tpokit_mask",
    "tpokit_region": "heads/tpokit_region",
    "tpokit_temporal": "heads/tpokit_temporal",
    "tpokit_jsonl": "plugins/tpokit_jsonl",
    "tpokit_llava_onevision": "plugins/tpokit_llava_onevision",
    "tpokit_shapes_world": "plugins/tpokit_shapes_world",
}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(folder),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_has_every_module_and_every_data_file(wheel_names):
    for package, folder in TOPS.items():
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            if path.is_dir() or "__pycache__" in inside.parts:
                continue
            assert f"{package}/{inside.as_posix()}" in wheel_names


def test_the_pretrained_base_is_small_enough_to_ship():
    base = ROOT / TOPS["tpokit_shapes_world"] / "base"
    assert (base / "model.safetensors").stat().st_size <= 5_000_000


def test_every_extra_of_the_contract_is_there():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert set(config["options.extras_require"]) == {
        "mask",
        "deepspeed",
        "demo",
        "all",
        "test",
        "docs",
    }


def test_the_registry_lists_what_ships():
    listed = yaml.safe_load((ROOT / "registry.yaml").read_text())
    rows = Plugins.load().rows()
    ours = {(row.kind, row.name) for row in rows if row.provided_by.startswith("tpokit")}
    named = {(kind, name) for section, kind in SECTIONS.items() for name in listed[section]}
    assert named == ours
    assert all(row.state == "ready" for row in rows)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_every_example_is_a_good_recipe(path):
    recipe, _ = open_recipe(path)
    assert recipe.stages


def test_the_first_screen_of_the_readme_names_the_method_and_has_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "Task Preference Optimization" in text.splitlines()[0]
    commands = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert "tpokit train examples/quickstart.yaml" in commands[0]
    assert "python -m pytest" in commands[1]
    for command in commands:
        for named in re.findall(r"examples/[\w./]+", command):
            assert (ROOT / named).exists(), named


def test_no_file_names_a_machine():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not files:
        files = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")]
    for name in files:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".cfg", ".toml", ".json"} and path.is_file():
            found = re.search(r"(?<![\w.])/(root|home/\w+|opt)/", path.read_text())
            assert found is None, f"{name}: {found}"
