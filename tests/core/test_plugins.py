import subprocess
import sys
import time
from pathlib import Path

import pytest

from tpokit.errors import PluginError, UsageError
from tpokit.plugins import Plugins

HEAD = """
import tpokit

@tpokit.hookimpl
def tpokit_heads():
    return [
        tpokit.HeadSpec(
            name={name!r}, task={name!r}, factory="{module}:Head", terms=("l1",){more}
        )
    ]
"""


def head_code(name="depth", module="depth_plugin", more=""):
    return HEAD.format(name=name, module=module, more=more)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a one-module distribution with an entry point of our group."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def _install(package, code, version="0.3", entry=None):
        module = f"{package.replace('-', '_')}_plugin"
        (site / f"{module}.py").write_text(code)
        info = site / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        )
        (info / "entry_points.txt").write_text(f"[tpokit]\n{entry or package} = {module}\n")
        return module

    yield _install
    for path in site.glob("*.py"):
        sys.modules.pop(path.stem, None)


def row(plugins, name, kind=None):
    found = [r for r in plugins.rows() if r.name == name and kind in (None, r.kind)]
    assert len(found) == 1, found
    return found[0]


def test_what_ships_is_ready():
    plugins = Plugins.load()
    assert {r.state for r in plugins.rows() if r.provided_by == "tpokit"} == {"ready"}
    assert "region" in plugins.names("head")
    assert "llava_onevision" in plugins.names("backbone")
    assert [spec.name for spec in plugins.for_task("metric", "region")] == ["region"]


def test_the_registry_of_the_repository_lists_exactly_what_ships():
    registry = Path(__file__).parents[2] / "registry.yaml"
    from tpokit.registry import read_registry

    shipped = {(r.kind, r.name) for r in Plugins.load().rows() if r.provided_by == "tpokit"}
    assert set(read_registry(registry).wanted()) == shipped
    assert Plugins.load(registry).rows() == Plugins.load().rows()


def test_an_installed_head_is_found_with_its_version(install):
    install("depth", head_code())
    found = row(Plugins.load(), "depth")
    assert (found.kind, found.version, found.provided_by, found.state) == (
        "head",
        "0.3",
        "depth",
        "ready",
    )


def test_a_plugin_that_raises_while_it_is_imported_stops_nothing_else(install):
    install("depth", "raise RuntimeError('no such device')")
    plugins = Plugins.load()
    found = row(plugins, "depth")
    assert (found.kind, found.state) == ("plugin", "failed")
    assert found.reason == "RuntimeError: no such device"
    assert plugins.spec("head", "region").name == "region"


def test_asking_for_a_name_whose_plugin_did_not_load_says_why(install):
    install("depth", "raise RuntimeError('no such device')")
    with pytest.raises(PluginError) as caught:
        Plugins.load().spec("head", "depth")
    assert "no head named 'depth'" in str(caught.value)
    assert "plugin 'depth' of depth 0.3 did not load: RuntimeError: no such device" in str(
        caught.value
    )


def test_a_module_that_is_not_installed_is_a_need(install):
    install("depth", "import no_such_library_at_all.models")
    found = row(Plugins.load(), "depth")
    assert found.state == "needs"
    assert found.reason.startswith("`pip install no_such_library_at_all`")


def test_a_missing_module_of_its_own_is_a_failure(install):
    install("depth", "from tpokit.nowhere import x")
    assert row(Plugins.load(), "depth").state == "failed"


@pytest.mark.parametrize(
    ("more", "state", "reason"),
    [
        (', requires=("no-such-thing>=1",)', "needs", "`pip install 'no-such-thing>=1'`"),
        (
            ', requires=("numpy>=99",), install="pip install depth[np]"',
            "needs",
            "`pip install depth[np]`",
        ),
        (', requires=("numpy >>",)', "failed", "its requirement is not one"),
        (", api=2", "failed", "made for contracts 2, this tpokit has 1; update tpokit"),
        (", api=0", "failed", "made for contracts 0, this tpokit has 1; update the plugin"),
        (', losses={"a": {"l2": 1.0}}', "failed", "loss weights 'a' name no term of it: 'l2'"),
    ],
)
def test_a_spec_that_cannot_be_used_says_why(install, more, state, reason):
    install("depth", head_code(more=more))
    plugins = Plugins.load()
    found = row(plugins, "depth")
    assert found.state == state
    assert reason in found.reason
    with pytest.raises(PluginError, match=r"head 'depth' cannot be used: depth 0\.3: "):
        plugins.spec("head", "depth")


@pytest.mark.parametrize("name", ["Depth", "depth-map", ""])
def test_a_name_must_be_a_word(install, name):
    install("depth", head_code(name=name))
    found = next(r for r in Plugins.load().rows() if r.provided_by == "depth")
    assert "must fit [a-z][a-z0-9_]*" in found.reason


def test_a_task_cannot_have_the_name_of_a_part(install):
    install("depth", head_code(name="bridge"))
    assert row(Plugins.load(), "bridge").reason == "a task cannot be called 'bridge'"


