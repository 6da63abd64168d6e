"""What is offered, by whom, and whether a run can use it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from tpokit.near_misses import did_you_mean
from tpokit.specs import API, HeadSpec, Spec

if TYPE_CHECKING:
    from tpokit.registry import Wanted

RESERVED_TASKS = frozenset(
    {"vision", "connector", "llm", "bridge", "language", "assign", "image", "video"}
)
"""Words that a task cannot be called: they name parts, loss terms and media."""

State = Literal["ready", "needs", "failed", "blocked", "clash"]


@dataclass(frozen=True)
class Provider:
    """Who offers something.

    Attributes:
        package: The distribution, or the path of a local file as it was written.
        version: Of the distribution; empty for a local file.
        entry: Name of the entry point; of a local file its stem.
        module: The module of a local file, in which its import strings are resolved.
    """

    package: str
    version: str
    entry: str
    module: ModuleType | None = None

    def __str__(self) -> str:
        return f"{self.package} {self.version}".strip()


@dataclass(frozen=True)
class Offer:
    """One thing that is offered, or a plugin that could not offer anything.

    Attributes:
        kind: Of the spec; ``plugin`` if the plugin never came to say.
        name: Of the spec, else of the entry point.
        provider: Who offers it.
        spec: ``None`` if there is none.
        state: Whether a run can use it.
        reason: Why not; empty when ready.
        summary: One line for listings.
    """

    kind: str
    name: str
    provider: Provider
    spec: Spec | None = None
    state: State = "ready"
    reason: str = ""
    summary: str = ""

    @property
    def why(self) -> str:
        """State and reason in words: ``needs `pip install scipy` ...``."""
        return f"needs {self.reason}" if self.state == "needs" else self.reason


def import_reason(cause: BaseException, module: str) -> tuple[State, str]:
    """State and reason of something that could not be imported.

    Args:
        cause: What was raised.
        module: Full name of the module that was asked for; a missing piece of its own package is
            the plugin's fault, a missing other package the user's to install.
    """
    if isinstance(cause, ModuleNotFoundError) and cause.name:
        package = cause.name.partition(".")[0]
        strange = package not in {module.partition(".")[0], "tpokit"}
        if strange and package not in sys.modules and importlib.util.find_spec(package) is None:
            return "needs", f"`pip install {package}` (no module named {cause.name!r})"
    return "failed", f"{type(cause).__name__}: {cause}"


def state_of(spec: Spec) -> tuple[State, str]:
    """Whether a spec is right in itself and what it needs is here."""
    fault = _fault(spec)
    if fault:
        return "failed", fault
    if spec.api != API:
        remedy = "update tpokit" if spec.api > API else "update the plugin"
        return "failed", f"made for contracts {spec.api}, this tpokit has {API}; {remedy}"
    try:
        missing = [reason for text in spec.requires if (reason := _missing(text, spec.install))]
    except ValueError as cause:  # packaging's InvalidRequirement is one
        return "failed", f"its requirement is not one: {cause}"
    if missing:
        return "needs", missing[0]
    return "ready", ""


def _fault(spec: Spec) -> str:
    words = {"name": spec.name, "task": getattr(spec, "task", spec.name)}
    for what, word in words.items():
        if not isinstance(word, str) or re.fullmatch(r"[a-z][a-z0-9_]*", word) is None:
            return f"its {what} {word!r} must fit [a-z][a-z0-9_]*"
    if "task" in vars(spec) and words["task"] in RESERVED_TASKS:
        return f"a task cannot be called {words['task']!r}"
    if isinstance(spec, HeadSpec):
        for preset, weights in spec.losses.items():
            for term in weights:
                if term not in spec.terms:
                    near = did_you_mean(term, spec.terms)
                    return f"its loss weights {preset!r} name no term of it: {term!r}{near}"
    return ""


def _missing(text: str, install: str = "") -> str:
    """How to install a requirement that is not met; empty if it is."""
    from packaging.requirements import Requirement  # here: most listings need none of it

    wanted = Requirement(text)
    if wanted.marker is not None and not wanted.marker.evaluate():
        return ""
    quoted = f"'{text}'" if re.search(r"[^\w.-]", text) else text
    remedy = f"`{install or f'pip install {quoted}'}`"
    try:
        found = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{remedy} ({wanted.name} is not installed)"
    if not wanted.specifier.contains(found, prereleases=True):
        return f"{remedy} ({wanted.name} {found} is installed)"
    return ""


def settle(offers: Sequence[Offer], wanted: Mapping[tuple[str, str], Wanted]) -> tuple[Offer, ...]:
    """The offers after comparing them with each other and with what a registry wants.

    Args:
        offers: In the order of loading.
        wanted: Rows of the registry by kind and name; one without an offer becomes an offer that
            says what is missing.
    """
    settled = list(offers)
    for key, row in wanted.items():
        mine = [o for o in settled if (o.kind, o.name) == key and _comes_from(o.provider, row)]
        state, reason = _registry_state(key, row, bool(mine), settled)
        if not mine:
            provider = Provider(row.package or str(row.path), "", key[1])
            settled.append(Offer(*key, provider, None, state, reason, row.summary))
        for offer in mine:
            changed = replace(offer, summary=offer.summary or row.summary)
            if state != "ready" and offer.state == "ready":
                changed = replace(changed, state=state, reason=reason)
            settled[settled.index(offer)] = changed
    return tuple(_without_clash(offer, settled, wanted) for offer in settled)


def _comes_from(provider: Provider, row: Wanted) -> bool:
    if row.package is None:
        return provider.package == str(row.path)
    return provider.module is None and _canonical(provider.package) == _canonical(row.package)


def _canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _registry_state(
    key: tuple[str, str], row: Wanted, found: bool, offers: Sequence[Offer]
) -> tuple[State, str]:
    kind, name = key
    if row.package is not None:
        missing = _missing(row.package + row.version)
        if missing:
            return "needs", missing
    if found:
        return "ready", ""
    origin = row.package or str(row.path)
    mine = [offer for offer in offers if _comes_from(offer.provider, row)]
    broken = [offer.why for offer in mine if offer.spec is None and offer.reason]
    if broken:
        return "failed", f"{origin} did not load: {broken[0]}"
    near = did_you_mean(name, [offer.name for offer in mine if offer.kind == kind])
    return "failed", f"{origin} offers no {kind} {name!r}{near}"


def _without_clash(
    offer: Offer, offers: Sequence[Offer], wanted: Mapping[tuple[str, str], Wanted]
) -> Offer:
    """The offer, or its mark as a clash if somebody else claims its name."""
    key = (offer.kind, offer.name)
    rivals = [
        other
        for other in offers
        if (other.kind, other.name) == key and other.spec is not None and other.state != "blocked"
    ]
    if offer not in rivals or len(rivals) < 2:
        return offer
    row = wanted.get(key)
    if row is not None:
        chosen = [other for other in rivals if _comes_from(other.provider, row)]
        if len(chosen) == 1:
            if chosen[0] is offer:
                return offer
            reason = f"the registry takes this name from {chosen[0].provider}"
            return replace(offer, state="clash", reason=reason)
    claimed = " and ".join(f"{o.provider} (plugin {o.provider.entry!r})" for o in rivals)
    reason = f"claimed by {claimed}; block one of the plugins in a registry file"
    return replace(offer, state="clash", reason=reason)
