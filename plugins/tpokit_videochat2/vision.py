"""The video ViT of VideoChat2 (UMT-L): attention over space and time of a clip at once.

Source: arXiv 2303.16058 (UMT) and 2311.17005; OpenGVLab/Ask-Anything,
video_chat2/models/blip2/vit.py. Blocks are transformers' InstructBLIP blocks, which do the same.
We differ: clips of different lengths share a batch, and no block is built that does not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tpokit.errors import DataError, UsageError
from tpokit_videochat2.blocks import PatchEmbedding, block_config, clip_settings, make_block
from tpokit_videochat2.clips import ClipOrder, Run
from tpokit_videochat2.config import VisionOptions
from tpokit_videochat2.positions import PositionSizes, position_table


class VisionTower(nn.Module):
    """Frames of clips to features of their patches.

    Attributes:
        patch_embed: Pixels to patches.
        blocks: transformers' layers, with a `ClipAttention` each.
    """

    def __init__(self, sizes: VisionOptions, attention: str = "sdpa") -> None:
        """Build it with fresh weights, drawn from torch's global generator.

        Args:
            sizes: Of the tower.
            attention: ``sdpa``, ``eager`` or ``flash_attention_2``.

        Raises:
            UsageError: That implementation of attention is not there.
        """
        super().__init__()
        self.sizes = sizes
        self._grid = sizes.image_size // sizes.patch_size
        self._attention = attention
        self._recompute = False
        config = block_config(sizes, attention)
        self.patch_embed = PatchEmbedding(sizes.hidden_size, sizes.patch_size)
        self.blocks = nn.ModuleList(make_block(config) for _ in range(sizes.layers))

    def forward(
        self, pixels: Tensor, frames: Sequence[int], layers: Sequence[int] = (-1,)
    ) -> Tensor:
        """Features of clips; patches of a clip see each other, and no other clip.

        Args:
            pixels: ``[f, 3, side, side]``, normalised; frames of all clips, one after another.
            frames: How many frames each clip has; a clip of one is an image. Adds up to f.
            layers: Blocks whose output is wanted, by their place from the end: -1 is the last.

        Returns:
            ``[f, p, c * layers]``; p: patches of a frame, row by row. There is no norm at the end.

        Raises:
            DataError: Frames have another size, or do not add up.
            UsageError: There is no such layer.
        """
        kept = self._kept_blocks(layers)
        self._check(pixels, frames)
        clips = ClipOrder.of(frames, pixels.device)
        if clips.order is not None:
            pixels = pixels[clips.order]
        states = self._placed(self.patch_embed(pixels), clips.runs)
        runs = [Run(run.clips, run.length * self._grid**2) for run in clips.runs]
        settings = clip_settings(runs, self._attention, pixels.device)
        features = self._outputs(states, kept, settings).reshape(len(pixels), self._grid**2, -1)
        return features if clips.back is None else features[clips.back]

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """Frames ``[f, 3, side, side]`` to features ``[f, p, c]``, each alone, as an image.

        Raises:
            DataError: Frames have another size, or there are none.
        """
        return self(pixels, [1] * len(pixels))

    def gradient_checkpointing_enable(self) -> None:
        """Recompute the activations of a block in the backward pass instead of keeping them."""
        self._recompute = True

    def _placed(self, patches: Tensor, runs: Sequence[Run]) -> Tensor:
        """Patches ``[f, p, c]`` of sorted clips with their positions.

        ``[clips, l, c]`` where all clips are equally long, else ``[1, f * p, c]``.
        """
        sizes = self.sizes
        shape = PositionSizes(
            sizes.hidden_size, self._grid, sizes.pretrained_frames, sizes.pretrained_grid
        )
        placed = []
        for run, piece in zip(
            runs, patches.split([clips * length for clips, length in runs]), strict=True
        ):
            table = position_table(shape, run.length, patches.device, patches.dtype)
            # the table comes first: the sum then lies in memory as it does, not as a convolution's
            placed.append(table + piece.reshape(run.clips, -1, sizes.hidden_size))
        if len(placed) == 1:
            return placed[0]
        return torch.cat([piece.flatten(0, 1) for piece in placed])[None]

    def _outputs(self, states: Tensor, kept: Sequence[int], settings: dict[str, Any]) -> Tensor:
        """Outputs of the blocks ``kept``, joined along the width."""
        outputs: dict[int, Tensor] = {}
        count = self._blocks_to_run(kept)
        for index in range(count):
            block = self.blocks[index]
            if self._recompute and torch.is_grad_enabled():
                # non-reentrant: the other way, blocks behind frozen patches learn nothing
                states = checkpoint(block, states, use_reentrant=False, **settings)
            else:
                states = block(states, **settings)
            if index in kept:
                outputs[index] = states
        joined = [outputs[index] for index in kept]
        features = joined[0] if len(joined) == 1 else torch.cat(joined, dim=-1)
        if count - 1 not in outputs:
            # Trained blocks behind the wanted ones: with no gradient at all they would stop DDP.
            features = features + 0.0 * states[0, 0].sum()
        return features

    def _kept_blocks(self, layers: Sequence[int]) -> list[int]:
        """Numbers of the blocks whose output is wanted."""
        count = len(self.blocks)
        wrong = [layer for layer in layers if not -count <= layer <= -1]
        if wrong or not layers:
            raise UsageError(
                f"layers {list(layers)} of the vision tower: it has {count}, counted from the end, "
                f"from -1 (the last) to {-count} (the first), and at least one must be named"
            )
        return [count + layer for layer in layers]

    def _blocks_to_run(self, kept: Sequence[int]) -> int:
        """Up to the last one that is wanted; all, if those behind it are trained."""
        needed = max(kept) + 1
        behind = self.blocks[needed:].parameters()
        trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in behind)
        return len(self.blocks) if trained else needed

    def _check(self, pixels: Tensor, frames: Sequence[int]) -> None:
        """Compare pixels with the sizes of the tower and with the clips."""
        side = self.sizes.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, side, side):
            raise DataError(
                f"pixels have the shape {list(pixels.shape)}; the vision tower takes frames of "
                f"{side} x {side} pixels, [frames, 3, {side}, {side}]"
            )
        if sum(frames) != len(pixels):
            raise DataError(
                f"clips have {list(frames)} frames, {sum(frames)} together; the pixels are of "
                f"{len(pixels)} frames"
            )
