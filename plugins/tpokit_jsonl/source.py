"""The source ``jsonl``: each line is a JSON object and becomes a sample.

Only a question and an answer are needed::

    {"id": "a1", "image": "cups.jpg", "question": "Where is the red cup?",
     "answer": "It is here: <region>.", "targets": {"region": [[0.1, 0.2, 0.5, 0.6]]}}
    {"id": "a2", "video": "door.mp4", "start_s": 3.0, "end_s": 20.0,
     "turns": [{"role": "user", "text": "What is in <region>?"},
               {"role": "assistant", "text": "A door."}],
     "given": {"region": [[64, 48, 320, 288]]}, "box_unit": "pixels", "width": 640, "height": 480}

``docs/jsonl.md`` lists every key. What a target looks like is the affair of the head of its task
and is checked there. Only two things are touched in ``targets`` and ``given``: with ``box_unit:
pixels`` every list of four numbers, every ``box`` of an object and every ``box`` of its ``frames``
is divided by ``width`` and ``height``; and the ``png`` of a mask starts from the same folder as
media.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tpokit.data.boxes import read_box_px
from tpokit.data.lines import JsonLines, media_folder
from tpokit.errors import DataError
from tpokit.interfaces import DataSource
from tpokit.types import Media, Role, Sample, Turn
from tpokit_jsonl.options import JsonlOptions

_KEYS = frozenset(
    {"id", "image", "images", "video", "start_s", "end_s", "rate", "media", "turns", "question"}
    | {"answer", "targets", "given", "box_unit", "width", "height"}
)
_VIDEO_KEYS = ("start_s", "end_s", "rate")
_MEDIA_KEYS = ("image", "images", "video", "media")
_MEDIUM_KEYS = frozenset({"kind", "path", *_VIDEO_KEYS})
_TURN_KEYS = frozenset({"role", "text"})
_ROLES: tuple[Role, ...] = get_args(Role)
_UNITS = ("fraction", "pixels")


class JsonlSource(DataSource):
    """Samples in the order of the file; a line is parsed when it is read."""

    Options = JsonlOptions

    def __init__(self, options: JsonlOptions, folder: Path) -> None:
        """Index the file and check its first line; see `DataSource`."""
        self._lines = JsonLines(folder / options.annotations)
        self._root = media_folder(folder, options.media_root, self._lines.path)
        self._sample(0)

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, index: int, random: np.random.Generator) -> Sample:
        """See `DataSource.read`; nothing is drawn."""
        return self._sample(index)

    def _sample(self, index: int) -> Sample:
        entry, where = self._lines.read(index), self._lines.place(index)
        name = entry.get("id", f"entry-{index + 1}")
        if not isinstance(name, (str, int)):
            raise DataError(f"{where}: 'id' must be a text or a whole number, found {name!r}")
        where = f"{where} (id {name})" if "id" in entry else where
        if not entry.keys() <= _KEYS:
            unknown = ", ".join(sorted(entry.keys() - _KEYS))
            raise DataError(f"{where}: unknown key {unknown}; there are {', '.join(sorted(_KEYS))}")
        if entry.get("box_unit", "fraction") not in _UNITS:
            raise DataError(
                f"{where}: unknown box_unit {entry['box_unit']!r}: {' or '.join(_UNITS)}"
            )
        return Sample(
            id=str(name),
            turns=_turns(entry, where),
            media=_media(entry, self._root, where),
            targets=_annotations(entry, "targets", self._root, where),
            given=_annotations(entry, "given", self._root, where),
        )


def _turns(entry: Mapping[str, Any], where: str) -> tuple[Turn, ...]:
    if "turns" in entry and ("question" in entry or "answer" in entry):
        raise DataError(
            f"{where}: has both 'turns' and 'question' or 'answer'; one of them will do"
        )
    found = entry.get("turns")
    if "turns" not in entry:
        found = [
            {"role": "user", "text": entry.get("question")},
            {"role": "assistant", "text": entry.get("answer")},
        ]
        if "question" not in entry or "answer" not in entry:
            raise DataError(f"{where}: needs 'turns', or 'question' and 'answer'")
    if not isinstance(found, list):
        raise DataError(f"{where}: 'turns' must be a list of {{role, text}}, found {found!r}")
    turns = tuple(_turn(turn, where) for turn in found)
    if "assistant" not in [turn.role for turn in turns]:
        raise DataError(f"{where}: no turn of the assistant: there is nothing to learn")
    return turns


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, dict) or turn.keys() != _TURN_KEYS:
        raise DataError(f"{where}: a turn has 'role' and 'text' and nothing else, found {turn!r}")
    if turn["role"] not in _ROLES:
        roles = ", ".join(_ROLES)
        raise DataError(f"{where}: unknown role {turn['role']!r}; there are {roles}")
    if not isinstance(turn["text"], str):
        raise DataError(
            f"{where}: what the {turn['role']} says must be a text, found {turn['text']!r}"
        )
    return Turn(turn["role"], turn["text"])


def _media(entry: Mapping[str, Any], root: Path, where: str) -> tuple[Media, ...]:
    named = [key for key in _MEDIA_KEYS if key in entry]
    if len(named) > 1:
        raise DataError(f"{where}: has {' and '.join(named)}; for several media use 'media' alone")
    times = {key: entry[key] for key in _VIDEO_KEYS if key in entry}
    if times and named != ["video"]:
        raise DataError(f"{where}: start_s, end_s and rate go with 'video'")
    if not named:
        return ()
    value = entry[named[0]]
    if named == ["image"]:
        found: Any = [{"kind": "image", "path": value}]
    elif named == ["video"]:
        found = [{"kind": "video", "path": value, **times}]
    elif not isinstance(value, list):
        raise DataError(f"{where}: {named[0]!r} must be a list, found {value!r}")
    else:
        found = (
            [{"kind": "image", "path": path} for path in value] if named == ["images"] else value
        )
    return tuple(_medium(medium, root, where) for medium in found)


def _medium(medium: Any, root: Path, where: str) -> Media:
    if (
        not isinstance(medium, dict)
        or not {"kind", "path"} <= medium.keys()
        or not medium.keys() <= _MEDIUM_KEYS
    ):
        raise DataError(
            f"{where}: a medium has 'kind' and 'path', a video also 'start_s', 'end_s' and, if it "
            f"is a folder of frames, 'rate', found {medium!r}"
        )
    if medium["kind"] not in ("image", "video"):
        raise DataError(f"{where}: unknown kind of media {medium['kind']!r}: image or video")
    if not isinstance(medium["path"], str) or not medium["path"]:
        raise DataError(f"{where}: the path of a medium must be a text, found {medium['path']!r}")
    start_s, end_s = (_seconds(medium, key, where) for key in ("start_s", "end_s"))
    rate = _rate(medium, where)
    if medium["kind"] == "image" and any(value is not None for value in (start_s, end_s, rate)):
        raise DataError(f"{where}: an image has no start_s, end_s and rate")
    if end_s is not None and end_s <= (start_s or 0.0):
        raise DataError(
            f"{where}: end_s = {end_s:g} must be later than start_s = {start_s or 0.0:g}"
        )
    return Media(medium["kind"], root / medium["path"], start_s, end_s, rate)


def _seconds(medium: Mapping[str, Any], key: str, where: str) -> float | None:
    value = medium.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise DataError(f"{where}: {key} must be seconds from 0, found {value!r}")
    return float(value)


def _rate(medium: Mapping[str, Any], where: str) -> float | None:
    value = medium.get("rate")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise DataError(f"{where}: rate must be frames a second, above 0, found {value!r}")
    return float(value)


def _annotations(
    entry: Mapping[str, Any], key: str, root: Path, where: str
) -> dict[str, tuple[Any, ...]]:
    if key not in entry:
        return {}
    found = entry[key]
    if not isinstance(found, dict) or not all(isinstance(value, list) for value in found.values()):
        raise DataError(
            f"{where}: {key!r} maps each task to a list with one value for each mark, "
            f"found {found!r}"
        )
    found = {task: [_with_root(value, root) for value in values] for task, values in found.items()}
    if entry.get("box_unit", "fraction") == "fraction":
        return {task: tuple(values) for task, values in found.items()}
    return {
        task: tuple(_without_pixels(value, entry, f"{where}, {key}.{task}") for value in values)
        for task, values in found.items()
    }


def _without_pixels(value: Any, entry: Mapping[str, Any], where: str) -> Any:
    """The same annotation, its boxes (if it has any) in fractions."""
    if isinstance(value, dict):
        changed = {}
        if "box" in value:
            changed["box"] = _without_pixels(value["box"], entry, where)
        if isinstance(value.get("frames"), list):
            changed["frames"] = [_without_pixels(frame, entry, where) for frame in value["frames"]]
        return {**value, **changed}
    if isinstance(value, list) and len(value) == 4 and not any(map(_is_nested, value)):
        return list(read_box_px(value, entry.get("width"), entry.get("height"), where))
    return value


def _is_nested(value: Any) -> bool:
    """Four of these are no box: a mask of four parts."""
    return isinstance(value, dict | list)


def _with_root(value: Any, root: Path) -> Any:
    """The same annotation, each ``png`` in it with its full path."""
    if isinstance(value, dict):
        found = {key: _with_root(member, root) for key, member in value.items()}
        path = value.get("png")
        return {**found, "png": str((root / path).absolute())} if isinstance(path, str) else found
    if isinstance(value, list) and not (value and isinstance(value[0], int | float)):
        return [_with_root(member, root) for member in value]
    return value  # lists of numbers are long
