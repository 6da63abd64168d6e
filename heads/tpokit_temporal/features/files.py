"""Features that were worked out before and lie in files, as the field publishes them.

Source: wjun0830/CGDETR, cg_detr/start_end_dataset.py: features of a video by several extractors are
scaled to length 1 each, cut to the shortest and put side by side. We differ in two points: a length
that cannot be that of the video is an error, where the released code cuts in silence; and folders
with other frame rates are brought to one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import tpokit
from tpokit_temporal.features.arrays import ArrayFile
from tpokit_temporal.features.extractor import (
    FeatureExtractor,
    Features,
    Prepared,
    first_video,
    padded,
    unit,
)
from tpokit_temporal.features.options import FileFeatures, TextFiles, VideoFiles

_USUAL_OF_VIDEOS = ("features", "last_hidden_state", "pooler_output")
_USUAL_OF_TEXTS = ("last_hidden_state", "features", "pooler_output")
_ROUNDING = 1e-6


@dataclass(frozen=True)
class FilePrepared(Prepared):
    """Features of one call.

    Attributes:
        clips: ``[l, v]`` float32.
        words: ``[t, w]`` float32, or ``None``.
    """

    clips: np.ndarray
    words: np.ndarray | None


class FileExtractor(FeatureExtractor):
    """Reads features of videos, and of queries if the recipe says so, from files.

    Where folders have clips of different lengths, the longest ones count and the rows of a finer
    folder are averaged over each. A video of which only a part is meant (``start_s``, ``end_s``)
    gets the rows of that part.
    """

    def __init__(self, options: FileFeatures, folder: Path) -> None:
        """Look whether the folders are there.

        Args:
            options: Which files.
            folder: Relative folders start there.

        Raises:
            UsageError: A folder is not there, and the options say to look now.
        """
        self._options = options
        must_exist = options.look == "at_start"
        self._folders = [_folder(folder, source, must_exist) for source in options.video]
        self._text_folder = (
            None if options.text is None else _folder(folder, options.text, must_exist)
        )
        self.video_width = sum(source.width for source in options.video)
        self.text_width = None if options.text is None else options.text.width
        self._clip_s = max(source.clip_s for source in options.video)

    def context_need(self) -> tpokit.ContextNeed:
        """No frames; words of the LLM if there are no files with words."""
        return tpokit.ContextNeed(question=self._options.text is None)

    def prepare(self, seen: tpokit.Seen) -> FilePrepared:
        """Read the files of one call; see `FeatureExtractor`."""
        media, info = first_video(seen)
        sources = [
            self._clips(source, folder, seen.where, media, info)
            for source, folder in zip(self._options.video, self._folders, strict=True)
        ]
        lengths = [len(rows) for rows in sources]
        shortest = min(lengths)
        if max(lengths) - shortest > self._options.slack_clips:
            named = ", ".join(
                f"{folder.name}: {length}"
                for folder, length in zip(self._folders, lengths, strict=True)
            )
            raise tpokit.DataError(
                f"{seen.where}: the features of the video {media.path.stem!r} differ in length: "
                f"{named} clips of {self._clip_s:g} s; more than features.slack_clips = "
                f"{self._options.slack_clips} apart, so they cannot be of one video at these rates"
            )
        count = self._kept(shortest)
        clip_s = self._clip_s
        if count + self._options.slack_clips < shortest:
            clip_s *= shortest / count
            sources = [_averaged(rows[:shortest], self._clip_s, clip_s) for rows in sources]
        clips = np.concatenate(
            [
                _scaled(rows[:count]) if source.normalise else rows[:count]
                for source, rows in zip(self._options.video, sources, strict=True)
            ],
            axis=1,
        )
        return FilePrepared(count, clip_s, clips, self._words(seen, media))

    def collate(self, prepared: Sequence[FilePrepared]) -> Features:
        """Pad; see `FeatureExtractor`."""
        clips, clip_mask = padded(
            [torch.from_numpy(call.clips) for call in prepared], self.video_width
        )
        clip_s = torch.tensor([call.clip_s for call in prepared], dtype=torch.float32)
        if self.text_width is None:
            return Features(clips, clip_mask, clip_s)
        words = [torch.from_numpy(call.words) for call in prepared if call.words is not None]
        return Features(clips, clip_mask, clip_s, *padded(words, self.text_width))

    def encode(self, collated: Features, device: torch.device) -> Features:
        """The same on the device."""
        return collated.to(device, non_blocking=True)

    def _clips(
        self,
        source: VideoFiles,
        folder: Path,
        where: str,
        media: tpokit.Media,
        info: tpokit.MediaInfo,
    ) -> np.ndarray:
        """Rows of one folder for one video, ``[l, width]``, one for each of the common clips, not
        scaled.
        """
        path = folder / source.pattern.format(video=media.path.stem)
        file = ArrayFile(path, source.key, _USUAL_OF_VIDEOS, where)
        array = file.read()
        file.check_shape(array, source.width, "clip")
        part = self._part(source, file, len(array), media, info)
        return _averaged(file.rows(array, part), source.clip_s, self._clip_s)

    def _kept(self, clips: int) -> int:
        return clips if self._options.clips_max is None else min(clips, self._options.clips_max)

    def _part(
        self,
        source: VideoFiles,
        file: ArrayFile,
        length: int,
        media: tpokit.Media,
        info: tpokit.MediaInfo,
    ) -> slice:
        """The rows that are meant; the whole file must fit the whole video.

        Raises:
            DataError: It does not.
        """
        expected = info.duration_s / source.clip_s
        slack = self._options.slack_clips
        if media.start_s is None and media.end_s is None:
            first, count = 0, length
            least = max(1, math.floor(expected + _ROUNDING) - slack)
            most = max(1, math.ceil(expected - _ROUNDING)) + slack
            fits = least <= length <= most
            wanted = f"{least} to {most}"
        else:
            first = round((media.start_s or 0.0) / source.clip_s)
            count = max(1, round(expected))
            fits = first + count <= length + slack and first < length
            wanted = f"at least {max(first + count - slack, first + 1)}"
        if not fits:
            end_s = (media.start_s or 0.0) + info.duration_s
            raise tpokit.DataError(
                f"{file} has {length} clips of {source.clip_s:g} s, but the video "
                f"{media.path.name} up to {end_s:.2f} s makes {wanted}; is it the right file, and "
                "is clip_s right?"
            )
        return slice(first, first + count)

    def _words(self, seen: tpokit.Seen, media: tpokit.Media) -> np.ndarray | None:
        text = self._options.text
        if text is None or self._text_folder is None:
            return None
        named = text.pattern.format(query_id=seen.sample_id, video=media.path.stem)
        path = self._text_folder / named
        file = ArrayFile(path, text.key, _USUAL_OF_TEXTS, seen.where)
        if not path.is_file():
            raise tpokit.DataError(
                f"{seen.where}: there is no file {path} with features of the query; a question "
                "that is in no data set can only be asked without features.text (then the words "
                "are those of the LLM)"
            )
        array = file.read()
        if array.ndim == 1:
            array = array[None]
        file.check_shape(array, text.width, "word")
        if len(array) > text.words_max and text.longer == "error":
            raise tpokit.DataError(
                f"{file} has {len(array)} words, but at most {text.words_max} fit "
                "(features.text.words_max); features.text.longer: cut keeps the first ones"
            )
        rows = file.rows(array, slice(0, text.words_max))
        return _scaled(rows) if text.normalise else rows


def _folder(start: Path, source: VideoFiles | TextFiles, must_exist: bool) -> Path:
    folder = start / source.folder.expanduser()
    if must_exist and not folder.is_dir():
        raise tpokit.UsageError(f"features: there is no folder {folder}")
    return folder


def _scaled(rows: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = unit(torch.from_numpy(rows)).numpy()
    return scaled


def _averaged(rows: np.ndarray, row_s: float, clip_s: float) -> np.ndarray:
    """Rows ``[r, w]`` of ``row_s`` seconds as clips ``[l, w]`` of ``clip_s`` seconds, at least as
    long: the mean of the rows whose middle lies in the clip.
    """
    if row_s == clip_s:
        return rows
    clip_of = np.floor((np.arange(len(rows)) + 0.5) * (row_s / clip_s)).astype(int)
    firsts = np.flatnonzero(np.diff(clip_of, prepend=-1))
    counts = np.diff(firsts, append=len(rows))
    return (np.add.reduceat(rows, firsts, axis=0) / counts[:, None]).astype(np.float32)
