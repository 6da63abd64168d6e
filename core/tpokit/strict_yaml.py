"""YAML as people mean it: a key stands once, ``2e-5`` is a number, and an error names its line.

PyYAML alone takes the last of two equal keys without a word and reads ``2e-5`` as text (YAML 1.1
wants ``2.0e-5``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tpokit.errors import UsageError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the two changes."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if key.value in first and isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} stands here a second time "
                    f"(first in line {first[key.value]})",
                    problem_mark=key.start_mark,
                )
            if isinstance(key, yaml.ScalarNode):
                first[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(text: str, origin: str) -> Any:
    """The value that a YAML text stands for.

    Args:
        text: One document.
        origin: Where it comes from, for messages.

    Raises:
        UsageError: It is not YAML, or a key stands twice; names the line.
    """
    try:
        return yaml.load(text, _Loader)  # a safe loader: it makes plain data only
    except yaml.MarkedYAMLError as cause:
        mark = cause.problem_mark or cause.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{origin}{where}: {cause.problem or cause.context}") from cause
    except yaml.YAMLError as cause:
        raise UsageError(f"{origin} is not YAML: {cause}") from cause


def read_yaml_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: The file.
        what: What it should be, such as ``recipe``, for messages.

    Raises:
        UsageError: No such file, not text, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as cause:
        raise UsageError(f"no such {what}: {path}") from cause
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(f"{what} {path} cannot be read: {cause}") from cause
    return as_mapping(read_yaml(text, str(path)), str(path), what)


def as_mapping(value: Any, origin: str, what: str) -> dict[str, Any]:
    """The value itself if it is a mapping.

    Raises:
        UsageError: It is something else.
    """
    if not isinstance(value, dict):
        found = "is empty" if value is None else f"holds a {type(value).__name__}"
        raise UsageError(f"{origin} {found}; a {what} is a mapping of keys to values")
    return value
