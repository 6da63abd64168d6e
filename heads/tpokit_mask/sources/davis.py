"""DAVIS, and sets in its layout: folders of frames and of masks with the same names.

``JPEGImages/480p/{sequence}/00000.jpg`` and ``Annotations/480p/{sequence}/00000.png``, whose pixels
are numbers of objects. A frame without a mask is not annotated.

Source: Pont-Tuset et al., arXiv 1704.00675; expressions: Khoreva et al., ACCV 2018.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tpokit.data.frame_folder import frame_names
from tpokit.data.lines import existing_file
from tpokit.errors import DataError
from tpokit_mask.sources.listed_frames import all_frames
from tpokit_mask.sources.options import DavisOptions
from tpokit_mask.sources.text_files import read_names
from tpokit_mask.sources.tracks import Track, TrackSource

_LINE = re.compile(r'(\S+)\s+(\d+)\s+"?(.*?)"?')
# as they stand in the published expressions
_MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
_FULL = 255


@dataclass(frozen=True, slots=True)
class _Object:
    """An object of a sequence, with an expression if it has one."""

    id: str
    sequence: str
    value: int
    expression: str | None = None


class DavisSource(TrackSource):
    """One sample for each object, or for each expression.

    The id is ``sequence/object``; that of the n-th expression of an object ``sequence/object-n``,
    from the second one on. Without expressions, the objects are those of the first mask of a
    sequence; all first masks are read when the source is opened. 255 is an object only where there
    is no other (DAVIS 2016); elsewhere it marks pixels that do not count.
    """

    Options = DavisOptions

    def __init__(self, options: DavisOptions, folder: Path) -> None:
        """Find sequences and objects; see `DataSource`."""
        super().__init__(options, folder)
        self._rate, self._labelled = options.rate, options.labelled
        root = (folder / options.folder).absolute()
        self._frames, self._masks = root / options.frames, root / options.masks
        if not self._masks.is_dir():
            raise DataError(f"{self._masks}: there is no such folder of masks")
        if options.split is not None:
            sequences = read_names(folder / options.split)
        else:
            sequences = sorted(path.name for path in self._masks.iterdir() if path.is_dir())
        if options.expressions is not None:
            self._objects = _named(folder / options.expressions, sequences)
        else:
            self._objects = [
                _Object(f"{sequence}/{value}", sequence, value)
                for sequence in sequences
                for value in _values(_first(self._masks / sequence))
            ]
        if not self._objects:
            raise DataError(f"{self._masks}: no sequence has an object")

    def __len__(self) -> int:
        return len(self._objects)

    def _track(self, index: int) -> Track:
        found = self._objects[index]
        folder = self._frames / found.sequence
        masks = self._masks / found.sequence
        video = all_frames(folder, self._rate)
        times_s = dict(zip(video.names, video.times_s, strict=True))
        names = frame_names(masks)
        lacking = [name for name in names if Path(name).stem not in times_s]
        if lacking:
            raise DataError(f"{masks / lacking[0]}: there is no frame of this name in {folder}")
        frames = tuple(
            {
                "time_s": times_s[Path(name).stem],
                "mask": {"png": str(masks / name), "values": [found.value]},
            }
            for name in names
        )
        if not self._labelled:
            frames = () if found.expression is not None else frames[:1]
        return Track(
            id=found.id,
            media=video.media,
            frame_s=video.frame_s,
            frames=frames,
            where=f"{masks}, object {found.value}",
            expression=found.expression,
            labelled=self._labelled,
        )


def _first(folder: Path) -> Path:
    return folder / frame_names(folder)[0]


def _values(path: Path) -> list[int]:
    """The objects of a mask."""
    try:
        with Image.open(path) as picture:
            numbers = np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as cause:
        raise DataError(f"{path}: the mask cannot be read as a picture: {cause}") from cause
    if numbers.ndim != 2:
        raise DataError(
            f"{path}: the mask is in colour; right is one channel, palette or grey, where the "
            "value of a pixel is the number of its object"
        )
    values = [int(value) for value in np.unique(numbers) if value]
    return values if values == [_FULL] else [value for value in values if value != _FULL]


def _named(path: Path, sequences: Sequence[str]) -> list[_Object]:
    """Objects by their expressions, of some sequences."""
    wanted = set(sequences)
    counts: Counter[str] = Counter()
    objects = []
    for sequence, value, expression in _expressions(path):
        if sequence not in wanted:
            continue
        name = f"{sequence}/{value}"
        counts[name] += 1
        number = f"-{counts[name]}" if counts[name] > 1 else ""
        objects.append(_Object(name + number, sequence, value, expression))
    if not objects:
        raise DataError(f"{path}: no expression is about one of the {len(wanted)} sequences")
    return objects


def _expressions(path: Path) -> Iterator[tuple[str, int, str]]:
    """Sequence, object and text of each line."""
    found = existing_file(path).read_bytes()
    try:
        text = found.decode("utf-8-sig")
    except UnicodeDecodeError:  # two of the four published files
        text = found.decode("latin-1")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        parts = _LINE.fullmatch(line.strip())
        if parts is None or not parts[3].strip():
            raise DataError(
                f'{path}, line {number}: expected sequence, object and "expression", found '
                f"{line.strip()!r:.80}"
            )
        yield _MISSPELT.get(parts[1], parts[1]), int(parts[2]), parts[3].strip()
