"""SAM 2 from prompt tokens: what holds for segmenting and tracking whatever the numbers."""

import gc
import weakref

import pytest
import torch

import tpokit
from tests.heads.mask.tiny_sam2 import prompts, tiny_clip, tiny_maps, tiny_sam2
from tpokit_mask.sam2_port import FeatureMaps, Masks, Tracker, Tracking, stream, track

FRAMES = 20  # more than memories (3) and pointers (16) reach back


def clips() -> torch.Tensor:
    """Two videos, the second one mirrored and backwards: uint8 ``[2, 20, 3, 128, 128]``."""
    clip = tiny_clip().repeat(FRAMES // 4, 1, 1, 1)
    return torch.stack((clip, clip.flip(0, -1)))


def of_objects(*videos: int) -> torch.Tensor:
    """Frame numbers of objects in these videos, among the frames of both."""
    return torch.tensor(videos)[:, None] * FRAMES + torch.arange(FRAMES)


def assert_close(ours, theirs, limit: float = 1e-4) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        for value, expected in zip(mine, other, strict=True):
            torch.testing.assert_close(value, expected, atol=limit, rtol=1e-5)


def learnable(name: str = "prompts") -> torch.Tensor:
    return prompts(name).requires_grad_()


@pytest.mark.parametrize("tracking", [Tracking(), Tracking(append=True, three_masks=True)])
@torch.no_grad()
def test_a_stream_gives_what_all_frames_at_once_give(tracking):
    sam2, tokens = tiny_sam2(), prompts("prompts_b")
    maps = sam2.encode(clips()[0])
    at_once = track(sam2, maps, tokens, of_objects(0, 0, 0), tracking)
    for batch in (1, 5):
        frames = sam2.encode_each(iter(clips()[0]), batch)
        assert_close(stream(sam2, frames, tokens, tracking), at_once)


@torch.no_grad()
def test_a_stream_of_several_videos_gives_what_each_gives():
    sam2, tokens = tiny_sam2(), prompts("prompts")
    both = stream(
        sam2,
        (sam2.encode(frames) for frames in clips().unbind(1)),
        tokens,
        Tracking(),
        torch.tensor([1, 0, 1]),
    )
    each = [stream(sam2, sam2.encode_each(clip), tokens, Tracking()) for clip in clips()]
    for found, first, second in zip(both, *each, strict=True):
        expected = torch.stack([second.chosen[0], first.chosen[1], second.chosen[2]])
        torch.testing.assert_close(found.chosen, expected, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_objects_of_several_videos_in_one_call_are_as_one_by_one():
    sam2, tokens = tiny_sam2(), prompts("prompts")
    frames = of_objects(1, 0, 1)[:, :6]
    maps = sam2.encode(clips().flatten(0, 1))
    together = track(sam2, maps, tokens, frames, Tracking())
    segmented = sam2.segment(maps, tokens, frames[:, 3], three_masks=True)
    for row in range(3):
        one = slice(row, row + 1)
        alone = track(sam2, maps, tokens[one], frames[one], Tracking())
        assert_close([[part[one] for part in masks] for masks in together], alone)
        in_image = sam2.segment(maps, tokens[one], frames[one, 3], three_masks=True)
        assert_close([[part[one] for part in segmented]], [in_image])


@torch.no_grad()
def test_a_clip_padded_to_the_length_of_another_is_tracked_as_it_is():
    sam2, tokens = tiny_sam2(), prompts("prompts")[:1]
    maps = tiny_maps(sam2)
    short = track(sam2, maps, tokens, torch.tensor([[0, 1]]), Tracking())
    padded = track(sam2, maps, tokens, torch.tensor([[0, 1, 1, 1]]), Tracking())
    assert_close(padded[:2], short, 0)


@torch.no_grad()
def test_what_is_kept_of_a_stream_does_not_grow():
    sam2 = tiny_sam2()
    maps = sam2.narrow(tiny_maps(sam2))
    tracker, spatial, pointers = Tracker(sam2, prompts("prompts"), Tracking()), [], []
    for frame in range(40):
        tracker.step(maps.rows(torch.full((3,), frame % 4)))
        memory = tracker.remember()
        spatial.append(weakref.ref(memory.spatial))
        pointers.append(weakref.ref(memory.pointer))
        del memory
    gc.collect()

    def kept(memories: list) -> list[int]:
        return [frame for frame in range(40) if memories[frame]() is not None]

    assert kept(spatial) == [0, 38, 39]
    assert kept(pointers) == [0, *range(25, 40)]


def test_a_stream_takes_frames_when_they_are_needed_and_leaves_gradients_on():
    taken = []
    sam2 = tiny_sam2()
    images = (taken.append(frame) or image for frame, image in enumerate(clips()[0]))
    masks = stream(sam2, sam2.encode_each(images, 2), learnable(), Tracking())
    for _ in range(3):
        assert not next(masks).logits.requires_grad
        assert torch.is_grad_enabled()
    assert len(taken) == 4


@torch.no_grad()
def test_half_as_large_memories_change_no_pixel():
    sam2, tokens = tiny_sam2(), prompts("prompts")
    runs = [
        list(stream(sam2, sam2.encode_each(tiny_clip()), tokens, Tracking(half_memory=half)))
        for half in (False, True)
    ]
    for full, half in zip(*runs, strict=True):
        assert (full.chosen - half.chosen).abs().max() < 0.05  # of a standard deviation of 16
        assert ((full.chosen > 0) == (half.chosen > 0)).all()


@pytest.mark.parametrize("three_masks", [False, True])
def test_gradients_reach_the_tokens_from_every_frame(three_masks):
    sam2, tokens = tiny_sam2().set_trained("nothing").train(), learnable("prompts_b")
    tracking = Tracking(gated=False, three_masks=three_masks)
    frames = track(sam2, tiny_maps(sam2), tokens, torch.arange(4).expand(3, 4), tracking)
    for masks in frames:
        for part in (masks.logits, masks.ious, masks.scores):
            (gradient,) = torch.autograd.grad(part.sum(), tokens, retain_graph=True)
            assert gradient.isfinite().all() and (gradient.flatten(1).norm(dim=1) > 0).all()


def test_gating_cuts_the_gradient_of_masks_and_can_be_left_out():
    sam2, tokens = tiny_sam2(), learnable()
    sam2.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data -= 50  # all are absent
    frames = torch.arange(2).expand(3, 2)
    maps = tiny_maps(sam2)
    gated = track(sam2, maps, tokens, frames, Tracking())
    free = track(sam2, maps, tokens, frames, Tracking(gated=False))
    assert all((masks.logits == -1024).all() for masks in gated)
    assert not torch.autograd.grad(gated[0].logits.sum(), tokens, retain_graph=True)[0].any()
    assert torch.autograd.grad(free[0].logits.sum(), tokens)[0].abs().min(0).values.any()
    assert_close([masks.gated() for masks in free], gated, 0)


def test_no_objects_cost_nothing_and_keep_the_graph():
    sam2, tokens = tiny_sam2(), torch.zeros(0, 3, 48, requires_grad=True)
    none = torch.zeros(0, 4, dtype=torch.long)
    for maps in (tiny_maps(sam2), sam2.encode(torch.zeros(0, 3, 128, 128))):
        frames = track(sam2, maps, tokens, none, Tracking(append=True))
        found = sam2.segment(maps, tokens, none[:, 0], three_masks=True)
        assert [masks.logits.shape for masks in frames] == [(0, m, 32, 32) for m in (1, 3, 3, 3)]
        assert [part.shape for part in found] == [(0, 3, 32, 32), (0, 3), (0,), (0, 3, 48)]
        assert found.chosen.shape == (0, 32, 32)
        assert all(masks.logits.sum() == 0 and masks.scores.requires_grad for masks in frames)


@torch.no_grad()
def test_prompted_frames_are_looked_at_without_memory():
    sam2, tokens = tiny_sam2(), prompts("prompts_b")
    maps, frames = tiny_maps(sam2), torch.arange(4).expand(3, 4)
    once = track(sam2, maps, tokens, frames, Tracking())
    twice = track(sam2, maps, tokens, frames, Tracking(prompted=(0, 2)))
    assert_close(twice[:2], once[:2], 0)
    alone = sam2.segment(maps, tokens, frames[:, 2]).gated()
    assert_close([twice[2]], [alone])
    assert not torch.allclose(twice[3].logits, once[3].logits, atol=1e-2)


@torch.no_grad()
def test_how_long_a_video_is_said_to_be_counts_up_to_sixteen_frames():
    sam2, tokens = tiny_sam2(), prompts("prompts_b")
    maps, frames = tiny_maps(sam2), torch.arange(4).expand(3, 4)
    usual, short, sixteen, hour = (
        track(sam2, maps, tokens, frames, Tracking(said_frames=said))
        for said in (None, 4, 16, 90_000)
    )
    assert_close(sixteen, usual, 0)
    assert_close(hour, usual, 0)
    assert not torch.equal(short[1].logits, usual[1].logits)
    longer = track(sam2, maps, tokens, frames, Tracking(said_frames=3))
    assert len(longer) == frames.shape[1]  # counts as long as it is so far


def test_tracking_that_cannot_be_is_refused():
    with pytest.raises(tpokit.UsageError, match=r"must begin with 0.*not \(2, 5\)"):
        Tracking(prompted=(2, 5))
    with pytest.raises(tpokit.UsageError, match="said_frames must be at least 2, not 1"):
        Tracking(said_frames=1)


def test_of_three_masks_the_one_with_the_highest_iou_is_chosen():
    logits = torch.arange(6.0).reshape(2, 3, 1, 1)
    ious = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.4, 0.3]])
    masks = Masks(logits, ious, torch.zeros(2), torch.zeros(2, 3, 4))
    assert masks.chosen.flatten().tolist() == [1.0, 3.0]
    assert FeatureMaps(*logits.split(1, 1)).rows(torch.tensor([1, 1])).coarse.tolist() == [
        [[[5.0]]],
        [[[5.0]]],
    ]