def test_a_misspelt_hook_fails_only_its_plugin(install):
    install("depth", head_code().replace("tpokit_heads", "tpokit_haeds"))
    install("flow", head_code(name="flow"))
    plugins = Plugins.load()
    assert row(plugins, "depth").reason == (
        "there is no hook 'tpokit_haeds'; did you mean 'tpokit_heads'?"
    )
    assert row(plugins, "flow").state == "ready"


def test_a_hook_without_its_mark_is_found(install):
    install("depth", head_code().replace("@tpokit.hookimpl", ""))
    assert row(Plugins.load(), "depth").reason == "tpokit_heads is not marked with @tpokit.hookimpl"


def test_a_plugin_without_any_hook_is_found(install):
    install("depth", "x = 1")
    assert row(Plugins.load(), "depth").reason.startswith(
        "it has no hook; a plugin implements one of"
    )


def test_a_hook_with_an_argument_that_does_not_exist_is_found(install):
    install("depth", head_code().replace("tpokit_heads()", "tpokit_heads(config)"))
    found = row(Plugins.load(), "depth")
    assert found.state == "failed"
    assert "config" in found.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("['depth']", "tpokit_heads must return a list of HeadSpec, found 'depth' in it"),
        ("'depth'", "tpokit_heads must return a list of HeadSpec, found 'depth'"),
        ("1 / 0", "tpokit_heads raises ZeroDivisionError: division by zero"),
        (
            "[tpokit.SourceSpec(name='a', factory='b:C')]",
            "tpokit_heads must return a list of HeadSpec, found SourceSpec(",
        ),
    ],
)
def test_a_hook_that_returns_no_specs_is_found(install, answer, reason):
    install("depth", f"import tpokit\n@tpokit.hookimpl\ndef tpokit_heads():\n    return {answer}\n")
    found = row(Plugins.load(), "depth", "head")
    assert found.state == "failed"
    assert found.reason.startswith(reason)


def test_a_name_claimed_twice_shows_both_and_neither_is_used(install):
    install("depth", head_code())
    install("other", head_code())
    plugins = Plugins.load()
    rows = [r for r in plugins.rows() if r.name == "depth"]
    assert [(r.state, r.provided_by) for r in rows] == [("clash", "depth"), ("clash", "other")]
    with pytest.raises(PluginError) as caught:
        plugins.spec("head", "depth")
    assert "claimed by depth 0.3 (plugin 'depth') and other 0.3 (plugin 'other')" in str(
        caught.value
    )


def test_blocking_one_plugin_ends_a_clash(install):
    install("depth", head_code())
    install("other", head_code())
    plugins = Plugins.load(blocked=["other"])
    assert plugins.spec("head", "depth").name == "depth"
    assert row(plugins, "other").state == "blocked"


def test_a_registry_row_chooses_between_two(install, tmp_path):
    install("depth", head_code())
    install("other", head_code(more=", summary='mine'"))
    registry = tmp_path / "registry.yaml"
    registry.write_text("version: 1\nheads:\n  depth: {package: other}\n")
    plugins = Plugins.load(registry)
    assert plugins.spec("head", "depth").summary == "mine"
    lost = next(r for r in plugins.rows() if r.provided_by == "depth")
    assert lost.reason == "the registry takes this name from other 0.3"


@pytest.mark.parametrize("blocked", ["depth", "maker:depth"])
def test_a_name_can_be_blocked(install, blocked):
    install("maker", head_code())
    plugins = Plugins.load(blocked=[blocked])
    assert row(plugins, "depth").state == "blocked"
    with pytest.raises(PluginError, match=r"cannot be used: maker 0\.3: by the block list"):
        plugins.spec("head", "depth")


def test_order_does_not_depend_on_the_search_path(install):
    for package in ("zoo", "alpha", "middle"):
        install(package, head_code(name=package))
    ours = [r.name for r in Plugins.load().rows() if r.provided_by in {"zoo", "alpha", "middle"}]
    assert ours == ["alpha", "middle", "zoo"]


def test_unknown_names_get_near_misses_and_other_kinds():
    plugins = Plugins.load()
    with pytest.raises(PluginError, match=r"no head named 'regoin'; did you mean 'region'\?"):
        plugins.spec("head", "regoin")
    with pytest.raises(PluginError, match="'shapes_world' is a source"):
        plugins.spec("head", "shapes_world")


# ---- registry files

LOCAL = """
import tpokit
from tpokit import Options

class DotOptions(Options):
    size: int = 3

class Dots(tpokit.DataSource):
    Options = DotOptions
    def __init__(self, options, folder):
        self.options = options
    def __len__(self):
        return 1
    def read(self, index, random):
        return tpokit.Sample(id="0", turns=())

@tpokit.hookimpl
def tpokit_sources():
    return [tpokit.SourceSpec(name="dots", factory=":Dots", options="dots_file:DotOptions")]
"""


