"""Likely meant names, for messages about names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_ALIKE = 0.6
"""Least likeness (of `difflib`, 0 to 1) of a name that is offered."""
_TIE = 0.05
"""Names less alike than the best by this are not offered: a common prefix is no likeness."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``; did you mean 'region'?`` or nothing, to put behind a message.

    Args:
        name: What was written.
        known: Every name that would have been right.
    """
    names = list(known)
    alike = {
        other: difflib.SequenceMatcher(None, str(name).lower(), other.lower()).ratio()
        for other in names
    }
    best = max(alike.values(), default=0.0)
    if best < _ALIKE:
        return ""
    near = [other for other, ratio in alike.items() if ratio > best - _TIE]
    quoted = [repr(other) for other in near]
    return f"; did you mean {' or '.join(quoted)}?"


def listed(names: Iterable[str]) -> str:
    """Names sorted and joined by commas, or ``none``."""
    return ", ".join(sorted(names)) or "none"
