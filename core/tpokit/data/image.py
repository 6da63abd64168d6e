"""One image file, as pixels that stand upright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tpokit.errors import DataError


def read_image(path: Path) -> np.ndarray:
    """Decode an image.

    Returns:
        uint8 ``[h, w, 3]`` RGB, turned as its EXIF data say.

    Raises:
        DataError: The file is no image, broken or too large; names it and the reason.
    """
    try:
        with Image.open(path) as picture:
            _check_size(path, picture)
            return np.array(_upright_rgb(picture))
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
