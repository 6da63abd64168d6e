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
from transformers import InstructBlipVisionConfig
from transformers.models.instructblip.modeling_instructblip import InstructBlipEncoderLayer

from tpokit.errors import DataError, UsageError
from tpokit_videochat2.clips import ClipOrder, Run, attention_by_clip
from tpokit_videochat2.config import VisionOptions
from tpokit_videochat2.positions import PositionSizes, position_table

_INITIAL_DEVIATION = 0.02


class PatchEmbedding(nn.Conv3d):
    """Pixels to patches, each frame for itself.

    Its weight ``[c, 3, 1, patch, patch]`` is stored as released, for a convolution over time as
    well; over one frame that is the same as one over the picture, for which libraries are faster.
    """

    def __init__(self, width: int, patch: int) -> None:
        """Make it; ``patch`` is the side of a patch in pixels."""
        super().__init__(3, width, (1, patch, patch), stride=(1, patch, patch))

    def forward(self, pixels: Tensor) -> Tensor:
        """Frames ``[f, 3, side, side]`` to patches ``[f, p, c]``, row by row."""
        weight = self.weight.squeeze(2)
        pictures = nn.functional.conv2d(
            pixels.to(weight.dtype), weight, self.bias, stride=self.stride[1:]
        )
        return pictures.flatten(2).transpose(1, 2)


class QueryKeyValue(nn.Module):
    """Queries, keys and values in one product; keys have no bias, and as released none is stored.

    Attributes:
        weight: ``[3 c, c]``, rows of queries, keys, values.
        q_bias, v_bias: ``[c]``.
    """

    def __init__(self, width: int) -> None:
        """Make it; the weight is left to `VisionTower`."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * width, width))
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(self, states: Tensor) -> Tensor:
        """``[..., c]`` to ``[..., 3 c]``."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return nn.functional.linear(states, self.weight, bias)


class VisionTower(nn.Module):
    """Frames of clips to features of their patches.

    Attributes:
        patch_embed: Pixels to patches.
        blocks: transformers' layers, with a `QueryKeyValue` each.
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
        config = InstructBlipVisionConfig(
            hidden_size=sizes.hidden_size,
            intermediate_size=sizes.intermediate_size,
            num_attention_heads=sizes.heads,
            layer_norm_eps=sizes.layer_norm_eps,
            hidden_act="gelu",
            attention_dropout=0.0,
            attn_implementation=attention_by_clip(attention),
        )
        self.patch_embed = PatchEmbedding(sizes.hidden_size, sizes.patch_size)
        self.blocks = nn.ModuleList(_block(config) for _ in range(sizes.layers))

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
        settings = clips.attention_arguments(self._grid**2, self._attention, pixels.device)
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
            placed.append(table + piece.reshape(run.clips, -1, sizes.hidden_size))
        if len(placed) == 1:
            return placed[0]
        return torch.cat([piece.flatten(0, 1) for piece in placed])[None]

    def _outputs(self, states: Tensor, kept: Sequence[int], settings: dict[str, Any]) -> Tensor:
        """Outputs of the blocks ``kept``, joined along the width."""
        outputs: dict[int, Tensor] = {}
        for index in range(self._blocks_to_run(kept)):
            block = self.blocks[index]
            if self._recompute and torch.is_grad_enabled():
                states = checkpoint(
                    block,
                    states,
                    use_reentrant=False,  # the other way, LoRA behind frozen patches learns nothing
                    preserve_rng_state=False,  # nothing in a block is random
                    **settings,
                )
            else:
                states = block(states, **settings)
            if index in kept:
                outputs[index] = states
        joined = [outputs[index] for index in kept]
        features = joined[0] if len(joined) == 1 else torch.cat(joined, dim=-1)
        if len(self.blocks) - 1 not in outputs and states.requires_grad:
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


def _block(config: InstructBlipVisionConfig) -> InstructBlipEncoderLayer:
    """A layer with fresh weights, as timm draws them."""
    block = InstructBlipEncoderLayer(config)
    block.self_attn.qkv = QueryKeyValue(config.hidden_size)
    for module in block.modules():
        if isinstance(module, nn.Linear | QueryKeyValue):
            nn.init.trunc_normal_(module.weight, std=_INITIAL_DEVIATION)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return block
