"""Weights of the temporal head as VideoChat-TPO was published.

Source: OpenGVLab/TPO, modeling_videochate.py: ``cg_model``, ``cg_criterion``. The features that it
was trained with, of an InternVideo2-CLIP, are not in the files: the head reads them from files that
are made beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self, cast

import torch
from pydantic import ValidationError
from torch import nn

from tpokit import TokenTable
from tpokit.errors import CheckpointError, UsageError
from tpokit.interfaces import Place, Published, Shape, Shapes, WeightRules
from tpokit_temporal.detector.network import Detector
from tpokit_temporal.features.options import FileFeatures
from tpokit_temporal.head import TemporalHead
from tpokit_temporal.options import TemporalOptions
from tpokit_temporal.released_names import UNUSED, our_names

_THEIRS, _OURS = "cg_model.", "heads.temporal.detector."
_CLASS_WEIGHTS = "cg_criterion.empty_weight"
_PLACE_CHANNELS = 2  # of a clip, which tell its place in the video
_WORDS_MAX = 100
_DEPTHS = {
    "encoder_layers": "transformer.encoder.layers.",
    "decoder_layers": "transformer.decoder.layers.",
    "text_to_clips_layers": "transformer.t2v_encoder.layers.",
    "dummy_layers": "txtproj_encoder.layers.",
    "sentence_layers": "scls_encoder.layers.",
    "moment_layers": "transformer.mcls_encoder.layers.",
    "projection_layers": "input_txt_proj.",
}
"""Option to what stands before the numbers of the layers it counts."""
_FIRST_SIZES = {
    "dummies": "dummy_rep_token",
    "global_tokens": "global_rep_token",
    "queries": "query_embed.weight",
    "feed_forward": "transformer.encoder.layers.0.linear1.weight",
}
"""Option to a tensor whose first size it is."""


class TemporalReleasedWeights(WeightRules):
    """Rules of the format ``videochat_tpo``."""

    def __init__(self, options: TemporalOptions, clip_width: int, word_width: int) -> None:
        """Make them; `from_published` and `from_model` are the usual ways.

        Args:
            options: Sizes of the detector.
            clip_width, word_width: v, without the channels of its place, and w.
        """
        self._options = options
        self._clip_width, self._word_width = clip_width, word_width

    @classmethod
    def from_published(cls, shapes: Shapes) -> Self | None:
        """See `WeightRules.from_published`."""
        own = {
            name.removeprefix(_THEIRS): shape
            for name, shape in shapes.items()
            if name.startswith(_THEIRS)
        }
        if not own:
            return None
        clips, words = (
            _first(own, f"input_{kind}_proj.0.LayerNorm.weight") for kind in ("vid", "txt")
        )
        sizes: dict[str, Any] = {
            "preset": "videochat_tpo",
            "width": _first(own, "token_type_embeddings.weight", 1),
            **{option: _first(own, name) for option, name in _FIRST_SIZES.items()},
            **{option: _depth(own, prefix) for option, prefix in _DEPTHS.items()},
        }
        try:
            options = TemporalOptions(**sizes, features=_features(clips - _PLACE_CHANNELS, words))
        except ValidationError as cause:
            first = cause.errors()[0]["msg"]
            raise CheckpointError(f"{_THEIRS}*: a detector of impossible sizes: {first}") from cause
        return cls(options, clips - _PLACE_CHANNELS, words)

    @classmethod
    def from_model(cls, part: nn.Module) -> Self:
        """See `WeightRules.from_model`."""
        head = cast(TemporalHead, part)
        options, detector = head.options, head.detector
        clips, words = (
            projection[0].linear.in_features
            for projection in (detector.clip_projection, detector.word_projection)
        )
        usual = TemporalOptions()
        for fits, message in (
            (
                words == head.host.hidden,
                f"has words as wide as the LLM ({head.host.hidden}), but the features have {words}",
            ),
            (options.heads == usual.heads, f"has heads: {usual.heads}, not {options.heads}"),
            (
                options.global_tokens_used == usual.global_tokens_used,
                f"uses {usual.global_tokens_used} global token, not {options.global_tokens_used}",
            ),
        ):
            if not fits:
                raise UsageError(f"heads.temporal: the format videochat_tpo {message}")
        return cls(options, clips - _PLACE_CHANNELS, words)

    def options(self) -> dict[str, Any]:
        """Sizes, and features from the folders ``features/videos`` and ``features/queries``, which
        need not be there before moments are asked for.
        """
        sizes = ("width", *_FIRST_SIZES, *_DEPTHS)
        return {
            "preset": "videochat_tpo",
            **{name: getattr(self._options, name) for name in sizes},
            "features": _features(self._clip_width, self._word_width).model_dump(mode="json"),
        }

    def tensors(self, tokens: TokenTable) -> Iterable[Published]:
        """See `WeightRules.tensors`."""
        with torch.device("meta"):
            detector = Detector(self._options, self._clip_width + _PLACE_CHANNELS, self._word_width)
        shapes = {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items()}
        for theirs, ours in our_names(self._options).items():
            yield Published(_THEIRS + theirs, shapes[ours], (Place(_OURS + ours),))
        for name, shape in self._unused_shapes().items():
            yield Published(_THEIRS + name, shape, unused="no result depends on it", optional=True)
        why = "weights of the two classes in a loss, the option background of the head"
        yield Published(_CLASS_WEIGHTS, (2,), unused=why, optional=True)

    def _unused_shapes(self) -> Mapping[str, Shape]:
        """Of `UNUSED`, in its order."""
        width, words = self._options.width, self._word_width
        shapes = (
            *((_WORDS_MAX, width), (width,), (width,)),
            *((words,), (words,), (width, words), (width,)),
        )
        return dict(zip(UNUSED, shapes, strict=True))


def _features(clip_width: int, word_width: int) -> FileFeatures:
    """Files as the released head wants them: a clip for each second, and words."""
    return FileFeatures.model_validate(
        {
            "video": [{"folder": "features/videos", "width": clip_width, "clip_s": 1.0}],
            "text": {
                "folder": "features/queries",
                "width": word_width,
                "words_max": _WORDS_MAX,
            },
            "look": "when_asked",
        }
    )


def _first(shapes: Shapes, name: str, dimension: int = 0) -> int:
    """One size of a tensor.

    Raises:
        CheckpointError: It is not there, or has fewer dimensions.
    """
    shape = shapes.get(name, ())
    if len(shape) <= dimension:
        raise CheckpointError(
            f"{_THEIRS}{name} {f'has shape {list(shape)}' if shape else 'is missing'}; the sizes "
            "of the detector cannot be told without it"
        )
    return shape[dimension]


def _depth(shapes: Shapes, prefix: str) -> int:
    """How many numbered layers there are behind a prefix."""
    names = (name.removeprefix(prefix) for name in shapes if name.startswith(prefix))
    return len({name.partition(".")[0] for name in names})
