"""What a data source subclasses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tpokit.options import NoOptions
from tpokit.options import Options as AnyOptions
from tpokit.types import Sample

if TYPE_CHECKING:
    import numpy as np


class DataSource(ABC):
    """Reads annotations into samples.

    A source is cheap to make and to copy to workers; it opens files when it is made and reads media
    never.
    """

    Options: ClassVar[type[AnyOptions]] = NoOptions

    @abstractmethod
    def __init__(self, options: AnyOptions, folder: Path) -> None:
        """Open the annotations.

        Args:
            options: An instance of ``Options``.
            folder: Relative paths in the options are relative to it.

        Raises:
            DataError: A file is missing or not in the format.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def read(self, index: int, random: np.random.Generator) -> Sample:
        """One sample.

        Args:
            index: From 0 to ``len(self) - 1``.
            random: For random choices (wording, crops); already seeded by seed, epoch and sample.

        Raises:
            DataError: The annotation is wrong; says the file and line.
        """
