"""What may import what, what loads when, and what is documented."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tpokit
from tests.core.test_recipe import PLAIN
from tpokit import hookspecs
from tpokit.discovery import HOOKS
from tpokit.plugins import Plugins

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "tpokit"
OFFERED = [folder for kind in ("heads", "plugins") for folder in sorted((ROOT / kind).iterdir())]
PACKAGES = [folder for folder in OFFERED if (folder / "__init__.py").is_file()]
# The contracts, and tools that heads share; all else of core may move without notice.
PUBLIC_MODULES = {
    "tpokit.answers",
    "tpokit.attention",
    "tpokit.batch",
    "tpokit.connectors",
    "tpokit.data.boxes",
    "tpokit.data.content",
    "tpokit.data.feature_cache",
    "tpokit.data.frame_folder",
    "tpokit.data.lines",
    "tpokit.data.places",
    "tpokit.data.stream",
    "tpokit.errors",
    "tpokit.geometry",
    "tpokit.interfaces",
    "tpokit.layers",
    "tpokit.options",
    "tpokit.pretrained",
    "tpokit.reporting.canvas",
    "tpokit.tokens",
    "tpokit.types",
}
# Lower layers first; a file imports only what stands in its own layer or above.
LAYERS = [
    {"errors", "near_misses"},
    {
        "tokens",
        "specs",
        "hookspecs",
        "options",
        "geometry",
        "strict_yaml",
        "problems",
        "atomic",
        "pretrained",
        "packing",
    },
    {"types", "batch", "offers", "registry"},
    {"answers", "attention", "interfaces", "discovery", "layers", "losses"},
    {"plugins", "bridge", "lora", "connectors"},
    {
        "model",
        "variants",
        "recipe_values",
        "recipe_mix",
        "recipe_schema",
        "recipe_files",
        "recipe_checks",
        "recipe",
    },
    {"parts", "data", "reporting"},
    {"checkpoints"},
    {"weights"},
    {"inference"},
    {"evaluation"},
    {"training"},
    {"cli"},
    {"__main__"},
]
ONLY_IN = {
    "peft": {"lora.py"},
    "deepspeed": {"training/arguments.py"},
    "rich": {"reporting/console.py", "reporting/progress.py"},
    "typer": {"cli"},
    "pluggy": {"hookspecs.py", "discovery.py"},
}


def sources(folder):
    return sorted(folder.rglob("*.py"))


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Full names of what a file imports; for names taken from a package both forms."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def for_types_only(tree):
    """Nodes under ``if TYPE_CHECKING``; they load nothing."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_core_imports_neither_a_head_nor_a_plugin(path):
    strangers = {package.name for package in PACKAGES}
    assert not {name.split(".")[0] for name in imports(path)} & strangers


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_imports_inside_core_point_one_way(path):
    def layer(name):
        found = [index for index, names in enumerate(LAYERS) if name in names]
        assert len(found) == 1, f"{name} has no layer; give it one in this test"
        return found[0]

    if path == CORE / "__init__.py":
        return
    own = path.relative_to(CORE).with_suffix("").parts[0]
    tree = tree_of(path)
    hidden = for_types_only(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node in hidden:
            continue
        parts = (node.module or "").split(".")
        if parts[0] == "tpokit" and len(parts) > 1:
            assert layer(parts[1]) <= layer(own), f"{path} imports {node.module}"


def test_every_layer_names_files_that_exist():
    there = {path.stem for path in CORE.glob("*.py")} | {
        p.name for p in CORE.iterdir() if p.is_dir()
    }
    there -= {"__init__", "__pycache__"}
    assert set().union(*LAYERS) == there


def task_words():
    """Names that belong to plugins: of tasks, heads, backbones, sources, and of their packages."""
    rows = [row for row in Plugins.load().rows() if row.provided_by == "tpokit"]
    words = {row.name for row in rows if row.kind != "source" or "_" in row.name}
    words |= {package.name for package in PACKAGES}
    return words | {"region", "temporal", "mask_head", "videochat2", "llava", "refcoco", "sam2"}


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(CORE)))
def test_core_names_no_task_and_no_backbone(path):
    tree = tree_of(path)
    prose = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    words = task_words()
    # "mask" is also the field's word for what attention looks at; as a text it would be the task
    ordinary = {"mask"}
    for node in ast.walk(tree):
        named = None
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            named = node.value
        elif isinstance(node, ast.Name):
            named = node.id
        elif isinstance(node, ast.Attribute):
            named = node.attr
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            named = node.name
        elif isinstance(node, (ast.arg, ast.keyword)):
            named = node.arg
        if named is not None:
            taken = words if isinstance(node, ast.Constant) else words - ordinary
            assert not {part.strip("<>.,'\"").lower() for part in named.split()} & taken, named


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_in_its_own_place_only(library):
    allowed = {CORE / place for place in ONLY_IN[library]}
    for path in [*sources(CORE), *(path for package in PACKAGES for path in sources(package))]:
        if library in {name.split(".")[0] for name in imports(path)}:
            assert allowed & {path, *path.parents}, f"{path} imports {library}"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_plugin_uses_public_names_of_core_only(package):
    for path in sources(package):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tpokit":
                public = node.module in PUBLIC_MODULES or all(
                    node.module == "tpokit"
                    and (alias.name in tpokit.__all__ or f"tpokit.{alias.name}" in PUBLIC_MODULES)
                    for alias in node.names
                )
                assert public, f"{path}:{node.lineno} {ast.unparse(node)}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    inside = alias.name.startswith("tpokit.")
                    assert not inside or alias.name in PUBLIC_MODULES, f"{path}:{node.lineno}"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_plugins_do_not_import_each_other(package):
    others = {other.name for other in PACKAGES} - {package.name}
    for path in sources(package):
        assert not {name.split(".")[0] for name in imports(path)} & others, path


