"""What a connector subclasses: the module that makes tokens of an LLM from features of a vision
tower.

A recipe may name one (``backbone.connector``) in place of the backbone's own. Legend of all shapes:
f frames of all clips of a batch, one after another; p tokens of a frame (leading ones, then patches
row by row); c width of the features; d width of the LLM. A clip is an image (one frame), a crop of
an image (one frame) or a video.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from tpokit.options import NoOptions
from tpokit.options import Options as AnyOptions


class ConnectorHost(NamedTuple):
    """What a connector is built between.

    ``vision``: width of one layer of the vision tower. ``hidden``: d. ``grid``: rows and columns of
    patches of a frame. ``leading``: tokens of a frame before its patches, such as a class token.
    ``folder``: where relative paths in options start.
    """

    vision: int
    hidden: int
    grid: tuple[int, int]
    leading: int = 0
    folder: Path = Path()


@dataclass(frozen=True)
class FeatureNeed:
    """Which features of the vision tower a connector wants.

    Attributes:
        layers: Layers by their place from the end, -1 the last that the backbone uses; several are
            joined along the width, so that c is the tower's width times their number.
    """

    layers: tuple[int, ...] = (-1,)


class Instruction(NamedTuple):
    """Words that tell a connector what to look for, one row for each clip.

    ``ids [clips, w]`` of the connector's own vocabulary, ``mask [clips, w]`` bool, false where
    padded.
    """

    ids: Tensor
    mask: Tensor


class Connector(nn.Module, ABC):
    """Features of clips to tokens of an LLM.

    Every parameter must take part in every call, whatever the clips are, or ranks disagree. It must
    not look at the values of a tensor on the host.
    """

    Options: ClassVar[type[AnyOptions]] = NoOptions

    def __init__(self, options: AnyOptions, host: ConnectorHost) -> None:
        """Build the network.

        Args:
            options: An instance of ``Options``.
            host: What it is built between.

        Raises:
            UsageError: The options do not fit the host.
        """
        super().__init__()
        self.options = options
        self.host = host

    @classmethod
    def feature_need(cls, options: AnyOptions) -> FeatureNeed:
        """Which features it wants; default: the last layer."""
        return FeatureNeed()

    @classmethod
    def reads_instruction(cls, options: AnyOptions) -> bool:
        """Whether it reads an `Instruction`; default: no."""
        return False

    def without_gradient(self) -> tuple[str, ...]:
        """As `Backbone.without_gradient`, seen from the connector; default: none."""
        return ()

    @classmethod
    def small_options(cls, options: AnyOptions) -> AnyOptions:
        """Options of a narrow connector that gives as many tokens; default: the same."""
        return options

    @classmethod
    @abstractmethod
    def tokens(cls, options: AnyOptions, host: ConnectorHost, frames: int) -> int:
        """How many tokens a clip of so many frames gives; asked in data workers, without weights.

        Raises:
            UsageError: The options do not fit the host.
            DataError: It cannot take that many frames.
        """

    @abstractmethod
    def forward(
        self, features: Tensor, frames: Sequence[int], instruction: Instruction | None = None
    ) -> Tensor:
        """Make tokens.

        Args:
            features: ``[f, p, c]``.
            frames: How many frames each clip has; adds up to f.
            instruction: For connectors that read one.

        Returns:
            ``[tokens of all clips, d]``, clip after clip.
        """


@dataclass(frozen=True)
class ConnectorChoice:
    """A connector that a recipe puts in place of a backbone's own; lives in data workers, too.

    Attributes:
        factory: The class.
        options: An instance of its ``Options``.
    """

    factory: type[Connector]
    options: AnyOptions

    def build(self, host: ConnectorHost) -> Connector:
        """The connector for a backbone; draws from torch's global generator."""
        return self.factory(self.options, host)

    def small(self) -> ConnectorChoice:
        """The same at a small size; see `Connector.small_options`."""
        return replace(self, options=self.factory.small_options(self.options))

    def feature_need(self) -> FeatureNeed:
        """See `Connector.feature_need`."""
        return self.factory.feature_need(self.options)

    def reads_instruction(self) -> bool:
        """See `Connector.reads_instruction`."""
        return self.factory.reads_instruction(self.options)

    def tokens(self, host: ConnectorHost, frames: int) -> int:
        """See `Connector.tokens`."""
        return self.factory.tokens(self.options, host, frames)

    @property
    def description(self) -> dict[str, Any]:
        """Plain data by which a saved connector is known again: class and options."""
        return {
            "factory": f"{self.factory.__module__}:{self.factory.__qualname__}",
            "options": self.options.model_dump(mode="json"),
        }
