"""A mask head over the very small SAM 2 of tests/golden/sam2, and media made on the spot."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.heads.mask.tiny_sam2 import tiny_sizes, tiny_weights
from tpokit.batch import moved
from tpokit.data.media import read_media
from tpokit.interfaces import Host
from tpokit.types import Context, Media, MediaInfo, Seen
from tpokit_mask.head import MaskHead
from tpokit_mask.options import MaskOptions
from tpokit_mask.results import encode_mask

HIDDEN = 24
HEIGHT, WIDTH = 72, 96
SIDE = 64  # of the images of SAM 2: a quarter of the work at 128


def checkpoint(folder: Path) -> Path:
    """The weights as a file."""
    path = folder / "tiny.safetensors"
    if not path.is_file():
        save_file(tiny_weights(), path)
    return path


def make_head(folder: Path, *, sam2=(), **options) -> MaskHead:
    """A head in train mode, with the same weights each time."""
    chosen = {
        "size": tiny_sizes(),
        "image_size": SIDE,
        "checkpoint": str(checkpoint(folder)),
        **dict(sam2),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MaskHead(
            MaskOptions(**{"frames": 4, **options, "sam2": chosen}), Host(HIDDEN, folder=folder)
        ).train()


def disc(frame: int, shift: int = 0) -> np.ndarray:
    """A disc that moves to the right, ``[72, 96]``."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - 30 - shift) ** 2 + (columns - 30 - 6 * frame) ** 2 < 15**2


def image(folder: Path, shift: int = 0) -> tuple[Media, dict]:
    """A picture of a disc, and its annotation."""
    path = folder / f"image_{shift}.png"
    _paint(disc(0, shift), path)
    return Media("image", path), {"mask": {"rle": encode_mask(disc(0, shift))}}


def clip(folder: Path, frames: int = 4, shift: int = 0, gone: int = 99) -> tuple[Media, dict]:
    """A folder of frames, four a second, of a disc that is gone from one frame on."""
    path = folder / f"clip_{frames}_{shift}"
    path.mkdir(exist_ok=True)
    annotated = []
    for frame in range(frames):
        mask = disc(frame, shift) if frame < gone else np.zeros((HEIGHT, WIDTH), bool)
        _paint(mask, path / f"{frame:03d}.png")
        annotated.append({"time_s": frame / 4, "mask": {"rle": encode_mask(mask)}})
    return Media("video", path, rate=4.0), {"frames": annotated}


def _paint(mask: np.ndarray, path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 128, (*mask.shape, 3), dtype=np.uint8)
    pixels[mask] += 127
    Image.fromarray(pixels).save(path)


def seen_by(head: MaskHead, media: Media) -> Seen:
    """A call in training, as the core prepares it."""
    need = head.context_need().media
    views = read_media(media, {"mask": need}) if need and head.wants_frames(media) else {}
    info = MediaInfo(media.kind, WIDTH, HEIGHT)
    seen = Seen("data/1", "segment it", (media,), (info,), tuple(views.values()))
    return replace(seen, prepared=head.prepare(seen))


def slots(count: int, **more) -> torch.Tensor:
    """Hidden states of slots, ``[count, 1, 24]``; the first ones are always the same."""
    states = torch.randn(16, 1, HIDDEN, generator=torch.Generator().manual_seed(3))
    return states[:count].clone().requires_grad_(**more)


def train_step(head: MaskHead, samples, states: torch.Tensor, device="cpu") -> dict:
    """Loss terms of a batch of (media, annotation)."""
    calls = [seen_by(head, media) for media, _ in samples]
    found = [head.read_target(wrong, seen) for (_, wrong), seen in zip(samples, calls, strict=True)]
    targets = moved(head.collate(found), device)
    prepared = moved(head.collate_prepared([seen.prepared for seen in calls]), device)
    return head.loss(head(states, Context(prepared=prepared, targets=targets)), targets)


def total(terms: dict) -> torch.Tensor:
    """All terms added up."""
    return torch.stack([term.sum for term in terms.values()]).sum()


def ask(head: MaskHead, media: list[Media], states: torch.Tensor) -> list:
    """Results in inference."""
    head.eval()
    info = MediaInfo("image", WIDTH, HEIGHT)
    calls = [head.prepare(Seen("ask/1", "", (medium,), (info,))) for medium in media]
    with torch.no_grad():
        found = head(states, Context(prepared=head.collate_prepared(calls)))
    return head.decode(found, [info] * len(media))
