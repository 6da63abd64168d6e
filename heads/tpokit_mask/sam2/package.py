"""What is taken from the package sam2, imported so that hydra's global state stays as it was.

Importing sam2 sets hydra up for its own configuration files, which breaks every other use of hydra
in the same process. We need none of that: models are built from the files directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path

try:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.version import VersionBase
except ModuleNotFoundError as cause:
    raise ImportError(
        "the package sam2 is not installed (it brings hydra); docs/mask.md says how to"
    ) from cause


@contextmanager
def untouched_hydra() -> Iterator[None]:
    """Whatever happens inside, hydra is afterwards set up as before."""
    hydra, version = GlobalHydra.instance().hydra, copy(VersionBase.instance())
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = hydra
        VersionBase.set_instance(version)


with untouched_hydra():
    try:
        import sam2
        from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
    except ModuleNotFoundError as cause:
        raise ImportError("the package sam2 is not installed; docs/mask.md says how to") from cause

ABSENT = float(NO_OBJ_SCORE)
"""Logit that every pixel of an object gets where its score says that it is not visible."""

FOLDER = Path(sam2.__path__[0])
"""Where the package and its configuration files are."""

__all__ = ["ABSENT", "FOLDER", "SAM2Base", "untouched_hydra"]
