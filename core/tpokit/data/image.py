"""One image file, as pixels that stand upright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from tpokit.errors import DataError

_TURNED = (5, 6, 7, 8)
"""Values of EXIF's orientation for a picture that lies on its side."""


def read_image(path: Path) -> np.ndarray:
    """Decode an image.

    Returns:
        uint8 ``[h, w, 3]`` RGB, turned as its EXIF data say.

    Raises:
        DataError: The file is no image, broken or too large; names it and the reason.
    """
    with _opened(path) as picture:
        return np.array(_upright_rgb(picture))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of an image that stands upright; nothing is decoded.

    Raises:
        DataError: As `read_image`, as far as the head of the file shows it.
    """
    with _opened(path) as picture:
        # Pillow would decode a PNG to look for EXIF data behind its pixels
        known = picture.format != "PNG" or "exif" in picture.info
        turned = known and picture.getexif().get(ExifTags.Base.Orientation) in _TURNED
        return picture.size[::-1] if turned else picture.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image whose head was read; what goes wrong with it is explained."""
    try:
        with Image.open(path) as picture:
            _check_size(path, picture)
            yield picture
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        MemoryError,
        Image.DecompressionBombError,
    ) as cause:
        raise DataError(f"{path}: cannot be read as an image: {cause}") from cause


def _check_size(path: Path, picture: Image.Image) -> None:
    """Before decoding: Pillow only warns up to twice its limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise DataError(
            f"{path}: an image of {picture.width} x {picture.height} pixels is larger than "
            f"the limit of {limit} pixels"
        )


def _upright_rgb(picture: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):  # Pillow would clip 16 bits, not scale them
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return upright.convert("RGB")
