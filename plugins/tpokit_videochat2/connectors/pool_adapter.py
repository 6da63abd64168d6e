"""The pool-adapter of InfMLLM: patches averaged to a coarser grid, then an MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

import tpokit
from tpokit.interfaces import Connector, ConnectorHost, FeatureNeed, Instruction
from tpokit_videochat2.connectors.layers import Float32LayerNorm, projector
from tpokit_videochat2.connectors.options import PoolAdapterOptions


class PoolAdapter(Connector):
    """Tokens keep their place in the image, and how many there are is an option.

    Source: arXiv 2311.06791; infly-ai/INF-MLLM, INF-MLLM1/infmllm/models/pooler.py, whose
    parameters have the same names. We differ: several frames, any number of leading tokens, grids
    that are not square, a stage over time, and the LayerNorm of the model around it is part of it.
    """

    Options = PoolAdapterOptions
    options: PoolAdapterOptions

    def __init__(self, options: tpokit.Options, host: ConnectorHost) -> None:
        super().__init__(options, host)
        assert isinstance(options, PoolAdapterOptions)
        _check_grid(options, host)
        width = host.vision * len(options.vision_layers)
        self.norm: nn.Module = Float32LayerNorm(width) if options.norm else nn.Identity()
        self.mlp = projector(width, options.hidden, host.hidden)

    @classmethod
    def feature_need(cls, options: tpokit.Options) -> FeatureNeed:
        """The layers of the option."""
        return FeatureNeed(cast(PoolAdapterOptions, options).vision_layers)

    @classmethod
    def small_options(cls, options: tpokit.Options) -> PoolAdapterOptions:
        """As wide as the LLM."""
        return cast(PoolAdapterOptions, options).model_copy(update={"hidden": None})

    @classmethod
    def tokens(cls, options: tpokit.Options, host: ConnectorHost, frames: int) -> int:
        """Frames that are left, times cells of the grid.

        Raises:
            UsageError: The grid does not divide that of the patches, and the mode is exact.
            DataError: So many frames cannot be averaged in equal groups, and the mode is exact.
        """
        assert isinstance(options, PoolAdapterOptions)
        _check_grid(options, host)
        rows, columns = options.grid
        return _frames_left(options, frames) * rows * columns

    def forward(
        self, features: Tensor, frames: Sequence[int], instruction: Instruction | None = None
    ) -> Tensor:
        """Tokens in the order frame, row, column; see `Connector.forward`.

        Raises:
            DataError: As `tokens`.
        """
        patches = self.norm(features[:, self.host.leading :])
        cells = patches.unflatten(1, self.host.grid)  # [f, rows, columns, c]
        if self.options.frames is None:
            pooled = pool(cells[:, None], (1, *self.options.grid))
        elif min(frames) == max(frames):
            pooled = self._pool_equal(cells.unflatten(0, (-1, frames[0])))
        else:
            pooled = self._pool_mixed(cells, frames)
        tokens: Tensor = self.mlp(pooled.flatten(0, -2))
        return tokens

    def _pool_equal(self, clips: Tensor) -> Tensor:
        """Clips of one length, ``[k, l, rows, columns, c]`` to ``[k, t, n, m, c]``."""
        return pool(clips, (_frames_left(self.options, clips.shape[1]), *self.options.grid))

    def _pool_mixed(self, cells: Tensor, frames: Sequence[int]) -> Tensor:
        """Clips of several lengths, all of one length at once.

        Which rows these are follows from the lengths, which the host has, so that a GPU need not be
        waited for.

        Args:
            cells: ``[f, rows, columns, c]``.
            frames: How many of them each clip has.

        Returns:
            ``[frames that are left of all clips, n, m, c]``, clip after clip.
        """
        lengths = torch.tensor(frames)
        left = torch.tensor([_frames_left(self.options, count) for count in frames])
        pooled, places = [], []
        for length in sorted(set(frames)):
            chosen = lengths == length
            rows = _rows(lengths, chosen).to(cells.device, non_blocking=True)
            pooled.append(self._pool_equal(cells[rows]).flatten(0, 1))
            places.append(_rows(left, chosen).flatten())
        order = torch.cat(places).argsort().to(cells.device, non_blocking=True)
        return torch.cat(pooled)[order]


def pool(clips: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Average over windows in time and space, ``[k, l, rows, columns, c]`` to ``[k, t, n, m, c]``.

    Windows are equal and do not overlap if ``size`` divides the shape; else they are those of
    ``adaptive_avg_pool3d``.

    Args:
        clips: k clips of l frames.
        size: t, n, m.
    """
    count, length, rows, columns, width = clips.shape
    t, n, m = size
    if length % t or rows % n or columns % m:
        adapted = nn.functional.adaptive_avg_pool3d(clips.movedim(-1, 1), size)
        return adapted.movedim(1, -1)
    windows = clips.reshape(count, t, length // t, n, rows // n, m, columns // m, width)
    return windows.mean((2, 4, 6))


def _rows(lengths: Tensor, chosen: Tensor) -> Tensor:
    """Rows of the chosen clips, ``[k, l]``, where clips stand one after another.

    Args:
        lengths: Rows of each clip, ``[clips]``.
        chosen: Which clips, ``[clips]`` bool; all of one length l.
    """
    starts = (lengths.cumsum(0) - lengths)[chosen]
    return starts[:, None] + torch.arange(int(lengths[chosen][0]))


def _check_grid(options: PoolAdapterOptions, host: ConnectorHost) -> None:
    for name, want, have in zip(("rows", "columns"), options.grid, host.grid, strict=True):
        if want > have:
            raise tpokit.UsageError(
                f"pool_adapter: grid asks for {want} {name} of tokens, but a frame has only {have} "
                f"{name} of patches"
            )
        if have % want and options.mode == "exact":
            divisors = ", ".join(str(n) for n in range(1, have + 1) if have % n == 0)
            raise tpokit.UsageError(
                f"pool_adapter: {have} {name} of patches cannot be averaged to {want} {name} in "
                f"equal windows; grid may be {divisors}, or set mode: adaptive"
            )


def _frames_left(options: PoolAdapterOptions, frames: int) -> int:
    """Frames that the stage over time makes of so many."""
    want = options.frames
    if want is None or frames == 1:
        return frames
    if options.mode == "adaptive":
        return min(want, frames)
    if frames % want:
        raise tpokit.DataError(
            f"pool_adapter: {frames} frames cannot be averaged to {want} in equal groups; set "
            f"frames to a divisor of {frames}, have the backbone read a multiple of {want}, or set "
            "mode: adaptive"
        )
    return want
