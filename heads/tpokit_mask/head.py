"""The mask head: an object in an image or through a video, from each mask slot.

Paper: arXiv 2412.19326 section 3 (mask head: SAM 2, arXiv 2408.00714, its prompt encoder replaced
by a mask adapter). Code: OpenGVLab/TPO (December 2024), modeling_videochate.py: ``track_embed``,
``track_embed_decode2``, ``loc_encoder``. The hidden state of a slot becomes prompt tokens of SAM 2,
and SAM 2's own losses reach the LLM through them. We differ:

- masks are taught, through the frozen mask decoder and the memory, as the paper says; the released
  code teaches the prompt tokens and the box alone (option ``learn: box``, weights
  ``videochat_tpo``);
- any number of objects in an answer, and of frames, in images and videos;
- SAM 2 is the package as it is, of any size, in float32 (autocast allowed).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from tpokit.data.boxes import Corners, read_box
from tpokit.errors import DataError, TpokitError
from tpokit.interfaces import Host, TaskHead
from tpokit.layers import Float32Linear
from tpokit.pretrained import PACKAGE
from tpokit.tokens import TaskTokens
from tpokit.types import Context, ContextNeed, LossTerm, Media, MediaInfo, MediaNeed, Seen
from tpokit_mask.adapter import MaskAdapter
from tpokit_mask.annotations import read_annotation
from tpokit_mask.clips import Clips, PreparedMedium, collate_clips
from tpokit_mask.following import follow
from tpokit_mask.kept_features import KeptFeatures
from tpokit_mask.losses.terms import (
    WantedMasks,
    box_l1_term,
    box_tokens_term,
    mask_terms,
    term_counts,
)
from tpokit_mask.losses.weights import TERMS
from tpokit_mask.options import BOX_TOKENS, MaskOptions, small_options, without_weights
from tpokit_mask.results import MaskTrack
from tpokit_mask.sam2_port import FeatureMaps, Sam2
from tpokit_mask.segmenting import Group, segment
from tpokit_mask.targets import CallTarget, MaskTargets, at_frames, collate_targets
from tpokit_mask.trained import TrainedParts, build_sam2, checkpoint_file


@dataclass(frozen=True)
class Prediction:
    """What the head makes of n calls; a dataclass, as its groups depend on the batch.

    Attributes:
        tokens: ``[n, k, d]`` prompt tokens; d: width of SAM 2.
        boxes: ``[n, 4]`` corners as fractions of the image, not clamped; from the slot alone.
        groups: In training, the masks.
        tracks: In inference, the results.
    """

    tokens: Tensor
    boxes: Tensor
    groups: tuple[Group, ...] = ()
    tracks: tuple[MaskTrack, ...] = ()


class MaskHead(TaskHead):
    """The mask of an object in an image, or on each frame of a video, for each call.

    A target is a mapping with ``frames``; see `tpokit_mask.annotations`. A given value is a box,
    four fractions (`tpokit.data.boxes.read_box`), of the object on the first frame.

    Attributes:
        adapter: Slots to prompt tokens; the release's ``track_embed``.
        box_decoder: First slot to box, for the term ``box_l1``; the release's
            ``track_embed_decode2``.
        box_encoder: Given box to embedding; the release's ``loc_encoder``. Not there without the
            option ``given``.
        trained_parts: What of SAM 2 learns.
        sam2: All of it.
    """

    task = "mask"
    tokens = TaskTokens(trigger="<track_begin>", slots=("<tracking>",), given="<track_box>")
    terms = TERMS
    Options = MaskOptions
    options: MaskOptions
    sam2: Sam2

    def __init__(self, options: MaskOptions, host: Host) -> None:
        """Build the layers and load SAM 2; see `TaskHead`.

        Raises:
            UsageError: SAM 2 cannot be had as the options say.
            CheckpointError: Its weights cannot be loaded.
        """
        super().__init__(options, host)
        width = host.hidden
        slots = ("<tracking>", *(f"<tracking_{number}>" for number in range(1, options.slots)))
        given = self.tokens.given if options.given else None
        self.tokens = TaskTokens(self.tokens.trigger, slots, given)
        # not a module of this head: what is frozen belongs into no checkpoint of it
        object.__setattr__(self, "sam2", build_sam2(options.sam2, host.folder))
        self.trained_parts = TrainedParts(self.sam2, options.sam2.trained)
        self.adapter = MaskAdapter(
            width, self.sam2.width, options.slots, options.adapter, options.tokens_per_slot
        )
        self.box_decoder = nn.Sequential(
            Float32Linear(width, width), nn.ReLU(), Float32Linear(width, 4)
        )
        if options.given:
            hidden = options.given_hidden or max(width // 2, 1)
            self.box_encoder = nn.Sequential(
                Float32Linear(4, hidden), nn.ReLU(), Float32Linear(hidden, width)
            )
        self._loss_side = options.loss_side or self.sam2.image_size
        self._features = KeptFeatures(options.sam2, host.folder, self._need())

    @classmethod
    def build_empty(cls, options: MaskOptions, host: Host) -> MaskHead:
        """See `TaskHead.build_empty`."""
        with init_empty_weights(include_buffers=False):
            return cls(without_weights(options), host)

    @classmethod
    def build_small(cls, options: MaskOptions, host: Host) -> MaskHead:
        """See `TaskHead.build_small`; SAM 2 is a really small one."""
        return cls(small_options(options), host)

    def train(self, mode: bool = True) -> MaskHead:
        """As in torch; SAM 2 goes along."""
        super().train(mode)
        self._features.forget()
        self.sam2.train(mode)
        return self

    # ---- reading ----

    def _need(self) -> MediaNeed:
        return MediaNeed(frames=self.options.frames)

    def context_need(self) -> ContextNeed:
        """Frames in training; in inference the head goes through the medium itself."""
        learns_masks = self.options.learn == "masks"
        return ContextNeed(media=self._need() if learns_masks else None, stream=True)

    def wants_frames(self, media: Media) -> bool:
        """No, if features of this medium were kept."""
        return not self._features.have(media)

    def prepare(self, seen: Seen) -> PreparedMedium:
        """The first medium: its frames or features in training, itself in inference.

        Raises:
            DataError: There is none.
        """
        if not seen.media:
            raise DataError(f"{seen.where}: a mask is found in an image or a video, there is none")
        return self._features.prepared(seen, self.training)

    def collate_prepared(self, prepared: Sequence[PreparedMedium]) -> Clips:
        """See `tpokit_mask.clips.collate_clips`."""
        return collate_clips(prepared, self.sam2.image_size)

    def read_target(self, annotation: Any, seen: Seen) -> CallTarget:
        """See `tpokit_mask.annotations.read_annotation`.

        Raises:
            DataError: The annotation is wrong, or the sample has no medium.
        """
        if not seen.media:
            raise DataError(f"{seen.where}: a mask is found in an image or a video, there is none")
        truth = read_annotation(annotation, seen.info[0], seen.where, self.host.folder)
        if seen.prepared is None:
            return CallTarget(truth)
        drawn = self.options.box_of_mask
        return at_frames(truth, seen.prepared.times_s, self._loss_side, drawn)

    def read_given(self, annotation: Any, seen: Seen) -> Corners:
        """A box in a question; see `tpokit.data.boxes.read_box`."""
        if not self.options.given:
            super().read_given(annotation, seen)  # which says that there is none
        return read_box(annotation, seen.where)

    def collate(self, targets: Sequence[CallTarget]) -> MaskTargets:
        """See `tpokit_mask.targets.collate_targets`."""
        return collate_targets(targets, self._loss_side)

    def counts(self, targets: MaskTargets) -> dict[str, float]:
        """See `tpokit_mask.losses.terms.term_counts`."""
        return term_counts(targets.object_count, targets.box_count)

    # ---- network ----

    def encode_given(self, given: Tensor) -> Tensor:
        """Boxes ``[m, 4]`` to embeddings ``[m, c]``, float32; c: width of the backbone."""
        embeddings: Tensor = self.box_encoder(given)
        return embeddings

    def forward(self, slots: Tensor, context: Context) -> Prediction:
        """Segment: ``[n, k, c]`` and the frames of the context to a `Prediction` of n calls.

        Raises:
            UsageError: SAM 2 is to learn under ZeRO-3.
            TpokitError: Frames are missing; or in inference, a prompt is not finite.
        """
        self.trained_parts.check_whole()
        tokens = self.adapter(slots)
        boxes = self.box_decoder(slots[:, 0])
        clips: Clips = context.prepared
        options = self.options
        self._bring_sam2(slots.device)
        if clips.images is not None:
            groups = self.sam2.run(
                lambda: segment(self.sam2, self._maps(clips), clips, tokens, options)
            )
            return Prediction(tokens, boxes, groups=groups)
        if context.targets is not None and options.learn == "masks":
            raise TpokitError("the mask head is to learn from masks, but no frame was read for it")
        if not clips.media or context.targets is not None:  # idle, or it learns from the box
            return Prediction(tokens, boxes)
        media = [medium.media for medium in clips.media]
        batch = options.sam2.encode_batch or self.sam2.frames_at_once
        tracks = self.sam2.run(lambda: follow(self.sam2, media, tokens, options.tracking, batch))
        return Prediction(tokens, boxes, tracks=tuple(tracks))

    def _bring_sam2(self, device: torch.device) -> None:
        if self.sam2.device != device:
            self.sam2.to(device)

    def _maps(self, clips: Clips) -> FeatureMaps:
        """Features of all frames, those that were kept last."""
        assert clips.images is not None, "there are frames"
        kept = None
        if clips.kept is not None:
            kept = FeatureMaps(*(level.float() for level in clips.kept))
            if not len(clips.images):
                return kept
        with self._features.as_kept(clips.images.device):
            maps = self.sam2.encode(clips.images, self.options.sam2.encode_batch)
            maps = self._features.keep(clips.new, maps)
            if kept is None:
                return maps
            return FeatureMaps(*map(torch.cat, zip(maps, kept, strict=True)))

    def loss(self, prediction: Prediction, targets: MaskTargets) -> dict[str, LossTerm]:
        """See `tpokit_mask.losses.terms`.

        ``box_tokens`` is 0 where the adapter gives another number of prompt tokens than SAM 2 has
        for a box.
        """
        wanted = [
            WantedMasks(
                targets.masks[group.calls, group.frames],
                targets.there[group.calls, group.frames],
            )
            for group in prediction.groups
        ]
        nothing = LossTerm(prediction.tokens.sum() * 0.0, targets.object_count)
        terms = dict.fromkeys(TERMS, nothing)
        if wanted:
            decoded = [group.decoded for group in prediction.groups]
            terms |= mask_terms(decoded, wanted, targets.object_count, self.options.losses)
        boxes, there = targets.boxes, targets.box_there
        terms["box_l1"] = box_l1_term(prediction.boxes, boxes, there, targets.box_count)
        if prediction.tokens.shape[1] == BOX_TOKENS:
            with torch.no_grad():
                right = self.sam2.box_tokens(boxes)
            terms["box_tokens"] = box_tokens_term(
                prediction.tokens, right, there, targets.box_count
            )
        return terms

    def without_gradient(self, learnt: Collection[str]) -> tuple[str, ...]:
        """What no loss needs, and of SAM 2 what only some samples use: its memory in videos, and
        where an object is gone; the best of three masks.
        """
        unused = [
            name
            for name, term in (
                (r"^box_decoder\.", "box_l1"),
                (r"\.iou_prediction_head\.", "iou"),
                (r"\.pred_obj_score_head\.", "object_score"),
            )
            if term not in learnt
        ]
        return (
            *unused,
            r"^trained_parts\.(memory_|maskmem_|no_mem|no_obj|obj_ptr)",
            r"\.output_hypernetworks_mlps\.",
        )

    def model_files(self) -> dict[str, Path]:
        """The checkpoint of SAM 2, unless it is in a package or random."""
        name = self.options.sam2.checkpoint
        path = checkpoint_file(name, self.host.folder)
        return {} if path is None or name.startswith(PACKAGE) else {"sam2.checkpoint": path}

    def idle_inputs(self) -> dict[str, Any]:
        """One call about nothing; if SAM 2 learns, about a frame of zeros, or two if its memory
        does.

        A frozen SAM 2 is not run at all, and an encoder that does not learn never.
        """
        inputs = super().idle_inputs()
        what = self.options.sam2.trained
        if what == "nothing":
            return inputs
        side, device = self.sam2.image_size, inputs["slots"].device
        self._bring_sam2(device)
        frames = torch.zeros(1, dtype=torch.long, device=device)
        none = frames[:0]
        if what == "everything":
            images = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
            clips = Clips((), images, None, none, none, frames, frames.expand(1, 2))
        else:
            images = torch.zeros(0, 3, side, side, dtype=torch.uint8, device=device)
            blank = self.sam2.blank_maps(1)
            clips = Clips((), images, blank, frames, frames, none, none.reshape(0, 2))
        return {**inputs, "context": inputs["context"]._replace(prepared=clips)}

    # ---- results ----

    def decode(self, prediction: Prediction, media: Sequence[MediaInfo]) -> list[MaskTrack]:
        """The tracks; ``media`` is not looked at, as masks have the size of their frames."""
        return list(prediction.tracks)

    def result_of(self, target: CallTarget, media: MediaInfo) -> MaskTrack:
        """The right masks, on every frame that is annotated."""
        return target.truth.result()
