"""Where the features of the temporal head come from; does not import torch.

Three kinds, told apart by ``kind``: the backbone's own vision tower, a frozen dual encoder, or
files.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tpokit.options import Options

VIDEO, QUERY_ID = "video", "query_id"
"""What a file name pattern may hold."""
FILE_TYPES = (".npz", ".npy", ".safetensors")


class BackboneFeatures(Options):
    """The backbone's own vision tower, one clip a frame; needs no second model.

    The words of the query are hidden states of the LLM.

    Attributes:
        rate: Frames (and so clips) a second.
        frames_max: Most frames of a video; a longer one is looked at in fewer frames a second.
        grid: Cells in each direction into which the features of a frame are averaged; the width of
            a clip is that of the tower times ``grid`` squared.
        centred: Take the mean of a video's clips off each of them. Features of a tower have a large
            part that all frames share; without it, what changes in the video is learnt sooner, but
            what it shows throughout is lost.
        normalise: Scale each clip to length 1, as in the published training sets. Else features of
            a tower drown the place of a clip, two numbers from 0 to 1 beside them, and where a
            moment lies is learnt late.
    """

    kind: Literal["backbone"] = "backbone"
    rate: float = Field(default=1.0, gt=0)
    frames_max: int = Field(default=64, ge=1)
    grid: int = Field(default=1, ge=1)
    centred: bool = False
    normalise: bool = True


class EncoderFeatures(Options):
    """A frozen dual encoder of transformers: CLIP, SigLIP, X-CLIP and alike.

    Attributes:
        model: A folder, or the id of a hub repository.
        revision: Branch, tag or commit of a hub repository; a commit is exact.
        clip_s: Length of a clip in seconds.
        frames_per_clip: Frames of a clip, evenly spread. An encoder of images sees each alone and
            their features are averaged (default 1); one of videos sees them together (default: as
            many as it was made for).
        clips_max: Most clips of a video; the clips of a longer one are longer.
        words: Take the words of the query from the encoder's text side; else they are hidden states
            of the LLM.
        words_max: Most words (tokens, with the first and last that the tokenizer adds); a longer
            query is cut by the tokenizer. Never more than the encoder takes.
        pooled_word: Add the encoder's embedding of the whole query as one more word at the end.
        normalise: Scale each clip and word to length 1, as in the published training sets.
        dtype: Number format in which the encoder computes; ``auto``: that of its files.
        batch: Frames that are encoded at once; bounds memory.
        cache: Folder in which features of videos are kept; ``false``: nowhere.
    """

    kind: Literal["encoder"] = "encoder"
    model: str = Field(min_length=1)
    revision: str | None = None
    clip_s: float = Field(default=2.0, gt=0)
    frames_per_clip: int | None = Field(default=None, ge=1)
    clips_max: int = Field(default=150, ge=1)
    words: bool = True
    words_max: int | None = Field(default=None, ge=2)
    pooled_word: bool = False
    normalise: bool = True
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    batch: int = Field(default=32, ge=1)
    cache: Path | Literal[False] = Path("~/.cache/tpokit/features")


class VideoFiles(Options):
    """One folder with features of videos, one file each.

    Attributes:
        folder: Where they are.
        width: Numbers of a clip; checked in every file.
        clip_s: Seconds from one row to the next (1 / frame rate of the features).
        pattern: Name of a file; ``{video}`` is the name of the video file without folder and
            ending. Ends in ``.npz``, ``.npy`` or ``.safetensors``.
        key: Which array of the file; default: ``features``, or the only one.
        normalise: Scale each row to length 1, as published.
    """

    folder: Path
    width: int = Field(ge=1)
    clip_s: float = Field(default=2.0, gt=0)
    pattern: str = "{video}.npz"
    key: str | None = None
    normalise: bool = True

    @field_validator("pattern")
    @classmethod
    def _names_the_video(cls, pattern: str) -> str:
        return _checked_pattern(pattern, needed=VIDEO, allowed=(VIDEO,))

    @model_validator(mode="after")
    def _key_has_a_use(self) -> VideoFiles:
        _check_key(self.pattern, self.key)
        return self


class TextFiles(Options):
    """A folder with features of queries, one file each.

    Attributes:
        folder: Where they are.
        width: Numbers of a word; checked in every file.
        pattern: Name of a file; ``{query_id}`` is the id of the sample, ``{video}`` as in
            `VideoFiles`.
        key: Which array of the file; default: ``last_hidden_state``, or the only one. An array with
            one dimension (``pooler_output``) is one word.
        words_max: Most words.
        longer: What becomes of a query with more words: ``cut`` keeps the first ones, as published;
            ``error`` refuses it.
        normalise: Scale each row to length 1, as published for all sets but TVSum and YouTube.
    """

    folder: Path
    width: int = Field(ge=1)
    pattern: str = "qid{query_id}.npz"
    key: str | None = None
    words_max: int = Field(default=100, ge=1)
    longer: Literal["cut", "error"] = "cut"
    normalise: bool = True

    @field_validator("pattern")
    @classmethod
    def _names_the_query(cls, pattern: str) -> str:
        return _checked_pattern(pattern, needed=QUERY_ID, allowed=(QUERY_ID, VIDEO))

    @model_validator(mode="after")
    def _key_has_a_use(self) -> TextFiles:
        _check_key(self.pattern, self.key)
        return self


class FileFeatures(Options):
    """Features that were worked out before.

    Attributes:
        video: One or more folders; what they hold of a video is put side by side.
        text: Features of the queries; default: the words are hidden states of the LLM.
        slack_clips: By how many clips the length of a file may differ from the video's duration
            (rounded down and up), and files of one video from one another.
        clips_max: Most clips of a video; default any number. Up to ``slack_clips`` more are cut
            off, as published; the rows of a longer video are averaged into so many longer clips.
        look: When a missing folder is an error: ``at_start``, or ``when_asked`` for moments, so
            that a model with other heads runs without features.
    """

    kind: Literal["files"] = "files"
    video: tuple[VideoFiles, ...] = Field(min_length=1)
    text: TextFiles | None = None
    slack_clips: int = Field(default=1, ge=0)
    clips_max: int | None = Field(default=None, ge=1)
    look: Literal["at_start", "when_asked"] = "at_start"


FeatureOptions = Annotated[
    BackboneFeatures | EncoderFeatures | FileFeatures, Field(discriminator="kind")
]


def _check_key(pattern: str, key: str | None) -> None:
    if key is not None and pattern.endswith(".npy"):
        raise ValueError(f"key {key!r} means nothing: a .npy file holds one array without a name")


def _checked_pattern(pattern: str, needed: str, allowed: tuple[str, ...]) -> str:
    """A file name pattern that can be filled in.

    Raises:
        ValueError: It lacks its field, has another one, or ends in an unknown way.
    """
    try:
        fields = [field[1:] for field in string.Formatter().parse(pattern) if field[1] is not None]
    except ValueError as cause:
        raise ValueError(f"the pattern {pattern!r} is no pattern: {cause}") from cause
    plain = {(name, "", None) for name in allowed}
    if (needed, "", None) not in fields or not plain.issuperset(fields):
        known = " or ".join(f"{{{name}}}" for name in allowed)
        raise ValueError(f"the pattern {pattern!r} must hold {{{needed}}}, and {known} only")
    if not pattern.endswith(FILE_TYPES):
        raise ValueError(f"the pattern {pattern!r} must end in {', '.join(FILE_TYPES)}")
    return pattern
