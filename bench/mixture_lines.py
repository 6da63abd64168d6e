"""Annotation files for `mixture_scale.py`: conversations, boxes and moments, as JSON lines.

Words are those that the tiny model of the shapes world knows. All boxes lie in one image and all
moments in one video, because media are not what is measured.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tpokit_shapes_world.vocabulary import COLOURS, FUNCTION_WORDS, SHAPES

IMAGE, VIDEO = "one.png", "one.mp4"
KINDS = {"talk": 8, "boxes": 7, "moments": 5}
"""Kind of line to the number of files."""
_VARIANTS = 500  # lines that differ in more than their id
_TURNS, _TALK_WORDS, _WORDS = 3, 13, 9
_VIDEO_S = 4
_RATE = 8


def write_files(folder: Path, lines: int) -> dict[str, Path]:
    """Write files of unlike sizes, with ``lines`` lines in all; gives name to file."""
    names = [f"{kind}_{number}" for kind, files in KINDS.items() for number in range(files)]
    parts = 1.0 + np.arange(len(names)) % 7
    sizes = np.floor(parts / parts.sum() * lines).astype(int)
    sizes[0] += lines - sizes.sum()
    generator = np.random.default_rng(0)
    for name, size in zip(names, sizes.tolist(), strict=True):
        rests = [_rest(name.split("_")[0], generator) for _ in range(_VARIANTS)]
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(
                f'{{"id": "{name}-{line}", {rests[line % _VARIANTS]}\n' for line in range(size)
            )
    _write_media(folder)
    return {name: folder / f"{name}.jsonl" for name in names}


def _rest(kind: str, generator: np.random.Generator) -> str:
    """What follows the id of a line."""
    return json.dumps(_entry(kind, generator))[1:]


def _entry(kind: str, generator: np.random.Generator) -> dict[str, Any]:
    if kind == "talk":
        roles = ("user", "assistant") * _TURNS
        return {"turns": [{"role": r, "text": _text(generator, _TALK_WORDS)} for r in roles]}
    question = _text(generator, _WORDS)
    if kind == "boxes":
        start, size = generator.uniform(0, 0.5, 2), generator.uniform(0.1, 0.5, 2)
        box = [round(float(value), 4) for value in (*start, *(start + size))]
        answer = {"answer": "it is here <region>", "targets": {"region": [box]}}
        return {"image": IMAGE, "question": question, **answer}
    begin = round(float(generator.uniform(0, _VIDEO_S - 2)), 2)
    moments = [{"moments_s": [[begin, begin + 1.5]]}]
    answer = {"answer": "it is here <temporal>", "targets": {"temporal": moments}}
    return {"video": VIDEO, "question": question, **answer}


def _text(generator: np.random.Generator, words: int) -> str:
    return " ".join(generator.choice([*COLOURS, *SHAPES, *FUNCTION_WORDS], words))


def _write_media(folder: Path) -> None:
    Image.new("RGB", (64, 64), (90, 30, 200)).save(folder / IMAGE)
    with av.open(folder / VIDEO, "w") as file:
        stream = file.add_stream("mpeg4", rate=_RATE, width=64, height=64, pix_fmt="yuv420p")
        for shown in range(_VIDEO_S * _RATE):
            picture = np.full((64, 64, 3), 8 * shown, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = shown, Fraction(1, _RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
