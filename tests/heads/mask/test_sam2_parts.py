"""SAM 2 from prompt tokens: what is trained, in which precision, from which features and pixels."""

import pytest
import torch
from torchvision.transforms.v2.functional import resize

import tpokit
from tests.heads.mask.tiny_sam2 import prompts, tiny_clip, tiny_maps, tiny_sam2
from tpokit_mask.sam2_port import (
    FeatureMaps,
    Sam2,
    Tracking,
    normalise,
    resize_frames,
    resized,
    stream,
    track,
)

FRAMES = torch.arange(4).expand(3, 4)


def logits(sam2: Sam2, tokens: torch.Tensor, maps: FeatureMaps | None = None) -> torch.Tensor:
    """Chosen masks, not gated, ``[4, 3, 32, 32]``."""
    frames = track(sam2, maps or tiny_maps(sam2), tokens, FRAMES, Tracking(gated=False))
    return torch.stack([masks.chosen for masks in frames])


def touched(sam2: Sam2) -> set[str]:
    """Names of parts with a gradient."""
    return {
        ".".join(name.split(".")[:2]) if "conv_s" in name else name.split(".")[0]
        for name, parameter in sam2.model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ("nothing", set()),
        (
            "decoder",
            {"sam_mask_decoder", "sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1"},
        ),
    ],
)
def test_only_what_is_trained_gets_gradients(trained, expected):
    sam2, tokens = tiny_sam2().set_trained(trained).train(), prompts("prompts").requires_grad_()
    logits(sam2, tokens).sum().backward()
    assert tokens.grad.any()
    assert touched(sam2) == expected


def test_everything_can_be_trained():
    sam2 = tiny_sam2().set_trained("everything").train()
    logits(sam2, prompts("prompts")).sum().backward()
    assert touched(sam2) >= {"image_encoder", "memory_attention", "memory_encoder", "obj_ptr_proj"}


def test_a_frozen_image_encoder_leaves_no_graph():
    sam2 = tiny_sam2().train()
    assert tiny_maps(sam2).coarse.requires_grad
    assert not any(level.requires_grad for level in tiny_maps(sam2.set_trained("decoder")))


def test_what_is_frozen_never_drops_out():
    sam2, tokens = tiny_sam2(dropout=0.5).set_trained("decoder").train(), prompts("prompts")
    assert torch.equal(logits(sam2, tokens), logits(sam2, tokens))
    sam2.set_trained("everything")
    assert not torch.equal(logits(sam2, tokens), logits(sam2, tokens))


def test_features_of_a_frozen_decoder_are_narrow_and_do_for_no_other():
    sam2, tokens = tiny_sam2().set_trained("decoder"), prompts("prompts")
    wide = tiny_maps(sam2)
    narrow = tiny_maps(sam2.set_trained("nothing"))
    assert [level.shape[1] for level in wide] == [48, 48, 48]
    assert [level.shape[1] for level in narrow] == [6, 12, 48]
    torch.testing.assert_close(logits(sam2, tokens, wide), logits(sam2, tokens, narrow))
    sam2.set_trained("decoder")
    with pytest.raises(
        tpokit.TpokitError, match="with a frozen mask decoder; to train the decoder"
    ):
        logits(sam2, tokens, narrow)
    with torch.no_grad():
        logits(sam2, tokens, narrow)


def test_features_kept_in_sixteen_bits_do():
    sam2, tokens = tiny_sam2(), prompts("prompts")
    for trained in ("nothing", "decoder"):
        maps = tiny_maps(sam2.set_trained(trained))
        kept = FeatureMaps(*(level.half() for level in maps))
        assert (logits(sam2, tokens, kept) - logits(sam2, tokens, maps)).abs().max() < 0.2


def test_frames_encoded_in_batches_are_as_at_once():
    sam2 = tiny_sam2()
    for batched, at_once in zip(sam2.encode(tiny_clip(), 3), sam2.encode(tiny_clip()), strict=True):
        torch.testing.assert_close(batched, at_once)


@pytest.mark.parametrize(("side", "frames"), [(128, 8), (256, 8), (512, 2), (1024, 1)])
def test_on_a_cpu_the_larger_the_images_the_fewer_go_together(side, frames):
    sam2 = tiny_sam2()
    sam2.image_size = side
    assert sam2.frames_at_once == frames


