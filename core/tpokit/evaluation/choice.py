"""Whether a model says the right thing: calls of heads, and words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


def calls_right(predicted: Sequence[str], expected: Sequence[str]) -> bool:
    """Whether the right heads were called, each as often as it should be, and no other."""
    return Counter(predicted) == Counter(expected)


def same_words(predicted: str, expected: str) -> bool:
    """Whether two answers are the same but for case, punctuation and blanks."""
    return _words(predicted) == _words(expected)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
