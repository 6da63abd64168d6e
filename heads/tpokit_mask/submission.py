"""Answers in the formats of benchmarks: ``python -m tpokit_mask.submission ANSWERS.jsonl --format
mevis --output FOLDER``.

===============  =======================  ==========================================================
format           sample ids               files
===============  =======================  ==========================================================
mevis            video/expression         ``video/expression/frame.png``, 0 and 255; the union of
                                          all calls
ref_youtube_vos  video/expression         the same
sa_v             video/object             the same
davis            sequence/object, or      ``sequence/frame.png``, a palette picture of the numbers
                 sequence                 of objects from 1; without them calls are counted
lasot            sequence                 ``sequence.txt``: x, y, width, height in pixels, a line
                                          for each frame; of the first call
got10k           sequence                 ``sequence/sequence_001.txt``, the same, and
                                          ``sequence/sequence_time.txt``
===============  =======================  ==========================================================

Frames are named as those of the folder that was read; see `SavedAnswer`. Every frame gets the
nearest one that the head looked at.

Sources: evaluators of DAVIS (davisvideochallenge/davis2017-evaluation) and SA-V
(facebookresearch/sam2, sav_dataset), got-10k/toolkit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from tpokit.errors import DataError, TpokitError, UsageError
from tpokit.reporting.canvas import colour
from tpokit_mask.metrics.region import Bools
from tpokit_mask.saved_answers import SavedAnswer, SavedAnswers

Answers = Iterator[tuple[PurePosixPath, SavedAnswer]]
"""Ids of samples, as paths, and answers, read one at a time."""

_MOST_OBJECTS = 255  # that an index picture can tell from the ground
_NOT_MEASURED_S = 0.0  # seconds a frame; the toolkit of GOT-10k leaves such values out


def write_submission(answers: Path, benchmark: str, output: Path) -> int:
    """Turn a file of answers into the files that a benchmark wants.

    Args:
        answers: What ``tpokit evaluate --answers`` wrote.
        benchmark: One of `FORMATS`.
        output: A folder that is not there yet, or empty.

    Returns:
        How many samples were written.

    Raises:
        UsageError: There is no such format, or the folder holds something.
        DataError: A line cannot be read, or a sample does not fit the format; names the line.
    """
    if benchmark not in FORMATS:
        raise UsageError(f"no format {benchmark!r}; there are {', '.join(FORMATS)}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output}: already there; name a new folder, or empty this one")
    saved = SavedAnswers(answers)
    FORMATS[benchmark](_named(saved), output)
    return len(saved)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exit codes are those of ``tpokit``.

    Raises:
        SystemExit: The arguments or the answers are wrong.
    """
    parser = argparse.ArgumentParser(
        "python -m tpokit_mask.submission", description="Turn answers into a benchmark's files."
    )
    parser.add_argument("answers", type=Path, help="what tpokit evaluate --answers wrote")
    parser.add_argument("--format", choices=tuple(FORMATS), required=True, help="of the files")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    asked = parser.parse_args(arguments)
    try:
        samples = write_submission(asked.answers, asked.format, asked.output)
    except TpokitError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(error.exit_code) from None
    sys.stdout.write(f"{asked.output}: format {asked.format}, samples: {samples}\n")


def _named(saved: SavedAnswers) -> Answers:
    """Answers by the places of their files, which may not lead out of the folder."""
    places: dict[PurePosixPath, str] = {}
    for index in range(len(saved)):
        answer = saved.read(index)
        name = PurePosixPath(answer.sample)
        if not name.parts or name.is_absolute() or ".." in name.parts:
            raise DataError(f"{answer.where}: the sample id {answer.sample!r} names no folder")
        if name in places:
            raise DataError(
                f"{answer.where}: {answer.sample} was there before, in {places[name]}; a benchmark "
                "takes one answer of each sample"
            )
        places[name] = answer.where
        yield name, answer


# ---- masks ----


