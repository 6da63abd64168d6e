"""``meta_expressions.json`` of MeViS, Ref-YouTube-VOS and sets in their layout.

``{"videos": {"v1": {"expressions": {"0": {"exp": "a dog", ...}}, "frames": ["00000", ...]}}}``
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpokit.data.lines import json_document
from tpokit.errors import DataError


@dataclass(frozen=True, slots=True)
class Expression:
    """A sentence about one or more objects of a video.

    Attributes:
        video, name: Names of the video and of the expression within it.
        entry: What the file says of the expression.
        frames: Names of the frames of the video.
        where: File, video and expression, for messages.
    """

    video: str
    name: str
    entry: Mapping[str, Any]
    frames: tuple[str, ...]
    where: str

    @property
    def id(self) -> str:
        """As submissions name it."""
        return f"{self.video}/{self.name}"

    @property
    def text(self) -> str:
        """The sentence, without blanks around it.

        Raises:
            DataError: There is none.
        """
        found = self.entry.get("exp")
        if not isinstance(found, str) or not found.strip():
            raise DataError(f"{self.where}: 'exp' must be a text, found {found!r}")
        return found.strip()

    def numbers(self, key: str) -> tuple[int, ...]:
        """One or more whole numbers, or texts of such.

        Raises:
            DataError: It is something else, or missing.
        """
        found: Any = self.entry.get(key)
        members: list[Any] = found if isinstance(found, list) else [found]
        if not all(_is_whole(member) for member in members):
            raise DataError(
                f"{self.where}: {key!r} must be whole numbers, found {found!r}; a split whose "
                "masks are not published is read with labelled: false"
            )
        return tuple(int(member) for member in members)


def read_expressions(path: Path) -> list[Expression]:
    """All expressions, in the order of the file.

    Raises:
        DataError: It is missing, not in this form, or has no expression.
    """
    found = json_document(path)
    videos = found.get("videos") if isinstance(found, Mapping) else None
    if not isinstance(videos, Mapping):
        raise DataError(f"{path}: needs 'videos', an object of videos with their expressions")
    expressions = [
        expression
        for video, entry in videos.items()
        for expression in _of_video(video, entry, f"{path}, video {video}")
    ]
    if not expressions:
        raise DataError(f"{path}: there is no expression")
    return expressions


def _of_video(video: str, entry: Any, where: str) -> Iterator[Expression]:
    fields = entry if isinstance(entry, Mapping) else {}
    found, frames = fields.get("expressions"), fields.get("frames")
    if not isinstance(found, Mapping) or not isinstance(frames, list) or not frames:
        raise DataError(f"{where}: needs 'expressions', an object, and 'frames', a list of names")
    if not all(isinstance(name, str) for name in frames):
        raise DataError(f"{where}: names of frames must be texts")
    names = tuple(frames)
    for name, expression in found.items():
        place = f"{where}, expression {name}"
        if not isinstance(expression, Mapping):
            raise DataError(f"{place}: expected an object with 'exp', found {expression!r}")
        yield Expression(video, name, expression, names, place)


def _is_whole(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and value.isdecimal())
