"""Template, tokenizer and pixels of a LLaVA-OneVision checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor, LlavaOnevisionConfig
from transformers.image_processing_utils import select_best_resolution

import tpokit
from tpokit.interfaces import ConnectorChoice, ConnectorHost
from tpokit_llava_onevision.options import Crops
from tpokit_llava_onevision.pixels import Look, in_groups

Connected = tuple[ConnectorChoice, ConnectorHost]
_PROBE = "probe"


class OnevisionProcessor(tpokit.Processor):
    """What transformers' ``LlavaOnevisionProcessor`` of the checkpoint says, for whole batches.

    A lone image of a sample is seen as overview and crops (anyres), several images as one padded
    crop each, a video as frames of one tile, each pooled to half the side; see section 3 of
    arXiv 2408.03326.
    """

    def __init__(
        self,
        library: Any,
        config: LlavaOnevisionConfig,
        frames: int,
        crops: Crops,
        connector: Connected | None = None,
    ) -> None:
        """Check that the checkpoint's processor and model fit together.

        Args:
            library: transformers' processor.
            config: Of the model.
            frames: Of a video.
            crops: ``single`` turns anyres off.
            connector: In place of the model's own, and what it stands between.

        Raises:
            CheckpointError: Processor and model would give different numbers of tokens.
        """
        self._library = library
        self._crops = crops
        self._frames = frames
        self._connector = connector
        self.tokenizer = library.tokenizer
        self._placeholder = re.compile(
            f"{re.escape(library.image_token)}|{re.escape(library.video_token)}"
        )
        self._images = Look.of(library.image_processor, "image")
        self._videos = Look.of(library.video_processor, "video")
        self._grids = [list(grid) for grid in library.image_processor.image_grid_pinpoints]
        self._patches: int = config.vision_config.image_size // config.vision_config.patch_size
        self._check(config)
        self.max_length = min(
            config.text_config.max_position_embeddings, library.tokenizer.model_max_length
        )
        self.end_of_turn = self._end_of_turn()

    @classmethod
    def load(
        cls,
        folder: Path,
        config: LlavaOnevisionConfig,
        frames: int,
        crops: Crops,
        connector: Connected | None = None,
    ) -> OnevisionProcessor:
        """Load from the folder of a checkpoint.

        Raises:
            CheckpointError: A file is missing or does not fit the model.
        """
        return cls(load_library(folder), config, frames, crops, connector)

    def media_need(self) -> tpokit.MediaNeed:
        """A fixed number of frames."""
        return tpokit.MediaNeed(frames=self._frames)

    def render(self, messages: Sequence[Mapping[str, Any]], answer_next: bool) -> str:
        """Apply the checkpoint's own chat template."""
        return str(
            self._library.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=answer_next,
            )
        )

    def expand(self, text: str, views: Sequence[tpokit.View]) -> str:
        """Repeat each placeholder as often as its medium gives tokens.

        A template may put the images of a turn before its videos, so the k-th image placeholder
        belongs to the k-th image and the k-th video placeholder to the k-th video.
        """
        waiting = {
            self._library.image_token: [view for view in views if view.kind == "image"],
            self._library.video_token: [view for view in views if view.kind == "video"],
        }
        for token, media in waiting.items():
            found = text.count(token)
            if found != len(media):
                raise tpokit.DataError(
                    f"the text has {found} placeholders {token}, but the sample has {len(media)} "
                    f"such media ({', '.join(view.path.name for view in media) or 'none'})"
                )
        counts = {
            token: iter([self._tokens_of(view, len(media) == 1) for view in media])
            for token, media in waiting.items()
        }
        return self._placeholder.sub(lambda at: at.group() * next(counts[at.group()]), text)

    def pixels(self, views: Sequence[tpokit.View]) -> int:
        """Those of all tiles of images and of all frames of videos, at the size of a tile."""
        tiles = sum(self._tiles_of(view, alone) for view, alone in _images_of([views]))
        frames = sum(len(view.frames) for view in views if view.kind == "video")
        return tiles * self._images.side**2 + frames * self._videos.side**2

    def collate_media(self, views: Sequence[Sequence[tpokit.View]]) -> dict[str, Any]:
        """Pixels of a batch: all tiles of its images, then all frames of its videos.

        Returns:
            Empty without media, else ``pixels`` float32 ``[t, 3, side, side]`` and lists of numbers
            that need no look at the GPU: ``image_tiles`` and ``image_sizes`` (height, width) of
            each image, ``video_frames`` of each video, ``image_tokens`` and ``video_tokens`` that
            `expand` promised for each.
        """
        images = [(view, alone) for view, alone in _images_of(views)]
        videos = [view for sample in views for view in sample if view.kind == "video"]
        if not images and not videos:
            return {}
        tiles = in_groups(
            [view.frames[0] for view, _ in images],
            [self._is_anyres(alone) for _, alone in images],
            self._image_tiles,
        )
        clips = in_groups(
            [frame for view in videos for frame in view.frames],
            ["frame" for view in videos for _ in view.frames],
            lambda pictures, _: self._videos.tiles(pictures),
        )
        pixels = [*tiles, *(frame[None] for frame in clips)]
        return {
            "pixels": torch.cat(pixels) if len(pixels) > 1 else pixels[0],
            "image_tiles": [len(tile) for tile in tiles],
            "image_sizes": [list(view.frames.shape[1:3]) for view, _ in images],
            "video_frames": [len(view.frames) for view in videos],
            "image_tokens": [self._tokens_of(view, alone) for view, alone in images],
            "video_tokens": [self._tokens_of(view, True) for view in videos],
        }

    def collate_frames(self, views: Sequence[tpokit.View]) -> Tensor:
        """Every frame of every view as a tile of its own: float32 ``[frames, 3, side, side]``."""
        frames = [frame for view in views for frame in view.frames]
        tiles = in_groups(
            frames, ["frame"] * len(frames), lambda found, _: self._videos.tiles(found)
        )
        return torch.stack(tiles)

    def settings(self) -> str:
        """The settings that decide how many tokens a medium gives, for messages."""
        return (
            f"num_image_tokens {self._library.num_image_tokens}, tile of {self._images.side} px, "
            f"{self._patches} x {self._patches} patches, {self._library.vision_aspect_ratio}, "
            f"crops {self._crops}, frames {self._frames}"
        )

    # ---- inside ----

    def _is_anyres(self, alone: bool) -> bool:
        return alone and self._crops == "anyres"

    def _image_tiles(self, pictures: Tensor, anyres: bool) -> Tensor:
        if anyres:
            return self._images.anyres_tiles(pictures, self._grids)
        return self._images.padded_tiles(pictures)

    def _tokens_of(self, view: tpokit.View, alone: bool) -> int:
        """Tokens of a medium; ``alone``: the only image of its sample."""
        if self._connector is not None:
            return self._tokens_of_clips(view, alone, *self._connector)
        if view.kind == "video":
            return len(view.frames) * math.ceil(self._patches / 2) ** 2 + 1  # newline at the end
        if not self._is_anyres(alone):
            return 1 + self._patches**2
        height, width = view.frames.shape[1:3]
        side = self._images.side
        # the library's own arithmetic: private there, but the one place that has it
        return int(self._library._get_number_of_features(height, width, side, side))

    def _tokens_of_clips(
        self, view: tpokit.View, alone: bool, choice: ConnectorChoice, host: ConnectorHost
    ) -> int:
        """The same with another connector, for which each tile of an image is a clip."""
        if view.kind == "video":
            return choice.tokens(host, len(view.frames))
        return self._tiles_of(view, alone) * choice.tokens(host, 1)

    def _tiles_of(self, view: tpokit.View, alone: bool) -> int:
        """Tiles of an image."""
        if not self._is_anyres(alone):
            return 1
        height, width = select_best_resolution(tuple(view.frames.shape[1:3]), self._grids)
        return 1 + (height // self._images.side) * (width // self._images.side)

    def _end_of_turn(self) -> str:
        """What the template writes behind an answer, up to a line end."""
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("user", "question"), ("assistant", _PROBE))
        ]
        ending = self.render(messages, answer_next=False).partition(_PROBE)[2]
        end_of_turn = ending.partition("\n")[0].strip()
        if not end_of_turn:
            raise tpokit.CheckpointError(
                "the checkpoint's chat template writes nothing behind an answer, so the model "
                "could not learn to end one"
            )
        return end_of_turn

    def _check(self, config: LlavaOnevisionConfig) -> None:
        library = self._library
        if library.num_image_tokens is None:  # older checkpoints leave it to the reader
            library.num_image_tokens = self._patches**2
        if library.vision_feature_select_strategy is None:
            library.vision_feature_select_strategy = config.vision_feature_select_strategy
        side = config.vision_config.image_size
        pairs = [
            ("num_image_tokens", library.num_image_tokens, self._patches**2),
            ("size of the image processor", self._images.side, side),
            ("size of the video processor", self._videos.side, side),
            ("image_grid_pinpoints", self._grids, [list(g) for g in config.image_grid_pinpoints]),
            ("vision_aspect_ratio", library.vision_aspect_ratio, config.vision_aspect_ratio),
            (
                "vision_feature_select_strategy",
                library.vision_feature_select_strategy,
                config.vision_feature_select_strategy,
            ),
            ("id of the image token", library.image_token_id, config.image_token_id),
            ("id of the video token", library.video_token_id, config.video_token_id),
        ]
        for name, found, wanted in pairs:
            if found != wanted:
                raise tpokit.CheckpointError(
                    f"processor and model do not fit together: {name} is {found} in the processor, "
                    f"but {wanted} in the model"
                )


def load_library(folder: Path) -> Any:
    """The processor of a checkpoint, as transformers has it.

    Raises:
        CheckpointError: A file is missing or broken.
    """
    try:
        library = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as cause:
        raise tpokit.CheckpointError(
            f"{folder}: tokenizer or processor files are missing or broken: {cause}"
        ) from cause
    lacking = [
        name
        for name in ("tokenizer", "image_processor", "video_processor", "chat_template")
        if getattr(library, name, None) is None
    ]
    if lacking:
        raise tpokit.CheckpointError(
            f"{folder}: the processor has no {' and no '.join(lacking)}; a LLaVA-OneVision "
            "checkpoint has all of them"
        )
    return library


def _images_of(views: Sequence[Sequence[tpokit.View]]) -> Iterator[tuple[tpokit.View, bool]]:
    """Images of a batch, each with whether it is the only one of its sample."""
    for sample in views:
        images = [view for view in sample if view.kind == "image"]
        for view in images:
            yield view, len(images) == 1