@pytest.mark.parametrize(
    "rows", ["plugins: [{path: dots_file.py}]", "sources: {dots: {path: dots_file.py, summary: a}}"]
)
def test_a_local_file_is_a_plugin(tmp_path, rows):
    (tmp_path / "dots_file.py").write_text(LOCAL)
    registry = tmp_path / "registry.yaml"
    registry.write_text(f"version: 1\n{rows}\n")
    before = list(sys.path)
    plugins, again = Plugins.load(registry), Plugins.load(registry)
    assert sys.path == before
    assert "dots_file" not in sys.modules
    spec = plugins.spec("source", "dots")
    made = plugins.factory(spec)(plugins.options(spec, {"size": "4"}), tmp_path)
    assert made.options.size == 4
    assert again.factory(again.spec("source", "dots")) is plugins.factory(spec)
    assert row(plugins, "dots").provided_by == "dots_file.py"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (None, "FileNotFoundError: no such file: "),
        ("def broken(:", "SyntaxError: "),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
    ],
)
def test_a_broken_local_file_is_shown_and_stops_nothing(tmp_path, code, reason):
    if code is not None:
        (tmp_path / "mine.py").write_text(code)
    registry = tmp_path / "registry.yaml"
    registry.write_text("version: 1\nheads: {mine: {path: mine.py}}\n")
    plugins = Plugins.load(registry)
    assert row(plugins, "mine", "plugin").reason.startswith(reason)
    assert row(plugins, "mine", "head").reason.startswith(f"mine.py did not load: {reason}")
    assert plugins.spec("head", "region")


@pytest.mark.parametrize(
    ("wanted", "state", "reason"),
    [
        (
            "{package: tpokit-nowhere}",
            "needs",
            "`pip install tpokit-nowhere` (tpokit-nowhere is not",
        ),
        (
            "{package: tpokit, version: '>=77'}",
            "needs",
            "`pip install 'tpokit>=77'` (tpokit 0.1.0 is",
        ),
        ("{package: tpokit}", "failed", "tpokit offers no head 'regions'; did you mean 'region'?"),
    ],
)
def test_a_registry_row_that_is_not_met_says_so(tmp_path, wanted, state, reason):
    registry = tmp_path / "registry.yaml"
    registry.write_text(f"version: 1\nheads: {{regions: {wanted}}}\n")
    found = row(Plugins.load(registry), "regions")
    assert (found.state, found.reason[: len(reason)]) == (state, reason)


def test_a_wrong_registry_names_every_problem(tmp_path):
    registry = tmp_path / "registry.yaml"
    registry.write_text(
        "version: 1\nhaeds: {}\nheads: {a: {}, b: {package: x, pth: y}}\n"
        "sources: {c: {package: x, version: '>>1'}}\n"
    )
    with pytest.raises(UsageError) as caught:
        Plugins.load(registry)
    text = str(caught.value)
    assert "registry.yaml has 4 problems" in text
    assert "haeds        no such key; did you mean 'heads'?" in text
    assert "heads.a      needs either 'package' or 'path'" in text
    assert "heads.b.pth  no such key; did you mean 'path'?" in text
    assert "sources.c    Invalid specifier: '>>1'" in text


def test_a_missing_registry_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="no such registry: "):
        Plugins.load(tmp_path / "none.yaml")


# ---- classes


def test_options_are_checked_and_all_mistakes_named():
    plugins = Plugins.load()
    with pytest.raises(PluginError) as caught:
        plugins.options(plugins.spec("source", "shapes_world"), {"scnes": 3, "seed": "x"})
    assert "options of source 'shapes_world' has 2 problems" in str(caught.value)
    assert "did you mean 'scenes'?" in str(caught.value)


def test_the_class_of_a_spec_is_resolved():
    plugins = Plugins.load()
    assert plugins.factory(plugins.spec("head", "region")).task == "region"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "depth_plugin:Head cannot be imported: failed|AttributeError"),
        ("class Head: pass", "depth_plugin:Head is no tpokit.TaskHead"),
        (
            "class Head(tpokit.TaskHead):\n    task = 'deep'\n    terms = ('l1',)",
            "its spec says task 'depth', its class 'deep'",
        ),
    ],
)
def test_a_class_that_is_not_what_its_spec_says_is_refused(install, code, message):
    install("depth", head_code() + code)
    plugins = Plugins.load()
    with pytest.raises(PluginError, match=f"head 'depth' of depth 0.3: .*({message})"):
        plugins.factory(plugins.spec("head", "depth"))


def test_a_class_whose_module_needs_a_package_names_what_to_install(install):
    code = head_code(module="depth_net_plugin", more=', install="pip install depth[net]"')
    install("depth", code)
    install("depth-net", "import no_such_library_at_all")
    plugins = Plugins.load()
    with pytest.raises(PluginError, match=r"needs `pip install depth\[net\]` \(No module named"):
        plugins.factory(plugins.spec("head", "depth"))


def test_listing_is_quick_and_loads_neither_torch_nor_pydantic():
    code = (
        "import sys; from tpokit.plugins import Plugins; Plugins.load().rows();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pydantic', 'transformers')))"
    )
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert time.monotonic() - start < 3  # 0.6 s on an idle machine; tests share theirs
