"""The temporal heads as heads: what they ask for, what reaches the slot, results, bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tpokit import Context, DataError, Frames, Host, Media, MediaInfo, Seen, UsageError, View, Words
from tpokit_temporal.annotations import TemporalTarget
from tpokit_temporal.head import TemporalHead
from tpokit_temporal.losses.weights import TERMS
from tpokit_temporal.mlp_head import TemporalMlpHead
from tpokit_temporal.options import MlpOptions, TemporalOptions

HIDDEN, VISION = 24, 12
SMALL = {
    "width": 16,
    "feed_forward": 32,
    "heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "queries": 4,
    "dummies": 3,
    "global_tokens": 3,
    "dropout": 0.0,
    "input_dropout": 0.0,
}
VIDEO = MediaInfo("video", 64, 48, duration_s=8.0)


def head(**options):
    torch.manual_seed(0)
    chosen = {"features": {"kind": "backbone", "rate": 1.0, "grid": 2}, **SMALL, **options}
    return TemporalHead(TemporalOptions(**chosen), Host(HIDDEN, VISION))


def plain_head():
    torch.manual_seed(0)
    return TemporalMlpHead(MlpOptions(), Host(HIDDEN))


def seen(frames=8, video="a.mp4", question="when is the ring seen", info=VIDEO):
    view = View("video", np.zeros((frames, 4, 4, 3), np.uint8), (0.0,) * frames, 8.0, Path(video))
    return Seen(
        f"clips/{video}",
        question,
        (Media("video", Path(video)),),
        (info,),
        (view,),
        prepared=frames,
    )


def context(clips=(8, 5, 8), words=(4, 6, 2), seed=0, targets=None):
    """Random features of three calls, padded; what is padding is filled with large numbers."""
    random = torch.Generator().manual_seed(seed)

    def rows(lengths, width):
        states = torch.full((len(lengths), max(lengths), width), 50.0)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        states[mask] = torch.randn(int(mask.sum()), width, generator=random)
        return states, mask

    return Context(
        question=Words(*rows(words, HIDDEN)),
        frames=Frames(*rows(clips, 4 * VISION)),
        targets=targets,
    )


def slots(count=3, seed=1):
    return torch.randn(count, 1, HIDDEN, generator=torch.Generator().manual_seed(seed))


def targets_of(made, clips=(8, 5, 8)):
    read = [
        made.read_target({"moments_s": [[1.0, 4.0]]}, seen(count, f"{index}.mp4"))
        for index, count in enumerate(clips)
    ]
    return made.collate(read)


def test_it_asks_for_frames_words_and_features_of_the_backbone():
    need = head().context_need()
    assert (need.media.rate, need.media.frames_max, need.grid) == (1.0, 64, 2)
    assert need.question
    assert need.vision


def test_centred_features_are_what_a_video_does_not_show_throughout():
    features = {"kind": "backbone", "grid": 2}
    plain, made = head(), head(features={**features, "centred": True})
    given = context()
    states, mask = given.frames
    shown_throughout = torch.randn(3, 1, 4 * VISION, generator=torch.Generator().manual_seed(5))
    moved = Context(question=given.question, frames=Frames(states + shown_throughout, mask))

    def logits(of, seen):
        return of.eval()(slots(), seen).output.logits

    torch.testing.assert_close(logits(made, moved), logits(made, given), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(plain, moved), logits(plain, given), atol=1e-2)
    alone = Context(
        question=Words(given.question.states[1:2], given.question.mask[1:2]),
        frames=Frames(states[1:2, :5], mask[1:2, :5]),
    )
    of_one = made(slots()[1:2], alone).output.logits
    torch.testing.assert_close(of_one, logits(made, given)[:, 1:2], rtol=1e-5, atol=1e-5)


def test_the_size_of_the_towers_features_does_not_matter_unless_asked_for():
    """Else the place of a clip, two numbers from 0 to 1 beside them, is drowned by large ones."""
    features = {"kind": "backbone", "grid": 2}
    given = context()
    larger = Context(
        question=given.question, frames=Frames(given.frames.states * 20, given.frames.mask)
    )

    def logits(of, seen):
        return of.eval()(slots(), seen).output.logits

    made = head()
    torch.testing.assert_close(logits(made, larger), logits(made, given), rtol=1e-4, atol=1e-4)
    plain = head(features={**features, "normalise": False})
    assert not torch.allclose(logits(plain, larger), logits(plain, given), atol=1e-2)


def test_every_parameter_takes_part_when_idle_and_in_a_step():
    made = head()
    inputs = made.idle_inputs()
    output = made(inputs["slots"], inputs["context"]).output
    idle = sum(
        part.sum()
        for part in (*output[:5], output.dummies, output.global_tokens, *output.alignment[:6])
    )
    (idle * 0).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or p.grad.any()] == []
    made.zero_grad()
    targets = targets_of(made)
    terms = made.loss(made(slots(), context(targets=targets)), targets)
    sum(term.sum / max(term.count, 1) for term in terms.values()).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("term", [name for name in TERMS if name != "orthogonal_dummy"])
def test_every_loss_reaches_the_slot_or_is_about_the_video_alone(term):
    """The slot is a word of the query: only what has no query in it does not depend on it."""
    made = head()
    targets = targets_of(made)
    words = slots().requires_grad_()
    made.loss(made(words, context(targets=targets)), targets)[term].sum.backward()
    reached = words.grad is not None and bool(words.grad.any())
    assert reached == (term != "align_clips")


def test_counts_are_known_from_the_targets_alone():
    made = head()
    targets = targets_of(made)
    found = made.loss(made(slots(), context(targets=targets)), targets)
    assert {name: term.count for name, term in found.items()} == made.counts(targets)
    assert set(found) == set(TERMS)


def test_a_call_does_not_feel_the_other_calls_of_its_batch():
    made = head().eval()
    whole = context()
    together = made(slots(), whole)
    for row, (clips, words) in enumerate(zip((8, 5, 8), (4, 6, 2), strict=True)):
        alone = made(
            slots()[row : row + 1],
            Context(
                question=Words(*(part[row : row + 1, :words] for part in whole.question)),
                frames=Frames(*(part[row : row + 1, :clips] for part in whole.frames)),
            ),
        )
        assert torch.allclose(
            together.output.moments[:, row], alone.output.moments[:, 0], atol=1e-5
        )
        assert torch.allclose(together.output.logits[:, row], alone.output.logits[:, 0], atol=1e-5)
        assert torch.allclose(
            together.output.saliency[row, :clips], alone.output.saliency[0], atol=1e-5
        )


def test_moments_come_in_seconds_best_first_with_a_saliency_for_each_clip():
    made = head().eval()
    media = [VIDEO, MediaInfo("video", 64, 48, duration_s=2.5), VIDEO]
    found = made.decode(made(slots(), context()), media)
    for result, info, clips in zip(found, media, (8, 5, 8), strict=True):
        scores = [moment.score for moment in result.moments]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= m.start_s <= m.end_s <= info.duration_s for m in result.moments)
        assert len(result.moments) == 4
        assert len(result.saliency) == clips
        assert result.clip_s == pytest.approx(info.duration_s / clips)


def test_options_of_decoding_are_used():
    made = head(decode={"multiple_s": 2.0, "most": 1}).eval()
    for result in made.decode(made(slots(), context()), [VIDEO] * 3):
        (moment,) = result.moments
        assert moment.start_s % 2 == moment.end_s % 2 == 0


@pytest.mark.parametrize("make", [head, plain_head])
def test_the_right_result_is_what_was_annotated(make):
    made = make()
    call = seen()
    right = {"moments_s": [[1.0, 4.0], [6.0, 7.0]], "saliency": [0, 1, 1, 0.5, 0, 0, 1, 0]}
    expected = made.result_of(made.read_target(right, call), VIDEO)
    found = [(m.start_s, m.end_s, m.score) for m in expected.moments]
    assert found == [pytest.approx((1, 4, 1)), pytest.approx((6, 7, 1))]
    assert expected.saliency == pytest.approx((0, 1, 1, 0.5, 0, 0, 1, 0), abs=0.01)
    assert expected.clip_s == 1.0


@pytest.mark.parametrize("make", [head, plain_head])
def test_a_target_needs_a_video(make):
    picture = MediaInfo("image", 64, 48)
    with pytest.raises(DataError, match=r"clips/a.mp4: moments are found in a video, .* an image"):
        make().read_target({"moments_s": [[1.0, 4.0]]}, seen(info=picture))
    with pytest.raises(DataError, match=r"clips/b: moments are found in a video, .* no medium"):
        make().read_target({"moments_s": [[1.0, 4.0]]}, Seen("clips/b"))


def test_an_empty_question_is_refused():
    with pytest.raises(DataError, match=r"clips/a.mp4: the question is empty; it must say what"):
        head().prepare(seen(question="  "))


def test_a_backbone_without_features_of_frames_is_refused_with_what_to_choose():
    with pytest.raises(UsageError, match=r"no features of single frames; .* encoder or files"):
        TemporalHead(TemporalOptions(**SMALL), Host(HIDDEN, vision=0))


def test_features_can_come_from_files(tmp_path):
    """Words are then hidden states of the LLM, or, with files of text, those files'."""
    random = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", features=random.normal(size=(4, 6)).astype(np.float32))
    files = {"kind": "files", "video": [{"folder": ".", "width": 6, "clip_s": 2.0}]}
    chosen = TemporalOptions(**SMALL, features=files)
    made = TemporalHead(chosen, Host(HIDDEN, VISION, tmp_path)).eval()
    need = made.context_need()
    assert (need.media, need.vision, need.question) == (None, False, True)
    call = seen()
    prepared = made.prepare(call)
    there = Context(
        prepared=made.collate_prepared([prepared]),
        question=Words(torch.randn(1, 3, HIDDEN), torch.ones(1, 3, dtype=torch.bool)),
    )
    (found,) = made.decode(made(slots(1), there), [VIDEO])
    assert len(found.saliency) == 4
    assert found.clip_s == 2.0
    inputs = made.idle_inputs()
    made(inputs["slots"], inputs["context"])


