"""The registry file: what a workspace uses beside the plugins that are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from packaging.specifiers import SpecifierSet
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tpokit.errors import UsageError, problem_report
from tpokit.problems import check
from tpokit.strict_yaml import read_yaml_mapping

SECTIONS = {
    "backbones": "backbone",
    "connectors": "connector",
    "heads": "head",
    "sources": "source",
    "metrics": "metric",
    "drawings": "drawing",
    "weights": "weights",
}
"""Section of the file to kind of spec."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LocalFile(_Entry):
    """One line of ``plugins:``.

    Attributes:
        path: A Python file with hooks, relative to the registry file.
    """

    path: Path


class Wanted(_Entry):
    """One name of a section: where it comes from.

    Attributes:
        package: The distribution that offers it; or
        path: a Python file that does, relative to the registry file.
        version: Versions of the package that will do, such as ``>=0.1``.
        summary: One line for listings.
    """

    package: str | None = None
    path: Path | None = None
    version: str = ""
    summary: str = ""

    @model_validator(mode="after")
    def _one_origin(self) -> Wanted:
        if (self.package is None) == (self.path is None):
            raise ValueError("needs either 'package' or 'path'")
        if self.version and self.package is None:
            raise ValueError("'version' goes with 'package'")
        SpecifierSet(self.version)  # an InvalidSpecifier is a ValueError and says what is wrong
        return self


class Registry(_Entry):
    """A registry file."""

    version: Literal[1]
    backbones: dict[str, Wanted] = Field(default_factory=dict)
    connectors: dict[str, Wanted] = Field(default_factory=dict)
    heads: dict[str, Wanted] = Field(default_factory=dict)
    sources: dict[str, Wanted] = Field(default_factory=dict)
    metrics: dict[str, Wanted] = Field(default_factory=dict)
    drawings: dict[str, Wanted] = Field(default_factory=dict)
    weights: dict[str, Wanted] = Field(default_factory=dict)
    plugins: tuple[LocalFile, ...] = ()
    block: tuple[str, ...] = ()

    def wanted(self) -> dict[tuple[str, str], Wanted]:
        """All rows by kind and name."""
        return {
            (kind, name): row
            for section, kind in SECTIONS.items()
            for name, row in getattr(self, section).items()
        }

    def local_files(self) -> list[Path]:
        """Files to load, each once, in the order of the file."""
        rows = [row.path for row in self.wanted().values() if row.path is not None]
        return list(dict.fromkeys([*rows, *(local.path for local in self.plugins)]))


def read_registry(path: Path) -> Registry:
    """Read a registry file.

    Raises:
        UsageError: It is missing or wrong; names every problem.
    """
    data = read_yaml_mapping(path, "registry")
    data = {key: value for key, value in data.items() if value is not None}  # an empty section
    problems = check(Registry, data)
    if problems:
        raise UsageError(problem_report(str(path), problems))
    return Registry.model_validate(data)
