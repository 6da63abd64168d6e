"""A recipe as plain data: read from a file, changed by ``--set``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tpokit.errors import Problem, UsageError
from tpokit.near_misses import did_you_mean, listed
from tpokit.strict_yaml import read_yaml

_NAMED_SECTIONS = ("heads", "data")
"""Sections whose keys the user chooses: a name that is new there is a slip, not a new entry."""


class _NoPlaceError(Exception):
    """An override names a place that is not there; carries the path and why."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True)
class _Step:
    """One step of a path: a key of a mapping, or an index or ``*`` of a list."""

    key: str
    in_list: bool


def apply_overrides(plain: dict[str, Any], overrides: Sequence[str]) -> list[Problem]:
    """Set values, in place and in order.

    Args:
        plain: The recipe.
        overrides: Each ``path=value``. A path is ``run.workers``, ``stages[1].steps`` (by index),
            ``stages.assign.steps`` (by name) or ``stages[*].steps`` (all); a value is YAML.

    Returns:
        Overrides that have no place.

    Raises:
        UsageError: An override is not of the form ``path=value``, or its value is not YAML.
    """
    problems = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise UsageError(f"--set {override!r} must look like stages[0].steps=100")
        value = read_yaml(text, f"--set {path}")
        try:
            _set(plain, _steps(path.strip()), value, "")
        except _NoPlaceError as cause:
            problems.append(Problem(cause.path, f"{cause} (--set {override})"))
    return problems


def _steps(path: str) -> list[_Step]:
    steps: list[_Step] = []
    for piece in path.split("."):
        match = re.fullmatch(r"([^\[\]]+)((?:\[(?:\d+|\*)\])*)", piece)
        if match is None:
            raise UsageError(f"--set: {path!r} is no path such as stages[0].steps")
        steps.append(_Step(match[1], in_list=False))
        steps += [_Step(index, in_list=True) for index in re.findall(r"\[(\d+|\*)\]", match[2])]
    return steps


def _set(place: Any, steps: Sequence[_Step], value: Any, path: str) -> None:
    step, rest = steps[0], steps[1:]
    if isinstance(place, list):
        for index in _indices(place, step, path):
            if rest:
                _set(place[index], rest, value, f"{path}[{index}]")
            else:
                place[index] = value
        return
    if not isinstance(place, dict):
        raise _NoPlaceError(path, f"is {place!r} and has nothing inside")
    here = f"{path}.{step.key}" if path else step.key
    if step.in_list:
        raise _NoPlaceError(path, "is a mapping, not a list; name a key instead of a number")
    if not rest:
        place[step.key] = value
        return
    if place.get(step.key) is None:
        if path in _NAMED_SECTIONS:
            near = did_you_mean(step.key, place)
            raise _NoPlaceError(here, f"no such entry{near} (there are: {listed(place)})")
        place[step.key] = {}
    _set(place[step.key], rest, value, here)


def _indices(place: list[Any], step: _Step, path: str) -> list[int]:
    if step.key == "*":
        return list(range(len(place)))
    if step.in_list:
        if int(step.key) < len(place):
            return [int(step.key)]
        raise _NoPlaceError(f"{path}[{step.key}]", f"there are only {len(place)} (from [0] on)")
    names = [str(one.get("name")) for one in place if isinstance(one, dict)]
    found = [
        i for i, one in enumerate(place) if isinstance(one, dict) and one.get("name") == step.key
    ]
    if not found:
        near = did_you_mean(step.key, names)
        raise _NoPlaceError(
            f"{path}.{step.key}", f"no such entry{near} (there are: {listed(names)})"
        )
    return found
