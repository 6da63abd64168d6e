"""Pixels of the shapes world: backgrounds, colours, and real PNG and mp4 files.

Backgrounds are procedural (smooth colour textures, gradients and soft blobs), so nothing here has
an owner. A file is written under a temporary name and then renamed: it is whole or absent.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tpokit_shapes_world.scenes import Scene, scene_generator

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_RGB = {  # 0..1
    "red": (0.86, 0.10, 0.12),
    "orange": (0.97, 0.52, 0.06),
    "yellow": (0.96, 0.90, 0.15),
    "green": (0.12, 0.62, 0.18),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.12, 0.22, 0.85),
    "purple": (0.58, 0.14, 0.72),
    "white": (0.96, 0.96, 0.96),
}
_SHADE = 0.08  # an object is painted darker by up to this share, the same all over
_GRIDS = (2, 3, 4, 6)  # control points along a side: the fewer, the smoother


def paint(scene: Scene) -> Pixels:
    """All frames of a scene, ``[frames, side, side, 3]``, RGB."""
    options = scene.options
    generator = scene_generator(scene.seed, scene.index, "paint")
    frames = np.repeat(
        _background(generator, options.side, options.background_contrast)[None],
        options.frames,
        axis=0,
    )
    for thing, mask in zip(scene.objects, scene.masks, strict=True):
        shade = 1 - generator.uniform(0, _SHADE)
        frames[mask] = np.asarray(_RGB[thing.colour], np.float32) * np.float32(shade)
    noise = generator.standard_normal(frames.shape, dtype=np.float32)
    frames += np.float32(options.noise) * noise
    return (np.clip(frames, 0, 1) * 255 + 0.5).astype(np.uint8)


def write_png(scene: Scene, path: str | os.PathLike[str]) -> None:
    """Write the first frame of a scene as a PNG, atomically."""
    picture = Image.fromarray(paint(scene)[0])
    _write_whole(Path(path), lambda part: picture.save(part, format="PNG", compress_level=1))


def write_mp4(scene: Scene, path: str | os.PathLike[str], quality: int = 18) -> None:
    """Write a clip as H.264 in an mp4 at the scene's frame rate, atomically.

    Args:
        scene: What to write; its side must be even (4:2:0 colour).
        path: Where to.
        quality: The constant rate factor of x264; at 18 a value is off by 6 of 255 on average,
            most of it the pixel noise and the coarser colour of 4:2:0.
    """
    frames = paint(scene)
    _write_whole(Path(path), lambda part: _encode(frames, part, scene.options.fps, quality))


def _encode(frames: Pixels, path: Path, fps: float, quality: int) -> None:
    import av  # only clips need it

    with av.open(str(path), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        # a quick preset: such small frames gain nothing from a longer search, and time is short
        options = {"crf": str(quality), "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # one thread: several give other bytes from run to run
        stream.codec_context.thread_count = 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary neighbour of ``path``, then put it in place."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _background(generator: np.random.Generator, side: int, contrast: float) -> Floats:
    """A muted texture with a gradient and soft blobs, ``[side, side, 3]`` in 0..1."""
    mean = generator.uniform(0.25, 0.65) + generator.uniform(-0.08, 0.08, 3)
    picture = np.zeros((side, side, 3), np.float32)
    for share in (0.6, 0.4):
        points = int(generator.choice(_GRIDS))
        grey = generator.uniform(-1, 1, (points, points, 1))
        tint = generator.uniform(-1, 1, (points, points, 3))
        spread = _spread(side, points)
        controls = (share * (0.7 * grey + 0.5 * tint)).astype(np.float32)  # [points, points, 3]
        rows = np.tensordot(spread, controls, 1)  # [side, points, 3]
        picture += np.einsum("xj,yjc->yxc", spread, rows)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    slope = generator.uniform(-0.5, 0.5, (2, 3)).astype(np.float32)
    picture += ramp[:, None, None] * slope[0] + ramp[None, :, None] * slope[1]
    for _ in range(int(generator.integers(0, 4))):
        picture += _blob(generator, side)
    picture *= np.float32(contrast / 2)
    return picture + mean.astype(np.float32)


def _blob(generator: np.random.Generator, side: int) -> Floats:
    """A soft round spot, ``[side, side, 3]``, at most 0.8 in size."""
    places = np.linspace(0, 1, side, dtype=np.float32)
    x, y = generator.uniform(0, 1, 2).astype(np.float32)
    width = np.float32(generator.uniform(0.08, 0.25))
    across, along = (np.exp(-(((places - at) / width) ** 2)) for at in (x, y))
    tone = generator.uniform(-0.8, 0.8, 3).astype(np.float32)
    spot: Floats = along[:, None, None] * across[None, :, None] * tone
    return spot


@cache
def _spread(side: int, points: int) -> Floats:
    """Weights ``[side, points]`` that interpolate control points smoothly along a side."""
    at = np.linspace(0, points - 1, side)
    left = np.minimum(at.astype(int), points - 2)
    rest = at - left
    rest = rest * rest * (3 - 2 * rest)  # smooth step: no visible creases at the control points
    weights = np.zeros((side, points), np.float32)
    weights[np.arange(side), left] = 1 - rest
    weights[np.arange(side), left + 1] = rest
    return weights