def _write_masks(answers: Answers, output: Path) -> None:
    for name, answer in answers:
        _see_parts(name, answer, 2, "video/expression or video/object")
        folder = output / name
        folder.mkdir(parents=True)
        for place, frame in enumerate(answer.names):
            picture = Image.fromarray(answer.mask(place).astype(np.uint8) * 255)
            picture.save(folder / f"{frame}.png")


def _write_davis(answers: Answers, output: Path) -> None:
    sequences: dict[str, dict[int, SavedAnswer]] = {}
    for name, answer in answers:
        objects = sequences.setdefault(name.parts[0], {})
        for number, one in _objects(name, answer).items():
            if number in objects:
                raise DataError(
                    f"{answer.where}: object {number} of {name.parts[0]} was there before, in "
                    f"{objects[number].where}"
                )
            objects[number] = one
    for sequence, objects in sequences.items():
        folder = output / sequence
        folder.mkdir(parents=True)
        for place, frame in enumerate(next(iter(objects.values())).names):
            masks = {number: answer.mask(place) for number, answer in objects.items()}
            _index_picture(masks).save(folder / f"{frame}.png")


def _objects(name: PurePosixPath, answer: SavedAnswer) -> dict[int, SavedAnswer]:
    """The answer for each object by its number; at least one, which may have no call."""
    if len(name.parts) == 1:
        calls = range(max(len(answer.tracks), 1))
        found = {call + 1: replace(answer, tracks=answer.tracks[call : call + 1]) for call in calls}
    else:
        _see_parts(name, answer, 2, "sequence or sequence/object")
        found = {int(name.name) if name.name.isdecimal() else 0: answer}
    if min(found) < 1 or max(found) > _MOST_OBJECTS:
        raise DataError(
            f"{answer.where}: {answer.sample}: objects of DAVIS have numbers from 1 to "
            f"{_MOST_OBJECTS}"
        )
    return found


def _index_picture(masks: Mapping[int, Bools]) -> Image.Image:
    """One palette picture of masks ``[h, w]``; where they overlap, the smaller one is in front."""
    by_size = sorted(masks, key=lambda number: -np.count_nonzero(masks[number]))
    index = np.zeros(masks[by_size[0]].shape, dtype=np.uint8)
    for number in by_size:
        index[masks[number]] = number
    picture = Image.fromarray(index)
    shades = [(0, 0, 0), *(colour(number) for number in range(_MOST_OBJECTS))]
    picture.putpalette([value for shade in shades for value in shade])
    return picture


# ---- boxes ----


def _write_lasot(answers: Answers, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for name, answer in answers:
        _see_parts(name, answer, 1, "the name of the sequence")
        np.savetxt(output / f"{name}.txt", answer.boxes_xywh_px(), fmt="%.3f", delimiter=",")


def _write_got10k(answers: Answers, output: Path) -> None:
    for name, answer in answers:
        _see_parts(name, answer, 1, "the name of the sequence")
        folder = output / name
        folder.mkdir(parents=True)
        boxes = answer.boxes_xywh_px()
        np.savetxt(folder / f"{name}_001.txt", boxes, fmt="%.3f", delimiter=",")
        np.savetxt(folder / f"{name}_time.txt", np.full(len(boxes), _NOT_MEASURED_S), fmt="%.8f")


def _see_parts(name: PurePosixPath, answer: SavedAnswer, parts: int, must_be: str) -> None:
    if len(name.parts) != parts:
        raise DataError(f"{answer.where}: the sample id {answer.sample!r} must be {must_be}")


FORMATS: Mapping[str, Callable[[Answers, Path], None]] = {
    "mevis": _write_masks,
    "ref_youtube_vos": _write_masks,
    "sa_v": _write_masks,
    "davis": _write_davis,
    "lasot": _write_lasot,
    "got10k": _write_got10k,
}
"""Benchmark to what writes its files."""


if __name__ == "__main__":
    main()
