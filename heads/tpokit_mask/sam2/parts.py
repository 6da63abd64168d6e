"""SAM 2 with prompt tokens in place of clicks: the image encoder, the prompts, the mask decoder.

Source: facebookresearch/sam2, sam2/modeling/sam2_base.py: forward_image, _forward_sam_heads. The
package's own modules do all the work; this file calls them one by one, because none of the
package's entry points takes prompt tokens.

Legend of all shapes: as in `tpokit_mask.sam2.outputs`; n prompt tokens of each object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tpokit.errors import TpokitError
from tpokit_mask.sam2.outputs import FeatureMaps, Masks
from tpokit_mask.sam2.package import SAM2Base
from tpokit_mask.sam2.pixels import normalise

Result = TypeVar("Result")
Trained = Literal["nothing", "decoder", "everything"]
"""Which parameters of SAM 2 learn: of none, of the mask decoder, of all."""

_FRAMES_AT_ONCE = 8
_PIXELS_ON_CPU = 8 * 256 * 256


class Sam2(nn.Module):
    """SAM 2 for prompt tokens; see `tpokit_mask.sam2.build` for how one is made.

    Its weights stay in the type they have, float32, when what is around it is cast to another: cast
    weights cannot run (sam2 mixes them with float32 tables), but see `run`. It runs under autocast.

    Attributes:
        model: sam2's own module.
        image_size: S.
        width: d.
    """

    def __init__(self, model: SAM2Base) -> None:
        """Wrap a model of sam2, which is used as it is."""
        super().__init__()
        self.model: Any = model
        self.image_size: int = model.image_size
        self.width: int = model.hidden_dim
        self._place_tables()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        # of a parameter that never learns: those that do are moved with the head, before the rest
        device: torch.device = self.model.no_mem_pos_enc.device
        return device

    @property
    def frames_at_once(self) -> int:
        """Images that the encoder had best take in one call.

        Small ones side by side save calls. On a CPU large ones do not: their activations are beyond
        its caches, and beyond what malloc hands out without fresh pages from the system.
        """
        if self.device.type != "cpu":
            return _FRAMES_AT_ONCE
        return min(_FRAMES_AT_ONCE, max(1, _PIXELS_ON_CPU // self.image_size**2))

    def set_trained(self, what: Trained) -> Self:
        """Say which parameters learn; gradients reach the tokens in any case."""
        self.model.requires_grad_(what == "everything")
        self.model.sam_mask_decoder.requires_grad_(what != "nothing")
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As in torch, but what is frozen never drops out.

        These are the two parts that can; in all others the mode only switches what `build` calls
        postprocessing.
        """
        super().train(mode)
        for part in (self.model.image_encoder, self.model.memory_attention):
            part.train(mode and _is_trained(part))
        return self

    def run(self, work: Callable[[], Result]) -> Result:
        """Do something with float32 weights, be it that some of them were cast.

        An engine casts what it trains. Gradients reach the weights in their own type.
        """
        weights = self.named_parameters()
        cast = {name: weight.float() for name, weight in weights if weight.dtype != torch.float32}
        if not cast:
            return work()
        found: Result = functional_call(self, cast, (work,))
        return found

    def forward(self, work: Callable[[], Result]) -> Result:
        """What `run` calls with other weights in place."""
        return work()

    def encode(self, images: Tensor, batch: int | None = None) -> FeatureMaps:
        """Features of images, without a graph if the image encoder is frozen.

        Args:
            images: uint8 ``[f, 3, S, S]`` RGB on any device (`resize_frames`), or float, already
                normalised. They are brought to the device and made float one batch at a time.
            batch: Images that are encoded at once, if not `frames_at_once`.

        Raises:
            TpokitError: Images of another shape.
        """
        side = self.image_size
        if images.dim() != 4 or images.shape[1:] != (3, side, side):
            raise TpokitError(
                f"images for this SAM 2 must be [f, 3, {side}, {side}], not {list(images.shape)}"
            )
        if not len(images):  # which its attention could not reshape
            return self.blank_maps(0)
        maps = [self._encoded(part) for part in images.split(batch or self.frames_at_once)]
        return maps[0] if len(maps) == 1 else FeatureMaps(*map(torch.cat, zip(*maps, strict=True)))

    def encode_each(
        self, images: Iterable[Tensor], batch: int | None = None
    ) -> Iterator[FeatureMaps]:
        """Features of a stream of images, in order, one frame at a time: ``f = 1``.

        Args:
            images: Each uint8 ``[3, S, S]``; taken from the stream a batch ahead of use.
            batch: Images that are encoded at once, if not `frames_at_once`.
        """
        stream = iter(images)
        batch = batch or self.frames_at_once
        while ahead := list(islice(stream, batch)):
            maps = self.encode(torch.stack(ahead), batch)
            del ahead
            for frame in range(len(maps.coarse)):
                yield FeatureMaps(*(level[frame : frame + 1] for level in maps))

    def narrow(self, maps: FeatureMaps) -> FeatureMaps:
        """The maps with the channels that the decoder takes; those that have them stay.

        Raises:
            TpokitError: They were narrowed by a frozen decoder, and this one is to learn to.
        """
        decoder = self.model.sam_mask_decoder
        if not torch.is_autocast_enabled(self.device.type):
            maps = FeatureMaps(*(level.float() for level in maps))  # they may be kept in 16 bits
        if maps.fine.shape[1] == self.width:
            return FeatureMaps(decoder.conv_s0(maps.fine), decoder.conv_s1(maps.middle), *maps[2:])
        if torch.is_grad_enabled() and _is_trained(decoder.conv_s0):
            raise TpokitError(
                "these features come from a SAM 2 with a frozen mask decoder; to train the decoder "
                "encode the images with this one"
            )
        return maps

    def box_tokens(self, boxes: Tensor) -> Tensor:
        """SAM 2's own prompt tokens of boxes: ``[b, 4]`` to ``[b, 3, d]`` float32.

        Two corners and one that says that no further point follows, which is how sam2's video
        predictor prompts by a box. Always computed in float32: in bfloat16 corners would fall on a
        grid of four pixels.

        Args:
            boxes: Corners x0, y0, x1, y1 as fractions of the image.
        """
        corners = boxes.float().reshape(-1, 2, 2) * self.image_size
        labels = _corner_labels(boxes.device).expand(len(boxes), 2)
        with self._float32():
            tokens: Tensor
            tokens, _ = self.model.sam_prompt_encoder((corners, labels), None, None)
        return tokens

    def no_point_tokens(self, objects: int) -> Tensor:
        """What the prompt encoder gives without a prompt: "not a point" twice, ``[b, 2, d]``."""
        token: Tensor = self.model.sam_prompt_encoder.not_a_point_embed.weight
        return token.expand(objects, 2, -1)

    def segment(
        self,
        maps: FeatureMaps,
        tokens: Tensor,
        object_frames: Tensor,
        *,
        three_masks: bool = False,
        append: bool = False,
    ) -> Masks:
        """Masks of objects in images, not gated by the score.

        Args:
            maps: Of f images, from `encode`.
            tokens: ``[b, n, d]``; ``b = 0`` is legal.
            object_frames: ``[b]`` long: which image shows each object.
            three_masks: Three proposals with their predicted IoU instead of one.
            append: The tokens follow SAM 2's two "not a point" tokens instead of standing alone.
        """
        seen = self.narrow(maps).rows(object_frames)
        if append:
            tokens = self.appended(tokens)
        coarse = seen.coarse + self.model.no_mem_embed.view(1, -1, 1, 1)
        return self.decode(coarse, seen, tokens, three_masks)

    def appended(self, tokens: Tensor) -> Tensor:
        """Tokens behind the two "not a point" ones: ``[b, 2 + n, d]``."""
        return torch.cat((self.no_point_tokens(len(tokens)), tokens), 1)

    def decode(self, coarse: Tensor, seen: FeatureMaps, tokens: Tensor, three: bool) -> Masks:
        """The mask decoder.

        Args:
            coarse: ``[b, d, S / 16, S / 16]`` features with memory, or with what stands for none.
            seen: Narrowed maps of each object's frame; of these the finer two are read.
            tokens: ``[b, n, d]``, all that stand for the prompt.
            three: Whether it gives three masks or one.
        """
        if not len(tokens):
            return self._no_masks(tokens, 3 if three else 1)
        encoder = self.model.sam_prompt_encoder
        with self._float32():
            positions = encoder.get_dense_pe()
        no_mask = encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand_as(coarse)
        logits, ious, mask_tokens, scores = self.model.sam_mask_decoder(
            image_embeddings=coarse,
            image_pe=positions,
            sparse_prompt_embeddings=tokens,
            dense_prompt_embeddings=no_mask,
            multimask_output=three,
            repeat_image=False,
            high_res_features=[seen.fine, seen.middle],
        )
        return Masks(logits.float(), ious.float(), scores.float()[:, 0], mask_tokens.float())

    def _encoded(self, images: Tensor) -> FeatureMaps:
        encoder, decoder = self.model.image_encoder, self.model.sam_mask_decoder
        images = images.to(self.device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = normalise(images)
        with torch.set_grad_enabled(torch.is_grad_enabled() and _is_trained(encoder)):
            maps = FeatureMaps(*encoder(images)["backbone_fpn"])
        return maps if _is_trained(decoder.conv_s0) else self.narrow(maps)

    def blank_maps(self, frames: int) -> FeatureMaps:
        """Zeros in place of the features of frames, which costs nothing."""
        side, wide = self.image_size, self.width
        narrow = (wide // 8, wide // 4, wide)
        channels = (wide,) * 3 if _is_trained(self.model.sam_mask_decoder.conv_s0) else narrow
        sizes = zip(channels, (side // 4, side // 8, side // 16), strict=True)
        return FeatureMaps(*(torch.zeros(frames, c, n, n, device=self.device) for c, n in sizes))

    def _no_masks(self, tokens: Tensor, masks: int) -> Masks:
        """Of no objects, which sam2 could not reshape; with a graph to their tokens."""
        none, cells = tokens.float().sum(), self.image_size // 4
        shapes = ((0, masks, cells, cells), (0, masks), (0,), (0, masks, self.width))
        return Masks(*(none.new_zeros(shape) + none for shape in shapes))

    def _float32(self) -> torch.autocast:
        return torch.autocast(self.device.type, enabled=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move, as torch does, but never cast: see the class. Tables of places move along."""

        def moved(tensor: Tensor) -> Tensor:
            there = fn(tensor)
            return there if there.dtype == tensor.dtype else tensor.to(there.device)

        super()._apply(moved, recurse)
        self._place_tables()
        return self

    def _place_tables(self) -> None:
        """Bring rotary tables to the device.

        They are plain attributes in sam2, moved in the first pass on another device, which under
        inference mode would leave tables that no later pass can train with.
        """
        for module in self.model.memory_attention.modules():
            if hasattr(module, "freqs_cis"):
                module.freqs_cis = module.freqs_cis.to(self.device)


@cache
def _corner_labels(device: torch.device) -> Tensor:
    """SAM 2's numbers of the two corners of a box ``[1, 2]``; made once, as copying them waits."""
    with torch.inference_mode(False):  # kept ones must do for training as well
        return torch.tensor([[2, 3]], device=device)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
