"""RefCOCO, RefCOCO+ and RefCOCOg as published: a pickle of references beside COCO's instances.

Source: Yu et al., ECCV 2016 and Mao et al., CVPR 2016; layout of lichengunc/refer. One sample for
each sentence. Boxes there are x, y, width, height in pixels; shapes are polygons in pixels, or run
lengths for crowds.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tpokit.data.boxes import Corners, read_box_px, read_numbers
from tpokit.data.lines import existing_file, json_document, media_folder
from tpokit.errors import DataError
from tpokit.interfaces import DataSource
from tpokit.types import Sample
from tpokit_region.expressions import Expression, sample_of
from tpokit_region.options import RefcocoOptions

_KEYS = {"region": "bbox", "mask": "segmentation"}


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dicts, text and numbers only; refuses whatever would look up or call code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Called for every name of code in a pickle."""
        raise pickle.UnpicklingError(f"it names the code {module}.{name}")


class RefcocoSource(DataSource):
    """Samples of one split."""

    Options = RefcocoOptions

    def __init__(self, options: RefcocoOptions, folder: Path) -> None:
        """Read both files; see `DataSource`."""
        self._options = options
        refs_path, instances_path = folder / options.refs, folder / options.instances
        self._root = media_folder(folder, options.media_root, refs_path)
        refs = _read_refs(refs_path)
        chosen = [ref for ref in refs if ref.get("split") == options.split]
        if not chosen:
            splits = ", ".join(sorted({str(ref.get("split")) for ref in refs}))
            raise DataError(f"{refs_path}: no split {options.split!r}; there are: {splits}")
        instances = _Instances(instances_path, _KEYS[options.task])
        self._expressions = [
            expression for ref in chosen for expression in _expressions(ref, instances, refs_path)
        ]

    def __len__(self) -> int:
        return len(self._expressions)

    def read(self, index: int, random: np.random.Generator) -> Sample:
        """See `DataSource.read`."""
        options = self._options
        return sample_of(
            self._expressions[index],
            self._root,
            options.questions,
            options.answers,
            random,
            options.task,
        )


class _Instances:
    """Boxes (``bbox``) or shapes (``segmentation``), and images, of ``instances.json``."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        found = json_document(path)
        try:
            self._images = {image["id"]: image for image in found["images"]}
            self._found = {entry["id"]: entry[key] for entry in found["annotations"]}
        except (KeyError, TypeError) as cause:
            raise DataError(
                f"{path}: not COCO instances: needs 'images' with 'id' and 'annotations' with 'id' "
                f"and {key!r} ({type(cause).__name__}: {cause})"
            ) from cause

    def target(self, annotation_id: Any, image: Mapping[str, Any], where: str) -> Any:
        """What the head takes of an annotation; see `Expression`."""
        if annotation_id not in self._found:
            raise DataError(f"{where}: ann_id {annotation_id!r} is not in {self._path}")
        read = _box if self._key == "bbox" else _mask
        return read(
            self._found[annotation_id],
            image.get("width"),
            image.get("height"),
            f"{self._path}, annotation {annotation_id}",
        )

    def image(self, image_id: Any, where: str) -> Mapping[str, Any]:
        """The entry of an image, with its real file name: that of a reference has a suffix."""
        image = self._images.get(image_id)
        if not isinstance(image, Mapping) or not isinstance(image.get("file_name"), str):
            raise DataError(f"{where}: image_id {image_id!r} has no file_name in {self._path}")
        return image


def _box(found: Any, width: Any, height: Any, where: str) -> Corners:
    """A box as fractions of its image."""
    x, y, box_width, box_height = read_numbers(found, where)
    return read_box_px((x, y, x + box_width, y + box_height), width, height, where)


def _mask(found: Any, width: Any, height: Any, where: str) -> dict[str, Any]:
    """A shape in the form of the mask head, which looks into it when it is decoded."""
    if isinstance(found, Mapping):
        return {"mask": {"rle": dict(found)}}
    if not isinstance(found, list) or not found:
        raise DataError(
            f"{where}: segmentation is {found!r:.60}; it is a list of polygons or an RLE"
        )
    return {"mask": {"polygons": found, "size": [height, width]}}


def _read_refs(path: Path) -> list[dict[str, Any]]:
    with existing_file(path).open("rb") as file:
        try:
            # The files were written by Python 2, whose text comes as bytes.
            refs = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
        except Exception as cause:  # bytes that are no pickle can raise anything
            raise DataError(
                f"{path}: this is not a pickle of lists, dicts, text and numbers alone "
                f"({type(cause).__name__}: {cause}); nothing in it was run"
            ) from cause
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs) or not refs:
        raise DataError(f"{path}: expected a list of references, found {type(refs).__name__}")
    return refs


def _expressions(ref: Mapping[str, Any], instances: _Instances, path: Path) -> Iterator[Expression]:
    where = f"{path}, ref_id {ref.get('ref_id')!r}"
    image = instances.image(ref.get("image_id"), where)
    target = instances.target(ref.get("ann_id"), image, where)
    sentences = ref.get("sentences")
    if not isinstance(sentences, list):
        raise DataError(f"{where}: 'sentences' is not a list")
    for sentence in sentences:
        if not isinstance(sentence, dict) or not isinstance(sentence.get("sent"), str):
            raise DataError(f"{where}: a sentence needs 'sent', found {sentence!r}")
        name = f"{ref.get('ref_id')}-{sentence.get('sent_id')}"
        yield Expression(name, sentence["sent"].strip(), image["file_name"], target)
