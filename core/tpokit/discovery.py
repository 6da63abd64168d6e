"""Finding plugins and asking each what it offers.

Entry points of the group ``tpokit`` come first, sorted by distribution and name so that the order
is the same on every host, then the local files of a registry. Each is loaded alone: whatever goes
wrong with one is kept as a reason and stops nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from tpokit import hookspecs
from tpokit.near_misses import did_you_mean
from tpokit.offers import Offer, Provider, State, import_reason, settle, state_of
from tpokit.specs import (
    BackboneSpec,
    ConnectorSpec,
    DrawingSpec,
    HeadSpec,
    MetricSpec,
    SourceSpec,
    Spec,
    WeightsSpec,
)

if TYPE_CHECKING:
    from tpokit.registry import Registry

GROUP = "tpokit"
"""Group of entry points by which an installed plugin is found."""
HOOKS: Mapping[str, type[Spec]] = {
    "tpokit_backbones": BackboneSpec,
    "tpokit_connectors": ConnectorSpec,
    "tpokit_heads": HeadSpec,
    "tpokit_sources": SourceSpec,
    "tpokit_metrics": MetricSpec,
    "tpokit_drawings": DrawingSpec,
    "tpokit_weights": WeightsSpec,
}
"""Every offering hook, in the order of calling, and what it returns."""


def discover(
    registry: Registry | None, folder: Path, blocked: Collection[str] = ()
) -> tuple[Offer, ...]:
    """Everything that is offered here, broken plugins included.

    Args:
        registry: What the workspace wants, if it has a registry file.
        folder: Of the registry file.
        blocked: Names of plugins or of what they offer; those of the registry are added.
    """
    blocked = {*blocked, *(registry.block if registry else ())}
    asked = _Asking(blocked)
    entries = [
        (entry.dist.name if entry.dist else "", entry)
        for entry in importlib.metadata.entry_points(group=GROUP)
    ]
    for package, entry in sorted(entries, key=lambda pair: (pair[0], pair[1].name)):
        version = entry.dist.version if entry.dist else ""
        asked.ask(Provider(package, version, entry.name), entry.load, entry.module)
    for path in registry.local_files() if registry else ():
        asked.ask_file(path, folder / path)
    wanted = registry.wanted() if registry else {}
    return settle(asked.offers, wanted)


class _Asking:
    """One pluggy manager; plugins are added and asked one after the other."""

    def __init__(self, blocked: Collection[str]) -> None:
        self.offers: list[Offer] = []
        self._blocked = blocked
        self._manager = pluggy.PluginManager("tpokit")
        self._manager.add_hookspecs(hookspecs)

    def ask_file(self, written: Path, path: Path) -> None:
        """Load a local file and ask it; it is the provider under the path that was written."""
        provider = Provider(str(written), "", path.stem)
        if self._is_blocked(provider, path.stem):
            self._fail(provider, "blocked", "by the block list")
            return
        try:
            module = load_file(path)
        except (Exception, SystemExit) as cause:  # noqa: BLE001 - a stranger's file can raise anything
            self._fail(provider, *import_reason(cause, path.stem))
            return
        self.ask(replace(provider, module=module), lambda: module, module.__name__)

    def ask(self, provider: Provider, load: Callable[[], Any], module: str) -> None:
        """Load one plugin, register it and collect what it offers."""
        if self._is_blocked(provider, provider.entry):
            self._fail(provider, "blocked", "by the block list")
            return
        try:
            plugin = load()
        except (Exception, SystemExit) as cause:  # noqa: BLE001 - a stranger's import can raise anything
            self._fail(provider, *import_reason(cause, module))
            return
        if self._manager.is_registered(plugin):
            return  # a second entry point for the same module says nothing new
        try:
            self._manager.register(plugin, name=f"{provider}:{provider.entry}")
        except (pluggy.PluginValidationError, ValueError) as cause:
            self._fail(provider, "failed", " ".join(str(cause).split()))
            return
        mistake = self._misspelt(plugin)
        if mistake:
            self._manager.unregister(plugin)
            self._fail(provider, "failed", mistake)
            return
        for hook, spec_type in HOOKS.items():
            self._collect(provider, plugin, hook, spec_type)

    def _misspelt(self, plugin: Any) -> str:
        """What is wrong with the names of a plugin's hooks; empty if nothing is."""
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError:
            callers = self._manager.get_hookcallers(plugin) or []
            unknown = next(caller.name for caller in callers if not caller.has_spec())
            return f"there is no hook {unknown!r}{did_you_mean(unknown, HOOKS)}"
        for name in HOOKS:
            unmarked = self._manager.parse_hookimpl_opts(plugin, name) is None
            if unmarked and callable(getattr(plugin, name, None)):
                return f"{name} is not marked with @tpokit.hookimpl"
        if not self._manager.get_hookcallers(plugin):
            return f"it has no hook; a plugin implements one of {', '.join(HOOKS)}"
        return ""

    def _collect(self, provider: Provider, plugin: Any, hook: str, spec_type: type[Spec]) -> None:
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        try:
            answers = self._manager.subset_hook_caller(hook, others)()
        except Exception as cause:  # noqa: BLE001 - a stranger's hook can raise anything
            reason = f"{hook} raises {type(cause).__name__}: {cause}"
            self._fail(provider, "failed", reason, spec_type.kind)
            return
        for answer in answers:
            if not isinstance(answer, (list, tuple)):
                reason = f"{hook} must return a list of {spec_type.__name__}, found {answer!r}"
                self._fail(provider, "failed", reason, spec_type.kind)
                continue
            for spec in answer:
                self._take(provider, hook, spec_type, spec)

    def _take(self, provider: Provider, hook: str, spec_type: type[Spec], spec: Any) -> None:
        if not isinstance(spec, spec_type):
            reason = f"{hook} must return a list of {spec_type.__name__}, found {spec!r} in it"
            self._fail(provider, "failed", reason, spec_type.kind)
            return
        offer = Offer(spec.kind, str(spec.name), provider, spec, summary=spec.summary)
        if self._is_blocked(provider, spec.name):
            offer = replace(offer, state="blocked", reason="by the block list")
        else:
            state, reason = state_of(spec)
            offer = replace(offer, state=state, reason=reason)
        self.offers.append(offer)

    def _is_blocked(self, provider: Provider, name: str) -> bool:
        return not {name, f"{provider.package}:{name}"}.isdisjoint(self._blocked)

    def _fail(self, provider: Provider, state: State, reason: str, kind: str = "plugin") -> None:
        self.offers.append(Offer(kind, provider.entry, provider, None, state, reason))


def load_file(path: Path) -> ModuleType:
    """Import a Python file under a name of its own; `sys.path` stays as it is.

    The name follows from path and content: loading a file twice gives the same module, an edited
    file a new one.

    Raises:
        FileNotFoundError: There is no such file.
        Exception: Whatever the file raises.
    """
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    mark = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes()).hexdigest()[:12]
    name = f"tpokit_local_{mark}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pydantic look it up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
