"""Looking up what plugins offer, by kind and name.

Importing this file, and listing, imports neither torch nor pydantic nor any class of a plugin.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpokit.discovery import HOOKS, discover
from tpokit.errors import PluginError, problem_report
from tpokit.near_misses import did_you_mean, listed
from tpokit.offers import Offer, State, import_reason
from tpokit.specs import Spec

if TYPE_CHECKING:
    from tpokit.options import Options

KINDS = tuple(spec_type.kind for spec_type in HOOKS.values())
"""Kinds of things that plugins offer, in the order of listings."""
_INTERFACES = {
    "backbone": "Backbone",
    "connector": "Connector",
    "head": "TaskHead",
    "source": "DataSource",
    "metric": "Metric",
    "drawing": "Drawing",
    "weights": "WeightRules",
}


@dataclass(frozen=True)
class PluginRow:
    """One line of ``tpokit plugins``.

    Attributes:
        kind: What it is; ``plugin`` for one that could not be asked what it offers.
        name: What a recipe writes.
        version: Of the distribution; empty for a local file.
        provided_by: The distribution, or the path of a local file.
        state: Whether a run can use it.
        reason: Why not, and what helps; empty when ready.
        summary: What it is for.
    """

    kind: str
    name: str
    version: str
    provided_by: str
    state: State
    reason: str
    summary: str


class Plugins:
    """What can be used here, and why something cannot."""

    def __init__(self, offers: Sequence[Offer]) -> None:
        """Keep what `tpokit.discovery.discover` found; use `load`."""
        self._offers = tuple(offers)

    @classmethod
    def load(cls, registry: Path | None = None, blocked: Collection[str] = ()) -> Plugins:
        """Ask every installed plugin, then those of a registry file.

        A plugin that is broken is kept with the reason and stops only who asks for it.

        Args:
            registry: A registry file.
            blocked: Names of plugins, or of things they offer, that shall not be used;
                ``distribution:name`` tells equal names apart.

        Raises:
            UsageError: The registry file is missing or wrong.
        """
        if registry is None:
            return cls(discover(None, Path(), blocked))
        from tpokit.registry import (
            read_registry,
        )  # here: it needs pydantic, a bare listing does not

        return cls(discover(read_registry(registry), registry.resolve().parent, blocked))

    @property
    def offers(self) -> tuple[Offer, ...]:
        """What was found."""
        return self._offers

    def rows(self) -> list[PluginRow]:
        """Everything, sorted by kind and name; plugins that could not be asked come last."""
        order = [*KINDS, "plugin"]
        offers = sorted(self._offers, key=lambda o: (order.index(o.kind), o.name, str(o.provider)))
        return [
            PluginRow(
                kind=offer.kind,
                name=offer.name,
                version=offer.provider.version,
                provided_by=offer.provider.package,
                state=offer.state,
                reason=offer.reason,
                summary=offer.summary,
            )
            for offer in offers
        ]

    def names(self, kind: str) -> list[str]:
        """Names of a kind that are ready, sorted."""
        return sorted(o.name for o in self._offers if o.kind == kind and o.state == "ready")

    def for_task(self, kind: str, task: str) -> list[Spec]:
        """Specs of a kind that are ready and made for a task, sorted by name."""
        ready = (self.spec(kind, name) for name in self.names(kind))
        return [spec for spec in ready if getattr(spec, "task", None) == task]

    def spec(self, kind: str, name: str) -> Spec:
        """The spec of that name.

        Args:
            kind: One of `KINDS`.
            name: As a recipe writes it.

        Raises:
            PluginError: There is none, with the nearest names; or it cannot be used, with the
                reason.
        """
        offers = [offer for offer in self._offers if (offer.kind, offer.name) == (kind, name)]
        for offer in offers:
            if offer.state == "ready" and offer.spec is not None:
                return offer.spec
        if offers:
            reasons = "; ".join(dict.fromkeys(f"{o.provider}: {o.why}" for o in offers))
            if all(offer.state == "clash" for offer in offers):
                reasons = offers[0].reason
            raise PluginError(f"{kind} {name!r} cannot be used: {reasons}")
        raise PluginError(self._unknown(kind, name))

    def _unknown(self, kind: str, name: str) -> str:
        known = self.names(kind)
        text = f"no {kind} named {name!r}{did_you_mean(name, known)} (installed: {listed(known)})"
        others = sorted({o.kind for o in self._offers if o.name == name and o.kind in KINDS})
        if others:
            text += f"; {name!r} is a {' and a '.join(others)}"
        broken = [o for o in self._offers if o.spec is None and o.state in {"failed", "needs"}]
        fitting = [o for o in broken if name in (o.name, o.provider.package.split("-")[-1])]
        for offer in fitting:
            text += f"; plugin {offer.name!r} of {offer.provider} did not load: {offer.why}"
        if broken and not fitting:
            text += f"; not loaded: {listed({o.name for o in broken})} (see tpokit plugins)"
        return text

    def options_model(self, spec: Spec) -> type[Options]:
        """The options model of a spec.

        Raises:
            PluginError: It cannot be imported or is no options model.
        """
        from tpokit.options import NoOptions, Options  # here: needs pydantic, a listing does not

        if spec.options is None:
            return NoOptions
        model = self._resolve(spec, spec.options)
        if not (isinstance(model, type) and issubclass(model, Options)):
            raise PluginError(f"{self._named(spec)}: {spec.options} is no tpokit.Options model")
        return model

    def options(self, spec: Spec, values: Mapping[str, Any]) -> Options:
        """The options of a recipe as the plugin's own model, checked.

        Raises:
            PluginError: Some are wrong; all of them are named.
        """
        from tpokit.problems import check

        model = self.options_model(spec)
        problems = check(model, dict(values))
        if problems:
            raise PluginError(problem_report(f"options of {spec.kind} {spec.name!r}", problems))
        return model.model_validate(dict(values))

    def factory(self, spec: Spec) -> type[Any]:
        """The class that a spec names.

        Raises:
            PluginError: It cannot be imported, is not of the right kind, or says something else
                about itself than its spec does.
        """
        made = self._resolve(spec, spec.factory)
        wanted = _INTERFACES[spec.kind]
        interface = getattr(importlib.import_module("tpokit.interfaces"), wanted)
        if not (isinstance(made, type) and issubclass(made, interface)):
            raise PluginError(f"{self._named(spec)}: {spec.factory} is no tpokit.{wanted}")
        for name in ("task", "terms"):
            said, has = getattr(spec, name, None), getattr(made, name, None)
            if said is not None and said != has:
                raise PluginError(
                    f"{self._named(spec)}: its spec says {name} {said!r}, its class {has!r}"
                )
        return made

    def _named(self, spec: Spec) -> str:
        offer = self._offer(spec)
        return f"{spec.kind} {spec.name!r}" + (f" of {offer.provider}" if offer else "")

    def _offer(self, spec: Spec) -> Offer | None:
        return next((offer for offer in self._offers if offer.spec is spec), None)

    def _resolve(self, spec: Spec, text: str) -> Any:
        """What an import string names; in a local file, ``:Name`` and ``stem:Name`` are its own."""
        offer = self._offer(spec)
        module_name, _, attribute = text.partition(":")
        own = offer.provider.module if offer else None
        try:
            if own is not None and offer and module_name in {"", offer.provider.entry}:
                module = own
            else:
                module = importlib.import_module(module_name)
            return getattr(module, attribute)
        except (Exception, SystemExit) as cause:
            state, reason = import_reason(cause, module_name)
            if state == "needs":
                reason = f"needs `{spec.install}` ({cause})" if spec.install else f"needs {reason}"
            raise PluginError(
                f"{self._named(spec)}: {text} cannot be imported: {reason}"
            ) from cause