def test_the_head_works_with_bfloat16_weights():
    made = head().to(torch.bfloat16)
    targets = targets_of(made)
    there = context(targets=targets)
    there = there._replace(
        question=Words(there.question.states.bfloat16(), there.question.mask),
        frames=Frames(there.frames.states.bfloat16(), there.frames.mask),
    )
    prediction = made(slots().bfloat16(), there)
    terms = made.loss(prediction, targets)
    assert all(bool(term.sum.isfinite()) for term in terms.values())
    assert {term.sum.dtype for term in terms.values()} == {torch.float32}


# ---- the plain head ----


def test_a_perfect_moment_costs_nothing():
    made = plain_head()
    prediction = made(slots())
    terms = made.loss(prediction, prediction.detach())
    assert {name: round(term.sum.item(), 5) for name, term in terms.items()} == {
        "moment_l1": 0.0,
        "moment_giou": 0.0,
    }


def test_no_call_costs_nothing_and_has_a_graph():
    made = plain_head()
    terms = made.loss(made(slots()[:0]), made.collate([]))
    assert all(term.sum == 0 and term.sum.requires_grad for term in terms.values())


def test_the_first_of_several_moments_is_learnt():
    made = plain_head()
    target = made.read_target({"moments_s": [[1.0, 4.0], [6.0, 7.0]]}, seen())
    assert isinstance(target, TemporalTarget)
    assert made.collate([target]).tolist() == [pytest.approx([2.5 / 8, 3 / 8])]


def test_the_plain_head_gives_one_sure_moment_without_saliency():
    made = plain_head()
    (found, *_) = made.decode(made(slots()), [VIDEO] * 3)
    (moment,) = found.moments
    assert moment.score == pytest.approx(1.0)
    assert found.saliency == ()
