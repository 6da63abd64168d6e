"""A frozen dual encoder of transformers: one side for videos, one for words.

Written against CLIP, SigLIP and X-CLIP in transformers 5.17 to 5.23; other classes with
``get_image_features`` or ``get_video_features`` beside ``get_text_features`` work alike as long as
their configuration has the same names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoTokenizer

import tpokit
from tpokit.pretrained import quiet_transformers
from tpokit_temporal.features.options import EncoderFeatures
from tpokit_temporal.features.pretrained import (
    find_folder,
    load_frozen,
    weight_files,
)

_TAKES_FULL_LENGTH = ("siglip", "siglip2")
"""Classes whose text side was trained on texts padded to its full length, padding seen."""

_UNSAID = 10**6
"""Longest text of an encoder that sets no limit: tokenizers then name an enormous number."""


class DualEncoder:
    """Encodes clips and words.

    No module, so that its weights are in no module's ``state_dict``, ``parameters`` or ``train``;
    they follow the device of the input. A pickled copy (in a data worker) has none and loads them
    only if it is asked to encode.

    Attributes:
        folder: Where the model lies.
        video_width: v, numbers of a clip: its embedding in the space shared with texts.
        text_width: w, numbers of a word: its last hidden state.
        frames_per_clip: p, frames that one clip takes.
    """

    def __init__(self, options: EncoderFeatures, start: Path) -> None:
        """Find and load the model.

        Args:
            options: Which.
            start: A relative folder starts there.

        Raises:
            UsageError: It is not there, is no dual encoder, or does not fit the options.
            CheckpointError: Its weights do not fit.
        """
        self._options = options
        self.folder = find_folder(options, start)
        config = _loaded(AutoConfig, self.folder, options)
        self._takes_videos = self._kind(config)
        self.frames_per_clip = self._frames_per_clip(config)
        self.video_width = _projected_width(config)
        self.text_width = int(config.text_config.hidden_size)
        self._tokenizer = _loaded(AutoTokenizer, self.folder, options)
        self._processor = _loaded(AutoImageProcessor, self.folder, options)
        self._full_length = config.model_type in _TAKES_FULL_LENGTH
        self._longest = _longest_text(config, self._tokenizer)
        self._check_processor()
        self._model: Any = load_frozen(self.folder, options)

    @property
    def files(self) -> list[Path]:
        """All files that the features of clips follow from."""
        described = ("config.json", "preprocessor_config.json", "processor_config.json")
        return [
            *(self.folder / name for name in described if (self.folder / name).is_file()),
            *weight_files(self.folder),
        ]

    # ---- in data workers ----

    def pixels(self, frames: np.ndarray) -> Tensor:
        """Resize and crop, in 8 bits: ``[f, h, w, 3]`` to uint8 ``[f, 3, h', w']``."""
        return self._processed(torch.from_numpy(frames).permute(0, 3, 1, 2), finish=False)

    def tokens(self, text: str) -> list[int]:
        """Ids of the words of a text, with the first and last that the tokenizer adds; cut to what
        fits.
        """
        limit = min(self._longest, self._options.words_max or self._longest)
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return ids

    def padded_tokens(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Texts side by side.

        Args:
            texts: Ids of n texts.

        Returns:
            Ids ``[n, t']`` int64, t': t, or all that the encoder takes where it was trained so; and
            the mask ``[n, t]`` bool of words, t: the longest text, at least 1.
        """
        longest = max([1, *(len(ids) for ids in texts)])
        length = self._longest if self._full_length else longest
        padding = self._tokenizer.pad_token_id or 0
        ids = torch.full((len(texts), length), padding, dtype=torch.long)
        mask = torch.zeros(len(texts), longest, dtype=torch.bool)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text, dtype=torch.long)
            mask[row, : len(text)] = True
        return ids, mask

    # ---- in the model's step ----

    def encode_clips(self, pixels: Tensor) -> Tensor:
        """Embeddings of clips, float32, not scaled.

        Args:
            pixels: From `pixels`, ``[c * p, 3, h, w]``; c: clips, p: ``frames_per_clip``.

        Returns:
            ``[c, v]`` on the device of the pixels.
        """
        per_clip = self.frames_per_clip
        if not len(pixels):
            return torch.zeros(0, self.video_width, device=pixels.device)
        encoded = []
        with self._model_on(pixels.device) as model:
            for piece in pixels.split(max(1, self._options.batch // per_clip) * per_clip):
                ready = self._processed(piece, finish=True).to(model.dtype)
                if self._takes_videos:
                    clips = ready.unflatten(0, (-1, per_clip))
                    features = model.get_video_features(pixel_values=clips).pooler_output.float()
                else:
                    frames = model.get_image_features(pixel_values=ready).pooler_output.float()
                    features = frames.unflatten(0, (-1, per_clip)).mean(1)
                encoded.append(self._checked(features, self.video_width, "a clip"))
        return torch.cat(encoded)

    def encode_words(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden states of words, float32, not scaled.

        Args:
            ids, mask: From `padded_tokens`.

        Returns:
            ``[n, t, w]`` and mask ``[n, t]``, with the option ``pooled_word`` one word more. States
            of padding are zero.
        """
        if not len(ids):
            return torch.zeros(0, 1, self.text_width, device=ids.device), mask[:, :1]
        attended = {} if self._full_length else {"attention_mask": mask.long()}
        with self._model_on(ids.device) as model:
            found = model.get_text_features(input_ids=ids, **attended)
        states = self._checked(found.last_hidden_state.float(), self.text_width, "a word")
        states = states[:, : mask.shape[1]]
        if self._options.pooled_word:
            pooled = self._checked(found.pooler_output.float(), self.text_width, "a text")
            rows, behind = torch.arange(len(ids), device=ids.device), mask.sum(1)
            states = torch.nn.functional.pad(states, (0, 0, 0, 1))
            mask = torch.nn.functional.pad(mask, (0, 1))
            states[rows, behind], mask[rows, behind] = pooled, True
        return states * mask[..., None], mask

    # ---- inside ----

    @contextmanager
    def _model_on(self, device: torch.device) -> Iterator[Any]:
        """The model on a device: without a graph, in its own number format whatever is around."""
        if self._model is None:
            self._model = load_frozen(self.folder, self._options)
        if self._model.device != device:
            self._model.to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield self._model

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    def _processed(self, pixels: Tensor, finish: bool) -> Tensor:
        """The image processor in two halves: 8 bits of the final size travel to the device, numbers
        around 0 (four times as large) are made there.
        """
        steps = ("do_resize", "do_center_crop") if finish else ("do_rescale", "do_normalize")
        found = self._processor(list(pixels), **dict.fromkeys(steps, False), return_tensors="pt")[
            "pixel_values"
        ]
        done: Tensor = found.reshape(-1, *found.shape[-3:])  # some put frames into a video
        return done

    def _check_processor(self) -> None:
        """Both halves together must be the whole.

        Raises:
            UsageError: They are not.
        """
        size = 37, 53  # no size that a model would want, no square
        values = np.arange(3 * size[0] * size[1]) % 256
        frame = values.astype(np.uint8).reshape(1, *size, 3)
        try:
            half = self.pixels(frame)
            whole = self._processor(
                [torch.from_numpy(frame[0]).permute(2, 0, 1)], return_tensors="pt"
            )["pixel_values"].reshape(half.shape)
            alike = torch.equal(whole, self._processed(half, finish=True))
            alike &= half.shape == self.pixels(frame.swapaxes(1, 2)).shape
        except (ValueError, TypeError, KeyError, RuntimeError):
            alike = False
        if not alike:
            raise tpokit.UsageError(
                f"features.model {self._options.model!r}: its {type(self._processor).__name__} "
                "does not resize and crop to one size, then rescale and normalise; choose a model "
                "of fixed resolution"
            )

    def _frames_per_clip(self, config: Any) -> int:
        wanted = self._options.frames_per_clip
        if not self._takes_videos:
            return wanted or 1
        made_for = getattr(config.vision_config, "num_frames", None)
        if wanted is None and made_for is None:
            raise tpokit.UsageError(
                f"features.model {self._options.model!r} encodes videos but does not say of how "
                "many frames: set features.frames_per_clip"
            )
        if None not in (wanted, made_for) and wanted != made_for:
            raise tpokit.UsageError(
                f"features.frames_per_clip is {wanted}, but {self._options.model!r} was made for "
                f"{made_for} frames; leave it out"
            )
        return int(wanted or made_for or 1)

    def _checked(self, features: Tensor, width: int, of_what: str) -> Tensor:
        if features.shape[-1] != width:
            raise tpokit.UsageError(
                f"features.model {self._options.model!r}: the embedding of {of_what} has "
                f"{features.shape[-1]} numbers, its config.json promises {width}; models of this "
                "class cannot be used"
                + (" with features.pooled_word" if of_what == "a text" else "")
            )
        return features

    def _kind(self, config: Any) -> bool:
        """Whether it encodes videos, not images.

        Raises:
            UsageError: It encodes neither, or no texts.
        """
        found = MODEL_MAPPING.get(type(config), None)
        sides = ("text_config", "vision_config")
        images, videos, texts = (
            hasattr(found, f"get_{side}_features") for side in ("image", "video", "text")
        )
        if not texts or not (images or videos) or not all(hasattr(config, s) for s in sides):
            raise tpokit.UsageError(
                f"features.model {self._options.model!r} is of the class {config.model_type!r}, "
                "which does not encode both images or videos and texts; choose CLIP, SigLIP, "
                "X-CLIP or alike"
            )
        return not images


def _loaded(kind: Any, folder: Path, options: EncoderFeatures) -> Any:
    try:
        with quiet_transformers():
            return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as cause:
        what = {AutoConfig: "configuration", AutoTokenizer: "tokenizer"}
        raise tpokit.UsageError(
            f"features.model {options.model!r}: its {what.get(kind, 'image processor')} cannot be "
            f"loaded from {folder}: {cause}"
        ) from cause


def _projected_width(config: Any) -> int:
    """Width of the embedding of an image or video, by the names that configurations have for it."""
    vision = config.vision_config
    for holder, name in (
        (vision, "mit_hidden_size"),  # X-CLIP: behind the layers over frames
        (config, "projection_dim"),  # CLIP and alike
        (vision, "hidden_size"),  # SigLIP
    ):
        found = getattr(holder, name, None)
        if found is not None:
            return int(found)
    return 0


def _longest_text(config: Any, tokenizer: Any) -> int:
    limits = (tokenizer.model_max_length, getattr(config.text_config, "max_position_embeddings", 0))
    return min(int(limit) for limit in (*limits, _UNSAID) if limit)
