"""LaSOT and GOT-10k: a folder for each sequence, with a box of one object on each frame.

LaSOT: ``airplane/airplane-1/`` with ``img/00000001.jpg``, ``groundtruth.txt``,
``full_occlusion.txt``, ``out_of_view.txt`` and ``nlp.txt``. GOT-10k:
``train/GOT-10k_Train_000001/`` with ``00000001.jpg``, ``groundtruth.txt``, ``absence.label`` and
``cover.label``, and ``train/list.txt``. What the flags say goes before the boxes, which may be left
from an earlier frame.

Source: Fan et al., CVPR 2019; Huang et al., TPAMI 2021.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tpokit.data.frame_folder import frame_names
from tpokit.data.lines import TextLines
from tpokit.errors import DataError
from tpokit_mask.sources.listed_frames import all_frames
from tpokit_mask.sources.options import Got10kOptions, LasotOptions
from tpokit_mask.sources.text_files import read_boxes, read_flags, read_names
from tpokit_mask.sources.tracks import Track, TrackSource


class BoxTrackSource(TrackSource):
    """One sample for each sequence, whose name is its id; annotations have boxes, no masks."""

    _rate: float
    _labelled: bool
    _sequences: Sequence[Path]

    def __len__(self) -> int:
        return len(self._sequences)

    @abstractmethod
    def _frames(self, sequence: Path) -> Path:
        """Folder of the frames of a sequence."""

    @abstractmethod
    def _hidden(self, sequence: Path, count: int) -> list[bool]:
        """On which of its frames the object is not visible."""

    def _expression(self, sequence: Path) -> str | None:
        """What refers to the object, if its box is not given."""
        return None

    def _track(self, index: int) -> Track:
        sequence = self._sequences[index]
        folder, path = self._frames(sequence), sequence / "groundtruth.txt"
        video = all_frames(folder, self._rate)
        boxes, count = read_boxes(path, _size(folder)), len(video.times_s)
        if not self._labelled:
            boxes = boxes[:1]
        elif len(boxes) != count:
            raise DataError(
                f"{path}: has {len(boxes)} boxes for {count} frames in {folder}; a split of which "
                "only the first box is published is read with labelled: false"
            )
        else:
            hidden = self._hidden(sequence, count)
            boxes = [None if gone else box for box, gone in zip(boxes, hidden, strict=True)]
        times_s = video.times_s[: len(boxes)]
        return Track(
            id=sequence.name,
            media=video.media,
            frame_s=video.frame_s,
            frames=tuple(
                {"time_s": time_s, "box": box} for time_s, box in zip(times_s, boxes, strict=True)
            ),
            where=str(path),
            expression=self._expression(sequence),
            labelled=self._labelled,
        )


class LasotSource(BoxTrackSource):
    """Not visible: wholly hidden (``full_occlusion.txt``) or out of view (``out_of_view.txt``)."""

    Options = LasotOptions
    _labelled = True

    def __init__(self, options: LasotOptions, folder: Path) -> None:
        """Find the sequences; see `DataSource`."""
        super().__init__(options, folder)
        self._rate, self._language = options.rate, options.language
        root = (folder / options.folder).absolute()
        if options.split is not None:
            names = read_names(folder / options.split)
            self._sequences = [root / name.rpartition("-")[0] / name for name in names]
        else:
            self._sequences = sorted(path.parent for path in root.glob("*/*/groundtruth.txt"))
        if not self._sequences:
            raise DataError(f"{root}: there is no groundtruth.txt in CATEGORY/SEQUENCE below it")

    def _frames(self, sequence: Path) -> Path:
        return sequence / "img"

    def _hidden(self, sequence: Path, count: int) -> list[bool]:
        hidden = read_flags(sequence / "full_occlusion.txt", count)
        outside = read_flags(sequence / "out_of_view.txt", count)
        return [a or b for a, b in zip(hidden, outside, strict=True)]

    def _expression(self, sequence: Path) -> str | None:
        return TextLines(sequence / "nlp.txt").read(0) if self._language else None


class Got10kSource(BoxTrackSource):
    """Not visible: absent (``absence.label``) or nothing of it uncovered (0 in ``cover.label``)."""

    Options = Got10kOptions

    def __init__(self, options: Got10kOptions, folder: Path) -> None:
        """Read the list of the split; see `DataSource`."""
        super().__init__(options, folder)
        self._rate, self._labelled = options.rate, options.labelled
        root = (folder / options.folder).absolute()
        self._sequences = [root / name for name in read_names(root / "list.txt")]

    def _frames(self, sequence: Path) -> Path:
        return sequence

    def _hidden(self, sequence: Path, count: int) -> list[bool]:
        absent = read_flags(sequence / "absence.label", count)
        uncovered = read_flags(sequence / "cover.label", count)
        return [gone or not seen for gone, seen in zip(absent, uncovered, strict=True)]


def _size(folder: Path) -> tuple[int, int]:
    """Height and width of the frames in a folder; only the head of the first is read."""
    path = folder / frame_names(folder)[0]
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError, ValueError) as cause:
        raise DataError(f"{path}: cannot be read as an image: {cause}") from cause