@pytest.mark.parametrize(
    "arguments", [None, ["--help"], ["plugins"], ["recipe", "check", "recipe.json"]], ids=str
)
def test_what_is_light_does_not_load_torch(arguments, tmp_path):
    import json

    (tmp_path / "recipe.json").write_text(json.dumps(PLAIN))  # JSON is YAML
    body = "import tpokit" if arguments is None else f"tpokit.cli.main({arguments!r})"
    code = (
        f"import sys, tpokit{'' if arguments is None else ', tpokit.cli'}\n"
        f"try:\n    {body}\nexcept SystemExit as leaving:\n    assert not leaving.code\n"
        "assert not {'torch', 'transformers', 'peft', 'deepspeed'} & set(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_public_names_are_sorted_and_there():
    assert tpokit.__all__ == sorted(tpokit.__all__)
    assert len(set(tpokit.__all__)) == len(tpokit.__all__)
    for name in tpokit.__all__:
        assert getattr(tpokit, name) is not None


def test_every_lazy_name_is_public_and_typed():
    tree = tree_of(CORE / "__init__.py")
    typed = {
        alias.name
        for node in for_types_only(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(tpokit._LAZY) == typed
    assert set(tpokit._LAZY) <= set(tpokit.__all__)


def hooks():
    return {
        name: function
        for name, function in vars(hookspecs).items()
        if name.startswith("tpokit_") and inspect.isfunction(function)
    }


def test_every_hook_is_called():
    assert list(HOOKS) == list(hooks())


@pytest.mark.parametrize("name", hooks())
def test_every_hook_is_documented_with_its_signature(name):
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    assert f"\n### `{name}{inspect.signature(hooks()[name])}`\n".replace("'", "") in page


@pytest.mark.parametrize("name", hooks())
def test_a_plugin_that_ships_uses_every_hook(name):
    for package in PACKAGES:
        if hasattr(importlib.import_module(package.name), name):
            return
    pytest.fail(f"no plugin of ours implements {name}")
