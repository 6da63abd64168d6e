"""Likely meant names, for messages about names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``; did you mean 'region'?`` or nothing, to put behind a message.

    Args:
        name: What was written.
        known: Every name that would have been right.
    """
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    near += [other for other in names if other.lower() == str(name).lower() and other not in near]
    if not near:
        return ""
    quoted = [repr(other) for other in near]
    return f"; did you mean {' or '.join(quoted)}?"


def listed(names: Iterable[str]) -> str:
    """Names sorted and joined by commas, or ``none``."""
    return ", ".join(sorted(names)) or "none"