def test_images_of_another_size_are_refused():
    with pytest.raises(
        tpokit.TpokitError, match=r"must be \[f, 3, 128, 128\], not \[2, 3, 64, 128\]"
    ):
        tiny_sam2().encode(torch.zeros(2, 3, 64, 128))


def test_it_trains_under_autocast_and_agrees_with_float32():
    sam2, tokens = tiny_sam2().set_trained("everything").train(), prompts("prompts")
    tokens.requires_grad_()
    exact = logits(sam2, tokens)
    (wanted,) = torch.autograd.grad(exact.sigmoid().mean(), tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rough = logits(sam2, tokens)
    assert rough.dtype == torch.float32
    rough.sigmoid().mean().backward()
    # bfloat16 has 8 bits: logits, of a standard deviation of 16, are 0.14 apart in the mean
    assert (rough - exact).abs().mean() < 0.3
    assert ((rough > 0) != (exact > 0)).float().mean() < 0.001
    assert torch.cosine_similarity(tokens.grad.flatten(), wanted.flatten(), 0) > 0.99
    assert all(p.grad is None or p.grad.isfinite().all() for p in sam2.parameters())


def test_it_stays_in_float32_when_its_surroundings_are_cast():
    sam2, tokens = tiny_sam2(), prompts("prompts")
    before = logits(sam2, tokens)
    surroundings = torch.nn.ModuleList([sam2, torch.nn.Linear(2, 2)]).to(torch.bfloat16)
    assert surroundings[1].weight.dtype == torch.bfloat16
    assert {value.dtype for value in sam2.state_dict().values()} == {torch.float32}
    assert torch.equal(logits(sam2, tokens), before)


def test_it_can_be_trained_after_inference_mode():
    sam2, tokens = tiny_sam2(image_size=64), prompts("prompts").requires_grad_()
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with torch.inference_mode():
        list(stream(sam2, sam2.encode_each(images), tokens, Tracking()))
    sam2.set_trained("everything").train()
    frames = track(sam2, sam2.encode(images), tokens, FRAMES[:, :2], Tracking(gated=False))
    frames[1].logits.sum().backward()
    assert tokens.grad.any()


def test_frames_are_resized_as_the_packages_image_predictor_does_up_to_eight_bits():
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(2, 3, 9, 13, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (90, 150), mode="bicubic").clamp(0, 255)
    frames = smooth.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    ours = resize_frames(frames, 128)
    assert ours.dtype == torch.uint8 and ours.shape == (2, 3, 128, 128)
    theirs = resize(frames.permute(0, 3, 1, 2) / 255, [128, 128], antialias=True)
    assert (ours / 255 - theirs).abs().max() <= 1.1 / 255
    assert (ours / 255 - theirs).abs().mean() <= 0.5 / 255


def test_pixels_are_normalised_as_all_of_its_predictors_do():
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 2, 2)
    found = normalise(images)
    assert found.dtype == torch.float32
    for channel, (mean, deviation) in enumerate(
        zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ):
        black, white = found[:, channel, 0, 0].tolist()
        assert black == pytest.approx(-mean / deviation)
        assert white == pytest.approx((1 - mean) / deviation)


def test_frames_of_the_right_size_are_taken_as_they_are():
    frames = torch.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3).to(torch.uint8)
    assert torch.equal(resize_frames(frames, 32), frames.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    "frames", [torch.zeros(2, 8, 8, 3), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]
)
def test_frames_of_another_kind_are_refused(frames):
    with pytest.raises(tpokit.TpokitError, match=r"must be uint8 \[f, h, w, 3\], not torch"):
        resize_frames(frames, 32)


def test_logits_are_brought_to_the_size_of_the_medium():
    found = resized(torch.full((2, 3, 4, 4), 1.5, dtype=torch.bfloat16), 7, 9)
    assert found.shape == (2, 3, 7, 9) and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((2, 3, 7, 9), 1.5))
    assert resized(torch.zeros(0, 4, 4), 7, 9).shape == (0, 7, 9)
