"""What a plugin's rules for published weights subclass: names and shapes there, places in ours.

A *format* is how somebody publishes the weights of a whole model, such as ``videochat_tpo``.
Several plugins bring rules for one format, each for what it offers itself: the backbone for its
parts, each head for its own. Rules are data in both directions; reading, checking and writing is
done by `tpokit.weights`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tpokit.tokens import TokenTable

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Published name to shape."""
OF_LLM = "llm::"
"""Before the names of tensors of a base LLM that lies in a folder of its own."""
Rows = tuple[int, int]
"""First row and the one behind the last, along the first dimension."""


@dataclass(frozen=True)
class Place:
    """Where rows of a published tensor stand in our model.

    Both sides have the same number of elements; their shapes may differ.

    Attributes:
        ours: Full name of a parameter of `tpokit.TpoModel`, as if its layer had no adapter
            (``backbone.llm.lm_head.weight``, ``bridge.input.weight``, ``heads.region....``); with
            ``file``, a name in that file.
        rows: Of the published tensor; ``None``: all of it.
        our_rows: Of ours; ``None``: all of it.
        file: A file of its own beside the saved model, such as ``sam2.safetensors``, for weights
            that a head reads from a file.
    """

    ours: str
    rows: Rows | None = None
    our_rows: Rows | None = None
    file: str | None = None


@dataclass(frozen=True)
class Published:
    """One tensor of a format.

    Attributes:
        name: As published.
        shape: As published.
        places: Where it goes; none: it is not used.
        unused: Why it, or the rows of it that go nowhere, are not used.
        optional: Whether files of the format may lack it.
        dtype: Number format by torch's name, such as ``int64``, of one that is no weight and has no
            place: on export it is filled with zeros if nothing is kept of it.
    """

    name: str
    shape: Shape
    places: tuple[Place, ...] = ()
    unused: str = ""
    optional: bool = False
    dtype: str = ""


@dataclass(frozen=True)
class AddedProduct:
    """Rows of ours to which a product of two published matrices is added: an adapter that is taken
    in.

    On export the rows of ``left`` are written as 0, as ours hold the sum already.

    Attributes:
        ours, our_rows: As in `Place`.
        left: Published name of a matrix ``[n, r]``.
        rows: Of ``left``, one for each of ``our_rows``.
        right: Published name of a matrix ``[r, d]``.
        scale: Of the product.
    """

    ours: str
    our_rows: Rows
    left: str
    rows: Rows
    right: str
    scale: float


class WeightRules(ABC):
    """Rules of one plugin for one format; made for published shapes or for a model of ours."""

    @classmethod
    @abstractmethod
    def from_published(cls, shapes: Shapes) -> WeightRules | None:
        """Rules for files that hold these tensors; ``None``: nothing of this plugin is in them.

        Raises:
            CheckpointError: They are of this plugin, but of impossible or mixed sizes.
        """

    @classmethod
    @abstractmethod
    def from_model(cls, part: nn.Module) -> WeightRules:
        """Rules for a backbone or a head of ours.

        Raises:
            UsageError: The format cannot hold it; says which option is in the way.
        """

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Options of the backbone or head in the recipe that is written; paths are relative to the
        folder of the saved model.
        """

    def empty_options(self) -> dict[str, Any]:
        """The same for a model whose weights and files are not there yet; default: as they are."""
        return self.options()

    @abstractmethod
    def tensors(self, tokens: TokenTable) -> Iterable[Published]:
        """Every tensor that belongs to this plugin, used or not.

        Args:
            tokens: Task tokens of the model; of the bridge's ``input.weight`` row i is that of id
                ``tokens.rows + i``, of ``output.weight`` row i that of the i-th trigger.
        """

    def added(self, tokens: TokenTable) -> Sequence[AddedProduct]:
        """Products that are taken into rows of ours; default: none."""
        return ()

    def file_tensors(self, file: str) -> Mapping[str, Tensor]:
        """Tensors of a file beside the model (see `Place.file`), for export; only for rules made by
        `from_model`.
        """
        raise NotImplementedError(f"{type(self).__name__} names the file {file!r} but has none")


class BackboneWeightRules(WeightRules):
    """Rules of a backbone, which decides what format some files are of."""

    @abstractmethod
    def lora(self) -> dict[str, Any] | None:
        """``rank``, ``alpha`` and ``dropout`` of the adapters in the files; ``None``: there are
        none.
        """

    @abstractmethod
    def prepare(self, source: Path, backbone: Path, llm: Path | None = None) -> None:
        """Write what the backbone needs besides weights (configuration, tokenizer) so that it can
        be built from a folder.

        Args:
            source: Folder of the published files.
            backbone: Folder of the backbone to be, which exists.
            llm: Folder of the base LLM, if its weights were given apart (see `OF_LLM`).

        Raises:
            CheckpointError: A file is missing or of another model.
        """

    def write_files(self, published: Path) -> None:
        """Write what belongs to the format besides weights, at least what `prepare` reads; the
        counterpart of `prepare` for rules made by `from_model`. Default: nothing.

        Args:
            published: Folder of the published files to be, which exists.
        """
