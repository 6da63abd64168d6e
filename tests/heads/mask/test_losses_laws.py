"""Losses of the mask head: what must hold whatever the numbers are."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional

from tpokit.errors import TpokitError
from tpokit.types import LossTerm
from tpokit_mask.losses.options import LossOptions
from tpokit_mask.losses.terms import DecodedMasks, WantedMasks, mask_terms
from tpokit_mask.losses.weights import MASK_TERMS
from tpokit_mask.resizing import resized

EVERY_OPTION = [
    LossOptions(),
    LossOptions(iou_masks="chosen", iou_error="squared", absent_masks=True),
    LossOptions(focal_alpha=None, focal_gamma=0.5, score_alpha=0.25, score_gamma=2),
]


@dataclass
class Clips:
    """Objects on frames, as the decoder would give them."""

    decoded: DecodedMasks
    wanted: WantedMasks

    def terms(self, options: LossOptions | None = None) -> dict[str, LossTerm]:
        return mask_terms([self.decoded], [self.wanted], 1, options or LossOptions())

    def sums(self, options: LossOptions | None = None) -> Tensor:
        return torch.stack([term.sum for term in self.terms(options).values()])

    def gradients(self, options: LossOptions | None = None) -> DecodedMasks:
        weights = torch.tensor([20.0, 1.0, 3.0, 0.5])
        return DecodedMasks(
            *torch.autograd.grad((self.sums(options) * weights).sum(), self.decoded)
        )


def make_clips(
    objects: int = 2, frames: int = 3, masks: int = 3, seed: int = 0, scale: int = 1
) -> Clips:
    """Random ones of 8 x 6 pixels; the last object is absent on the last frame."""
    generator = torch.Generator().manual_seed(seed)
    shape = (objects, frames, masks)
    true = torch.rand(objects, frames, 8 * scale, 6 * scale, generator=generator) > 0.6
    true[-1:, -1:] = False
    decoded = DecodedMasks(
        torch.randn(*shape, 8, 6, generator=generator) * 3,
        torch.rand(shape, generator=generator),
        torch.randn(shape[:-1], generator=generator),
    )
    for tensor in decoded:
        tensor.requires_grad_()
    return Clips(decoded, WantedMasks(true, torch.ones(objects, frames, dtype=torch.bool)))


def padded(clips: Clips, objects: int, frames: int, filling: float) -> Clips:
    """The same in the corner of a larger batch whose rest is nonsense."""

    def larger(tensor: Tensor, value: float) -> Tensor:
        shape = (objects, frames, *tensor.shape[2:])
        whole = torch.full(shape, value, dtype=tensor.dtype)
        whole[: tensor.shape[0], : tensor.shape[1]] = tensor.detach()
        return whole.requires_grad_(tensor.requires_grad)

    return Clips(
        DecodedMasks(*(larger(tensor, filling) for tensor in clips.decoded)),
        WantedMasks(larger(clips.wanted.masks, True), larger(clips.wanted.there, False)),
    )


# ---- batches ----


@settings(max_examples=30, deadline=None)
@given(
    objects=st.integers(1, 3),
    frames=st.integers(1, 3),
    more_objects=st.integers(0, 2),
    more_frames=st.integers(0, 2),
    masks=st.sampled_from([1, 3]),
    filling=st.sampled_from([7.0, -1024.0, float("inf"), float("nan")]),
    options=st.sampled_from(EVERY_OPTION),
)
def test_padding_costs_nothing_and_learns_nothing(
    objects, frames, more_objects, more_frames, masks, filling, options
):
    alone = make_clips(objects, frames, masks)
    batch = padded(alone, objects + more_objects, frames + more_frames, filling)
    torch.testing.assert_close(batch.sums(options), alone.sums(options), rtol=1e-5, atol=1e-6)
    for among, own in zip(batch.gradients(options), alone.gradients(options), strict=True):
        torch.testing.assert_close(among[:objects, :frames], own, rtol=1e-5, atol=1e-8)
        assert not among[objects:].any()
        assert not among[:, frames:].any()


@pytest.mark.parametrize("options", EVERY_OPTION)
def test_samples_together_cost_what_they_cost_alone(options):
    one, other = make_clips(seed=1), make_clips(objects=1, seed=2)
    together = Clips(
        DecodedMasks(*(torch.cat(both) for both in zip(one.decoded, other.decoded, strict=True))),
        WantedMasks(*(torch.cat(both) for both in zip(one.wanted, other.wanted, strict=True))),
    )
    expected = one.sums(options) + other.sums(options)
    torch.testing.assert_close(together.sums(options), expected, rtol=1e-5, atol=1e-6)


def test_groups_may_be_frames_or_kinds_of_frames():
    first, rest = make_clips(frames=1, masks=1), make_clips(frames=2, seed=1)
    frames = [
        Clips(
            DecodedMasks(*(tensor[:, frame] for tensor in rest.decoded)),
            WantedMasks(*(tensor[:, frame] for tensor in rest.wanted)),
        )
        for frame in range(2)
    ]
    by_kind, by_frame = [first, rest], [first, *frames]
    found = [
        torch.stack(
            [
                term.sum
                for term in mask_terms(
                    [clips.decoded for clips in groups],
                    [clips.wanted for clips in groups],
                    2,
                    LossOptions(),
                ).values()
            ]
        )
        for groups in (by_kind, by_frame)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0], first.sums() + rest.sums(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", EVERY_OPTION)
@pytest.mark.parametrize("scale", [1, 4])
def test_no_object_costs_nothing_but_has_a_graph(options, scale):
    terms = make_clips(objects=0, scale=scale).terms(options)
    assert tuple(terms) == MASK_TERMS
    assert all(term.sum == 0 and term.sum.requires_grad for term in terms.values())
    nobody = padded(make_clips(objects=1), 1, 3, 0.0)
    nobody.wanted.there.fill_(False)
    assert torch.equal(nobody.sums(options), torch.zeros(4))
    assert not any(gradient.any() for gradient in nobody.gradients(options))


# ---- objects that are not visible ----


def test_an_object_that_is_not_visible_costs_its_score_only():
    clips = make_clips(objects=1, frames=1)
    focal, dice, iou, score = clips.sums()
    assert (focal, dice, iou) == (0, 0, 0)
    (logit,) = clips.decoded.scores.flatten()
    torch.testing.assert_close(score, functional.softplus(logit))
    logits, ious, scores = clips.gradients()
    assert not logits.any()
    assert not ious.any()
    assert scores.all()


def test_an_object_that_is_not_visible_can_be_made_to_cost_its_masks():
    clips = make_clips(objects=1, frames=1)
    options = LossOptions(absent_masks=True)
    assert (clips.sums(options) > 0).all()
    logits, ious, _ = clips.gradients(options)
    assert logits.any()
    assert ious.all()
    # towards the empty mask; the mask that is chosen
    (learnt,) = [mask for mask in logits[0, 0] if mask.any()]
    assert (learnt > 0).all()


# ---- several masks ----


def test_only_the_mask_that_costs_least_learns_but_the_iou_of_all():
    clips = make_clips(objects=1, frames=1)
    clips.wanted.masks[..., 2:5] = True
    right = torch.where(clips.wanted.masks[0, 0], 4.0, -4.0)
    logits = clips.decoded.logits.detach().clone()
    logits[0, 0, 1] = right + 0.1
    clips.decoded = clips.decoded._replace(logits=logits.requires_grad_())
    moved, ious, _ = clips.gradients()
    assert [bool(mask.any()) for mask in moved[0, 0]] == [False, True, False]
    assert ious.all()
    _, ious, _ = clips.gradients(LossOptions(iou_masks="chosen"))
    assert [bool(iou) for iou in ious[0, 0]] == [False, True, False]


def test_the_choice_between_masks_follows_its_weights():
    clips = make_clips(objects=1, frames=1, masks=2)
    true = torch.zeros(8, 6, dtype=torch.bool)
    true[0, 0] = True
    clips.wanted.masks[0, 0] = true
    unsure = torch.full((8, 6), -3.0)  # cheap in focal, and 1 - Dice is near 1
    bold = torch.where(true, 6.0, -6.0)
    bold[1, 0] = 40.0  # one pixel is very wrong: dear in focal, but half of the area is right
    logits = torch.stack((unsure, bold))[None, None].requires_grad_()
    clips.decoded = clips.decoded._replace(logits=logits)
    chosen = [
        clips.gradients(LossOptions(choice_focal=focal, choice_dice=dice))
        .logits[0, 0]
        .flatten(1)
        .any(1)
        .tolist()
        for focal, dice in ((1.0, 0.0), (0.0, 1.0))
    ]
    assert chosen == [[True, False], [False, True]]


# ---- numbers ----


@pytest.mark.parametrize("options", EVERY_OPTION)
def test_smaller_logits_are_brought_to_the_size_of_the_true_masks(options):
    clips = make_clips(scale=4)
    true = clips.wanted.masks
    larger = torch.stack(
        [
            functional.interpolate(of_object, true.shape[-2:], mode="bilinear")
            for of_object in clips.decoded.logits
        ]
    )
    assert torch.equal(resized(clips.decoded.logits, *true.shape[-2:]), larger)
    expected = Clips(clips.decoded._replace(logits=larger), clips.wanted)
    torch.testing.assert_close(clips.sums(options), expected.sums(options))
    (through,) = torch.autograd.grad(expected.sums(options).sum(), clips.decoded.logits)
    (direct,) = torch.autograd.grad(clips.sums(options).sum(), clips.decoded.logits)
    torch.testing.assert_close(direct, through)


@pytest.mark.parametrize("options", EVERY_OPTION)
@pytest.mark.parametrize("scale", [1, 4])
def test_bfloat16_is_computed_in_float32_also_under_autocast(options, scale):
    clips = make_clips(scale=scale)
    half = DecodedMasks(*(t.detach().bfloat16().requires_grad_() for t in clips.decoded))
    full = DecodedMasks(*(t.detach().float().requires_grad_() for t in half))
    low, high = Clips(half, clips.wanted), Clips(full, clips.wanted)
    with torch.autocast("cpu", torch.bfloat16):
        found, gradients = low.sums(options), low.gradients(options)
    assert found.dtype == torch.float32
    assert torch.equal(found, high.sums(options))
    for gradient, expected in zip(gradients, high.gradients(options), strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient, expected.bfloat16())


@pytest.mark.parametrize("options", EVERY_OPTION)
@pytest.mark.parametrize("masks", [1, 3])
def test_nothing_waits_for_the_device(options, masks):
    with FakeTensorMode():  # tensors without numbers: reading one, or a shape from them, fails
        clips = make_clips(masks=masks, scale=4)
        found = clips.gradients(options)
        with pytest.raises(DataDependentOutputException):
            clips.sums(options)[0].item()
    assert [gradient.shape for gradient in found] == [tensor.shape for tensor in clips.decoded]


# ---- what does not fit ----


def test_no_group_is_refused():
    with pytest.raises(TpokitError, match="0 groups of predicted masks and 0 of true ones"):
        mask_terms([], [], 0, LossOptions())
    clips = make_clips()
    with pytest.raises(TpokitError, match="2 groups of predicted masks and 1 of true ones"):
        mask_terms([clips.decoded] * 2, [clips.wanted], 0, LossOptions())


@pytest.mark.parametrize(
    ("decoded", "wanted", "message"),
    [
        ({"ious": torch.zeros(2, 3)}, {}, r"IoU \[2, 3\] and scores \[2, 3\] of one group must be"),
        ({"scores": torch.zeros(2, 3, 1)}, {}, r"scores \[2, 3, 1\] of one group must be"),
        ({}, {"masks": torch.ones(3, 8, 6).bool()}, r"true masks \[3, 8, 6\].* is \[2, 3\]"),
        ({}, {"there": torch.ones(2).bool()}, r"what is there \[2\] must be"),
        ({}, {"masks": torch.ones(2, 3, 8, 6)}, r"true masks \(torch.float32\).* must be bool"),
    ],
)
def test_shapes_that_do_not_fit_are_named(decoded, wanted, message):
    clips = make_clips()
    clips.decoded, clips.wanted = (
        clips.decoded._replace(**decoded),
        clips.wanted._replace(**wanted),
    )
    with pytest.raises(TpokitError, match=message):
        clips.terms()
