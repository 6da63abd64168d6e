"""``mix:`` of a stage: which data entries it reads, and how they share its samples.

Three forms::

    mix: {refcoco: 0.4, talk: 0.6}              # written shares, which add up to 1
    mix: {of: [refcoco, talk], temperature: 2}  # shares by size
    mix:                                        # groups: a task of several data entries
      boxes: {share: 0.4, of: [refcoco, vg], temperature: 2, caps: {vg: 100000}}
      talk: {share: 0.6, of: {sharegpt: 0.3, llava: 0.7}}

`mix_plan` gives all of them one form. What shares by size are in numbers: `tpokit.data.mixing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from tpokit.errors import Problem
from tpokit.near_misses import did_you_mean, listed
from tpokit.recipe_values import Count, Rate, one_or_many


class BlendEntry(BaseModel):
    """Data entries and how they share.

    Attributes:
        of: Names of data entries, which share by their sizes, or each with its share; shares add up
            to 1.
        temperature: With names alone: 1 shares in proportion to size, more makes shares more equal.
            ``null``: 1.
        caps: Data entry to the largest number of its samples that are used: always the same ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1), Tag("<one>")]
        | Annotated[dict[str, Rate], Field(min_length=1), Tag("<many>")],
        Discriminator(one_or_many),
    ]
    temperature: Rate | None = None
    caps: dict[str, Count] = {}


class GroupEntry(BlendEntry):
    """One line of ``mix:``, written out: a task of several data entries.

    Attributes:
        share: Of the stage's samples; ``null`` in all lines of the mix: they share by size.
    """

    share: Rate | None = None


def _form(value: Any) -> str:
    """Tag of a form of ``mix:``: ``of`` at its top names entries, any other key is a line."""
    whole = isinstance(value, BlendEntry) or (isinstance(value, Mapping) and "of" in value)
    return "<blend>" if whole else "<lines>"


MixLine = Annotated[
    Annotated[Rate, Tag("<one>")] | Annotated[GroupEntry, Tag("<many>")],
    Discriminator(one_or_many),
]
MixSection = Annotated[
    Annotated[BlendEntry, Tag("<blend>")]
    | Annotated[dict[str, MixLine], Field(min_length=1), Tag("<lines>")],
    Discriminator(_form),
]
Mix = BlendEntry | Mapping[str, float | GroupEntry]
"""``mix:`` as it was read."""


@dataclass(frozen=True)
class MixGroup:
    """Data entries that are one task of a mix; mostly a single one.

    Attributes:
        task: Name of the group, or of its only entry.
        share: Of the whole mix; ``None``: by size, as all others.
        entries: Names of data entries.
        shares: Of each inside the group; ``None``: by size.
        temperature: Of shares by size inside the group.
        caps: Data entry to the largest number of its samples that are used.
    """

    task: str
    share: float | None
    entries: tuple[str, ...]
    shares: tuple[float, ...] | None = None
    temperature: float = 1.0
    caps: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class MixPlan:
    """A mix in one form.

    Attributes:
        groups: In the order of their names.
        temperature: Of the groups' shares, where these are by size.
    """

    groups: tuple[MixGroup, ...]
    temperature: float = 1.0

    @property
    def entries(self) -> tuple[str, ...]:
        """All data entries."""
        return tuple(name for group in self.groups for name in group.entries)


def mix_plan(mix: Mix) -> MixPlan:
    """The one form of any ``mix:`` without problems."""
    if isinstance(mix, BlendEntry):
        shares = dict(mix.of) if isinstance(mix.of, Mapping) else dict.fromkeys(mix.of)
        alone = (
            MixGroup(name, share, (name,), caps=mix.caps) for name, share in sorted(shares.items())
        )
        return MixPlan(tuple(alone), mix.temperature or 1.0)
    return MixPlan(tuple(_group(name, line) for name, line in sorted(mix.items())))


def _group(name: str, line: float | GroupEntry) -> MixGroup:
    if not isinstance(line, GroupEntry):
        return MixGroup(name, line, (name,))
    entries = tuple(sorted(line.of))
    shares = tuple(line.of[one] for one in entries) if isinstance(line.of, Mapping) else None
    return MixGroup(name, line.share, entries, shares, line.temperature or 1.0, line.caps)


# ---- what is wrong with one


def mix_entries(mix: Mix, path: str) -> Iterator[tuple[str, str]]:
    """Path and name of each data entry that a mix names, where they stand; ``path``: its own."""
    if isinstance(mix, BlendEntry):
        yield from _blend_entries(mix, path)
        return
    for name, line in mix.items():
        if isinstance(line, GroupEntry):
            yield from _blend_entries(line, f"{path}.{name}")
        else:
            yield f"{path}.{name}", name


def _blend_entries(blend: BlendEntry, path: str) -> Iterator[tuple[str, str]]:
    for place, name in enumerate(blend.of):
        written = isinstance(blend.of, Mapping)
        yield f"{path}.of.{name}" if written else f"{path}.of[{place}]", name


def mix_problems(mix: Mix, path: str) -> Iterator[Problem]:
    """What is wrong with shares, temperatures and caps of a mix, and entries that stand twice.

    Args:
        mix: As it was read.
        path: Where it stands.
    """
    first: dict[str, str] = {}
    for place, name in mix_entries(mix, path):
        if name in first:
            yield Problem(place, f"{name!r} stands twice in this mix (first at {first[name]})")
        first.setdefault(name, place)
    if isinstance(mix, BlendEntry):
        yield from _blend_problems(mix, path)
        return
    for name, line in mix.items():
        if isinstance(line, GroupEntry):
            yield from _blend_problems(line, f"{path}.{name}")
    shares = {n: line.share if isinstance(line, GroupEntry) else line for n, line in mix.items()}
    without = [name for name, share in shares.items() if share is None]
    if not without:
        yield from _sum_problems((share for share in shares.values() if share is not None), path)
    elif len(without) < len(shares):
        yield Problem(
            path, f"{listed(without)} without a share: give one to all lines of a mix, or to none"
        )


def _blend_problems(blend: BlendEntry, path: str) -> Iterator[Problem]:
    if isinstance(blend.of, Mapping):
        yield from _sum_problems(blend.of.values(), f"{path}.of")
        if blend.temperature is not None:
            yield Problem(
                f"{path}.temperature", "goes with names alone; the shares in 'of' are written"
            )
    for name in blend.caps:
        if name not in blend.of:
            near = did_you_mean(name, blend.of)
            yield Problem(
                f"{path}.caps.{name}",
                f"no such entry in 'of'{near} (there are: {listed(set(blend.of))})",
            )


def _sum_problems(shares: Iterable[float], path: str) -> Iterator[Problem]:
    total = sum(shares)
    if abs(total - 1) > 1e-6:
        yield Problem(path, f"shares add up to {total:g}, they must add up to 1")
