"""What the visual path of VideoChat2 costs, against transformers' VideoMAE of the same size.

    python bench/visual_path.py [--quick] [--repeats 3] [--device cuda]

One clip of 16 frames of 224 px, forward and backward, float32, random weights: the tower alone
(23 blocks, 1024 wide), and the tower with its Q-Former (LayerNorm, 12 layers with 96 queries,
projection to 4096). VideoMAE has the tower's weights and positions, so that their features and
gradients must be equal. One process, in turns; on a CPU times are least processor seconds over all
threads, on a GPU least seconds by the clock. All parts are in training mode, the Q-Former with its
dropout. The goal is a ratio of at most 1.05 for both. On a machine that others use too, one thread
says more than several (a thread that waits for another counts as busy), and more repeats than few.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from timing import seconds
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEModel

from tpokit.interfaces import ConnectorHost
from tpokit_videochat2.config import VisionOptions
from tpokit_videochat2.connectors.options import QFormerOptions
from tpokit_videochat2.connectors.qformer import QFormerConnector
from tpokit_videochat2.positions import PositionSizes, position_table
from tpokit_videochat2.vision import VisionTower

GOAL = 1.05
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Size:
    """How large everything is; the defaults are the release."""

    frames: int = 16
    hidden: int = 4096
    vision: VisionOptions = field(default_factory=VisionOptions)
    qformer: QFormerOptions = field(default_factory=QFormerOptions)


QUICK = Size(
    frames=4,
    hidden=64,
    vision=VisionOptions(
        image_size=64, hidden_size=32, layers=2, heads=2, intermediate_size=64, pretrained_grid=4
    ),
    qformer=QFormerOptions(width=32, layers=2, heads=2, intermediate=64),
)


def make_videomae(size: Size, tower: VisionTower) -> VideoMAEModel:
    """VideoMAE of transformers with weights and positions of the tower."""
    sizes = size.vision
    config = VideoMAEConfig(
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        num_frames=size.frames,
        tubelet_size=1,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.intermediate_size,
        layer_norm_eps=sizes.layer_norm_eps,
        use_mean_pooling=True,  # so there is no norm at the end
        attn_implementation="sdpa",
    )
    model = VideoMAEModel(config)
    grid = sizes.image_size // sizes.patch_size
    shape = PositionSizes(sizes.hidden_size, grid, sizes.pretrained_frames, sizes.pretrained_grid)
    device = tower.patch_embed.weight.device
    positions = position_table(shape, size.frames, device, torch.float32)
    model.embeddings.position_embeddings = positions[None]
    pairs = [(model.embeddings.patch_embeddings.projection, tower.patch_embed)]
    for theirs, ours in zip(model.encoder.layer, tower.blocks, strict=True):
        copy_products(theirs.attention.attention, ours.self_attn.qkv)
        pairs += [
            (theirs.attention.output.dense, ours.self_attn.projection),
            (theirs.layernorm_before, ours.layer_norm1),
            (theirs.layernorm_after, ours.layer_norm2),
            (theirs.intermediate.dense, ours.mlp.fc1),
            (theirs.output.dense, ours.mlp.fc2),
        ]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    return model.to(device).train()


@torch.no_grad()
def copy_products(theirs: nn.Module, ours: nn.Module) -> None:
    """Weights of queries, keys and values; of keys only newer versions have no bias."""
    layers = theirs.query, theirs.key, theirs.value
    biases = ours.q_bias, torch.zeros_like(ours.q_bias), ours.v_bias
    for layer, weight, bias in zip(layers, ours.weight.chunk(3), biases, strict=True):
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)


class Paths:
    """What is compared: each makes features of one clip and goes back from them."""

    def __init__(self, size: Size, device: str) -> None:
        """Build all of them with random weights."""
        torch.manual_seed(0)
        sizes = size.vision
        grid = sizes.image_size // sizes.patch_size
        self._frames = size.frames
        self.tower = VisionTower(sizes).to(device).train()
        host = ConnectorHost(sizes.hidden_size, size.hidden, (grid, grid))
        self.connector = QFormerConnector(size.qformer, host).to(device).train()
        self.videomae = make_videomae(size, self.tower)
        shape = size.frames, 3, sizes.image_size, sizes.image_size
        self.pixels = torch.randn(shape, device=device)

    def run_tower(self) -> Tensor:
        """The tower alone."""
        return self._back(self.tower(self.pixels, [self._frames]))

    def run_path(self) -> Tensor:
        """The tower and its connector."""
        return self._back(self.connector(self.tower(self.pixels, [self._frames]), [self._frames]))

    def run_videomae(self) -> Tensor:
        """What both are measured by."""
        return self._back(self.videomae(self.pixels[None]).last_hidden_state)

    def forget(self) -> None:
        """Drop all gradients, which is not part of a run."""
        for module in (self.tower, self.connector, self.videomae):
            module.zero_grad()

    def difference(self) -> float:
        """How far tower and VideoMAE are apart: features, and gradients of the first layer."""
        ours, theirs = self.run_tower(), self.run_videomae()
        projection = self.videomae.embeddings.patch_embeddings.projection
        pairs = (
            (ours.flatten(), theirs.flatten()),
            (
                self.tower.patch_embed.weight.grad,
                projection.weight.grad,
            ),
        )
        self.forget()
        return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)

    @staticmethod
    def _back(features: Tensor) -> Tensor:
        features.square().mean().backward()
        return features.detach()


def all_seconds(
    paths: Paths, runs: dict[str, Callable[[], object]], device: str, repeats: int
) -> dict[str, list[float]]:
    """Times of each, in turns, the order turned around each time."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name in sorted(runs, reverse=bool(repeat % 2)):
            found[name].append(seconds(runs[name], device))
            paths.forget()
    return found


def main() -> None:
    """Measure and print.

    Raises:
        SystemExit: Tower and VideoMAE do not give the same.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny size")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    paths = Paths(size, options.device)
    apart = paths.difference()  # which warms both as well
    if apart > TOLERANCE:
        raise SystemExit(f"tower and VideoMAE differ by {apart:.1e} of their maximum")
    print(
        f"{size.frames} frames of {size.vision.image_size} px, {size.vision.layers} blocks of "
        f"{size.vision.hidden_size}, float32, {options.device}, {torch.get_num_threads()} threads, "
        f"{options.repeats} repeats; tower and VideoMAE differ by {apart:.1e} of their maximum"
    )
    runs = {"tower": paths.run_tower, "visual path": paths.run_path, "VideoMAE": paths.run_videomae}
    found = all_seconds(paths, runs, options.device, options.repeats)
    for name, times in found.items():
        print(f"{name}: least {min(times):.3f} s, most {max(times):.3f} s")
    for name in ("tower", "visual path"):
        ratio = min(found[name]) / min(found["VideoMAE"])
        verdict = "reached" if ratio <= GOAL else "MISSED"
        print(f"{name} / VideoMAE, least times: {ratio:.3f} (goal at most {GOAL}: {verdict})")


if __name__ == "__main__":
    main()
