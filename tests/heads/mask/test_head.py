"""The mask head as the core uses it: training, inference, idle, and what of SAM 2 is whose."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import tpokit
from tests.heads.mask import tiny_head
from tests.heads.mask.tiny_head import (
    ask,
    clip,
    image,
    make_head,
    seen_by,
    slots,
    total,
    train_step,
)
from tpokit.batch import tensors_in
from tpokit.errors import CheckpointError, DataError, TpokitError
from tpokit.types import Context, MediaInfo, Seen
from tpokit_mask.losses.weights import BOX_TERMS, MASK_TERMS
from tpokit_mask.options import MaskOptions
from tpokit_mask.sam2_port import Sam2


@pytest.fixture
def samples(tmp_path):
    """Two pictures and two clips of different length, one with an object that goes away."""
    return [
        image(tmp_path),
        clip(tmp_path, 4, gone=2),
        image(tmp_path, 9),
        clip(tmp_path, 3, shift=5),
    ]


def gradients(head):
    return {name: p.grad for name, p in head.named_parameters() if p.grad is not None}


# ---- training ----


def test_losses_of_masks_reach_the_slots_and_leave_sam2_alone(tmp_path, samples):
    head, states = make_head(tmp_path), slots(4)
    terms = train_step(head, samples, states)
    assert set(terms) == set(head.terms)
    for name in MASK_TERMS:
        (grad,) = torch.autograd.grad(terms[name].sum, states, retain_graph=True)
        assert (grad.flatten(1).norm(dim=1) > 0).all(), name
    assert not any(parameter.requires_grad for parameter in head.sam2.parameters())
    names = {name.split(".")[0] for name in head.state_dict()}
    assert names == {"adapter", "box_decoder", "box_encoder"}


def test_samples_side_by_side_are_as_one_by_one(tmp_path, samples):
    """Pictures and clips, long and short, in one batch: the same losses and gradients."""
    head, states = make_head(tmp_path), slots(4)
    together = train_step(head, samples, states)
    total(together).backward()
    side_by_side = {name: grad.clone() for name, grad in gradients(head).items()}
    head.zero_grad()
    alone = [train_step(head, [s], states.detach()[i : i + 1]) for i, s in enumerate(samples)]
    sum(total(terms) for terms in alone).backward()
    for name, term in together.items():
        torch.testing.assert_close(term.sum, sum(terms[name].sum for terms in alone))
    for name, grad in gradients(head).items():
        torch.testing.assert_close(side_by_side[name], grad, atol=2e-5, rtol=1e-4)


def test_images_that_a_cpu_takes_one_by_one_are_as_side_by_side(tmp_path, samples, monkeypatch):
    """Which it does with large ones."""
    head, (together, apart) = make_head(tmp_path), (slots(4), slots(4))
    total(train_step(head, samples, together)).backward()
    monkeypatch.setattr(Sam2, "frames_at_once", 1)
    total(train_step(head, samples, apart)).backward()
    torch.testing.assert_close(apart.grad, together.grad, atol=2e-5, rtol=1e-4)


def test_counts_follow_from_the_targets(tmp_path, samples):
    head = make_head(tmp_path)
    media, _ = samples[1]
    unknown = (media, {"frames": [{"time_s": 0.0, "box": [0.1, 0.1, 0.5, 0.5]}]})
    nowhere = (media, {"frames": [{"time_s": 0.0, "mask": None}]})
    wanted = [*samples, unknown, nowhere]
    found = [head.read_target(truth, seen_by(head, medium)) for medium, truth in wanted]
    counts = head.counts(head.collate(found))
    assert {counts[name] for name in MASK_TERMS} == {5.0}  # one has no mask at all
    assert {counts[name] for name in BOX_TERMS} == {5.0}  # one is nowhere to be seen
    terms = train_step(head, wanted, slots(6))
    assert {name: term.count for name, term in terms.items()} == counts


def test_an_absent_object_costs_its_score_alone(tmp_path, samples):
    head = make_head(tmp_path)
    terms = train_step(head, [(samples[0][0], {"mask": None})], slots(1))
    costs = {name for name, term in terms.items() if float(term.sum.detach()) != 0}
    assert costs == {"object_score"}


def test_a_track_of_boxes_teaches_boxes_alone(tmp_path, samples):
    """Were its absent frames to teach the object score, nothing would say the opposite."""
    head, (media, _) = make_head(tmp_path), samples[1]
    boxes = [{"time_s": k / 4, "box": [0.1, 0.1, 0.5, 0.5] if k else None} for k in range(4)]
    terms = train_step(head, [(media, {"frames": boxes})], slots(1))
    costs = {name for name, term in terms.items() if float(term.sum.detach()) != 0}
    assert costs == set(BOX_TERMS)


def test_masks_on_no_frame_that_is_trained_on_are_an_error(tmp_path, samples):
    head, (media, truth) = make_head(tmp_path), samples[1]
    late = {"frames": [{**truth["frames"][0], "time_s": 0.1}]}
    with pytest.raises(
        DataError, match=r"data/1: none of the annotated frames, from 0\.1 to 0\.1 s"
    ):
        head.read_target(late, seen_by(head, media))


def test_calls_about_one_medium_share_its_frames(tmp_path, samples, monkeypatch):
    head, encoded = make_head(tmp_path), []
    encode = Sam2.encode
    monkeypatch.setattr(
        Sam2,
        "encode",
        lambda self, images, *more: encoded.append(len(images)) or encode(self, images, *more),
    )
    train_step(head, [samples[1], samples[1], samples[0]], slots(3))
    assert encoded == [5]


def test_from_the_box_alone_no_frame_is_looked_at(tmp_path, samples, monkeypatch):
    monkeypatch.setattr(Sam2, "encode", None)
    monkeypatch.setattr(tiny_head, "read_media", None)
    head, states = make_head(tmp_path, learn="box"), slots(2)
    assert head.context_need().media is None
    assert head.context_need().looks
    terms = train_step(head, samples[:2], states)
    total(terms).backward()
    assert states.grad.norm() > 0
    assert all(float(terms[name].sum.detach()) == 0 for name in MASK_TERMS)
    assert all(terms[name].count == 2 for name in BOX_TERMS)


def test_with_another_number_of_tokens_there_is_no_box_to_compare_them_with(tmp_path, samples):
    for options in ({"adapter": "linear"}, {"slots": 2}):
        head = make_head(tmp_path, **options)
        states = slots(1).expand(1, len(head.tokens.slots), -1)
        terms = train_step(head, samples[:1], states)
        assert float(terms["box_tokens"].sum.detach()) == 0
        assert float(terms["focal"].sum.detach()) > 0
    assert head.tokens.slots == ("<tracking>", "<tracking_1>")


@pytest.mark.parametrize("trained", ["decoder", "everything"])
def test_every_parameter_takes_part_in_every_step(tmp_path, samples, trained):
    """Be it of pictures, of clips or idle: else ranks would disagree."""
    head = make_head(tmp_path, sam2={"trained": trained})
    idle = head.idle_inputs()
    steps = {
        "pictures": lambda: total(train_step(head, samples[:1], slots(1))),
        "clips": lambda: total(train_step(head, samples[1:2], slots(1))),
        "idle": lambda: _idle_total(head, idle),
    }
    for name, step in steps.items():
        head.zero_grad()
        (step() + head.encode_given(idle["given"]).sum() * 0).backward()
        missing = {n for n, p in head.named_parameters() if p.requires_grad and p.grad is None}
        assert not missing, name
    assert {name for name, grad in gradients(head).items() if grad.abs().max() > 0} == set()


def _idle_total(head, idle):
    found = head(idle["slots"], idle["context"])
    return sum((tensor.sum() * 0 for tensor in tensors_in(found)), torch.zeros(()))


def test_an_idle_head_runs_no_frozen_network(tmp_path, monkeypatch):
    head = make_head(tmp_path)
    monkeypatch.setattr(Sam2, "encode", None)
    monkeypatch.setattr(Sam2, "decode", None)
    idle = head.idle_inputs()
    found = head(idle["slots"], idle["context"])
    assert found.tokens.shape == (1, 3, 48)
    decoder = make_head(tmp_path, sam2={"trained": "decoder"})
    idle = decoder.idle_inputs()
    monkeypatch.undo()
    monkeypatch.setattr(decoder.sam2.model.image_encoder, "forward", None)
    assert decoder(idle["slots"], idle["context"]).groups  # its decoder, without any picture


def test_what_of_sam2_learns_is_saved_with_the_head_and_nothing_else(tmp_path):
    sizes = {
        what: sum(
            p.numel()
            for p in make_head(tmp_path, sam2={"trained": what}).trained_parts.parameters()
        )
        for what in ("nothing", "decoder", "everything")
    }
    assert sizes["nothing"] == 0 < sizes["decoder"] < sizes["everything"]
    head, other = (make_head(tmp_path, sam2={"trained": "decoder"}) for _ in range(2))
    with torch.no_grad():
        next(head.trained_parts.parameters()).add_(1.0)
    other.load_state_dict(head.state_dict())
    ours, theirs = (h.sam2.model.sam_mask_decoder.state_dict() for h in (head, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("trained", ["nothing", "decoder", "everything"])
def test_a_head_that_is_cast_trains_and_answers_in_float32(tmp_path, samples, trained):
    """As an engine casts what it trains; SAM 2 itself cannot run with cast weights."""
    plain = total(train_step(make_head(tmp_path, sam2={"trained": trained}), samples, slots(4)))
    head = make_head(tmp_path, sam2={"trained": trained}).to(torch.bfloat16)
    assert {p.dtype for p in head.parameters()} == {torch.bfloat16}
    loss = total(train_step(head, samples, slots(4).to(torch.bfloat16)))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=0.1, atol=0)
    loss.backward()
    assert all(grad.isfinite().all() for grad in gradients(head).values())
    assert all(p.grad is not None for p in head.trained_parts.parameters())
    assert len(ask(head, [samples[1][0]], slots(1).to(torch.bfloat16))[0].frames) == 4


def test_it_trains_under_bf16_autocast_and_agrees_with_float32(tmp_path, samples):
    """The bound: terms within 5 %, the direction of the gradient within 0.98 of its cosine."""
    head, states = make_head(tmp_path), slots(4)
    plain = train_step(head, samples, states)
    (full,) = torch.autograd.grad(total(plain), states)
    with torch.autocast("cpu", torch.bfloat16):
        short = train_step(head, samples, states)
    (half,) = torch.autograd.grad(total(short), states)
    for name, term in plain.items():
        torch.testing.assert_close(short[name].sum, term.sum, rtol=0.05, atol=0.05, msg=name)
    assert torch.cosine_similarity(full.flatten(), half.flatten(), dim=0) > 0.98


# ---- kept features ----


def test_kept_features_spare_decoding_and_encoding_and_change_nothing(
    tmp_path, samples, monkeypatch
):
    head = make_head(tmp_path, sam2={"cache": "features"})
    media = [medium for medium, _ in samples]
    assert all(head.wants_frames(medium) for medium in media)
    first = train_step(head, samples, slots(4))
    assert not any(head.wants_frames(medium) for medium in media)
    encoded = []
    encoder = head.sam2.model.image_encoder
    monkeypatch.setattr(encoder, "forward", lambda *_: encoded.append(1))
    again = train_step(head, samples, slots(4))
    assert not encoded
    for name, term in first.items():
        torch.testing.assert_close(again[name].sum, term.sum)
    plain = train_step(make_head(tmp_path), samples, slots(4))
    for name, term in plain.items():  # float16
        torch.testing.assert_close(again[name].sum, term.sum, rtol=2e-2, atol=2e-3, msg=name)


def test_kept_and_new_frames_go_together_and_a_broken_file_counts_as_none(tmp_path, samples):
    head = make_head(tmp_path, sam2={"cache": "features"})
    train_step(head, samples[:2], slots(2))
    mixed = train_step(head, samples, slots(4))
    kept = train_step(head, samples, slots(4))
    for name, term in mixed.items():
        torch.testing.assert_close(kept[name].sum, term.sum)
    for path in (tmp_path / "features").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-50])
    assert all(head.wants_frames(medium) for medium, _ in samples)


def test_features_are_found_under_autocast_as_without(tmp_path, samples):
    head = make_head(tmp_path, sam2={"cache": "features"})
    with torch.autocast("cpu", torch.bfloat16):
        train_step(head, samples, slots(4))
        found = train_step(head, samples, slots(4))
    assert all(term.sum.isfinite() for term in found.values())
    kept = train_step(head, samples, slots(4))
    plain = train_step(make_head(tmp_path), samples, slots(4))
    for name, term in plain.items():  # what was kept is none the coarser for it
        torch.testing.assert_close(kept[name].sum, term.sum, rtol=2e-2, atol=2e-3, msg=name)


def test_features_of_the_first_medium_are_found_whatever_follows_it(tmp_path, samples):
    head = make_head(tmp_path, sam2={"cache": "features"})
    train_step(head, samples, slots(4))
    media = tuple(medium for medium, _ in samples)
    assert not any(head.wants_frames(medium) for medium in media)  # as for one sample with all
    seen = Seen("data/1", "", media, tuple(MediaInfo(m.kind, 96, 72) for m in media))
    assert head.prepare(seen).kept is not None
    head.eval()  # what comes now is inference, where nothing is looked up
    assert head.prepare(seen).kept is None
    assert head.prepare(seen).view is None


def test_learning_without_frames_is_an_error_and_not_silence(tmp_path, samples):
    head = make_head(tmp_path)
    targets = head.collate([head.read_target(samples[0][1], seen_by(head, samples[0][0]))])
    seen = Seen("data/1", "", (samples[0][0],), (MediaInfo("image", 96, 72),))
    unread = head.collate_prepared([head.prepare(seen)])
    with pytest.raises(TpokitError, match="no frame was read for it"):
        head(slots(1), Context(prepared=unread, targets=targets))


def test_features_are_kept_for_one_network_and_choice_of_frames(tmp_path, samples):
    train_step(make_head(tmp_path, sam2={"cache": "features"}), samples[:2], slots(2))
    for options in (
        {"frames": 3},
        {"sam2": {"cache": "features", "image_size": 96}},
        {"sam2": {"cache": "features", "trained": "decoder"}},
    ):
        head = make_head(tmp_path, **{"sam2": {"cache": "features"}, **options})
        assert all(head.wants_frames(medium) for medium, _ in samples[:2])


# ---- inference ----


def test_in_inference_every_frame_is_followed_whatever_goes_beside_it(tmp_path, samples):
    head = make_head(tmp_path)
    media = [medium for medium, _ in samples]
    together = ask(head, media, slots(4))
    assert [(track.kind, len(track.frames)) for track in together] == [
        ("image", 1),
        ("video", 4),
        ("image", 1),
        ("video", 3),
    ]
    assert [frame.time_s for frame in together[1].frames] == [0.0, 0.25, 0.5, 0.75]
    assert {(track.height_px, track.width_px) for track in together} == {(72, 96)}
    one_at_a_time = make_head(tmp_path, sam2={"encode_batch": 1}, tracking={"videos_at_once": 1})
    for index, medium in enumerate(media):
        (alone,) = ask(one_at_a_time, [medium], slots(4)[index : index + 1])
        assert np.array_equal(alone.masks(), together[index].masks())


def test_fewer_frames_a_second_begin_with_the_first_one(tmp_path, samples):
    head = make_head(tmp_path, tracking={"rate": 2.0})
    media, _ = samples[1]
    (found,) = ask(head, [media], slots(1))
    assert [frame.time_s for frame in found.frames] == [0.0, 0.5]


def test_it_answers_as_it_was_taught(tmp_path, samples):
    """Training and inference make the same masks of the same frames."""
    head = make_head(tmp_path, tracking={"gated_loss": True})
    media, _ = samples[1]
    seen = seen_by(head, media)
    targets = head.collate([head.read_target(samples[1][1], seen)])
    prepared = head.collate_prepared([seen.prepared])
    with torch.no_grad():
        groups = head.eval()(slots(1), Context(prepared=prepared, targets=targets)).groups
    (track,) = ask(head, [media], slots(1))
    scores = torch.cat([group.decoded.scores[0] for group in groups])
    assert torch.allclose(
        scores.sigmoid(), torch.tensor([frame.score for frame in track.frames]), atol=1e-5
    )


def test_the_right_result_is_every_annotated_frame(tmp_path, samples):
    head = make_head(tmp_path)
    media, truth = samples[1]
    seen = Seen("data/1", "", (media,), (MediaInfo("video", 96, 72, 1.0),))
    track = head.result_of(head.read_target(truth, seen), seen.info[0])
    assert [frame.box is not None for frame in track.frames] == [True, True, False, False]
    assert np.array_equal(track.mask(0), tiny_head.disc(0))


def test_a_given_box_becomes_an_embedding(tmp_path):
    head = make_head(tmp_path)
    assert head.tokens.given == "<track_box>"
    boxes = head.collate_given([head.read_given([0.1, 0.2, 0.3, 0.4], Seen("data/1"))])
    assert head.encode_given(boxes).shape == (1, tiny_head.HIDDEN)
    without = make_head(tmp_path, given=False)
    assert without.tokens.given is None
    with pytest.raises(DataError, match="takes nothing given"):
        without.read_given([0.1, 0.2, 0.3, 0.4], Seen("data/1"))


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "sam2.1_hiera_tinny"}, "no SAM 2 of size 'sam2.1_hiera_tinny'"),
        ({"size": {"width": 50}}, "width must be a multiple of 16"),
        ({"size": {"widht": 48}}, "widht"),
        ({"checkpoint": "random", "cache": "here"}, "not worth keeping"),
        ({"trained": "everything", "cache": "here"}, "the image encoder learns"),
        ({"trained": "all"}, "Input should be"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        MaskOptions(sam2={"checkpoint": "some.pt", **options})


@pytest.mark.parametrize(
    ("options", "trained", "message"),
    [
        ({"learn": "box"}, "decoder", "learn: box runs no SAM 2"),
        ({"learn": "box", "adapter": "linear"}, "nothing", "slots and adapter make 1"),
        ({"frames": 4, "tracking": {"prompted": 4}}, "everything", "memory learns nothing"),
        ({"frames": 4, "tracking": {"said_frames": 3}}, "nothing", "at least frames = 4"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, trained, message):
    with pytest.raises(ValidationError, match=message):
        MaskOptions(sam2={"checkpoint": "some.pt", "trained": trained}, **options)


def test_weights_that_are_not_there_or_of_another_size_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no file .*missing\.pt"):
        make_head(tmp_path, sam2={"checkpoint": "missing.pt"})
    with pytest.raises(CheckpointError, match=r"looks like a SAM 2\.1 of its own size"):
        make_head(tmp_path, sam2={"size": "sam2.1_hiera_tiny"})
    with pytest.raises(tpokit.UsageError, match="the package 'nobody' is not installed"):
        make_head(tmp_path, sam2={"checkpoint": "package://nobody/base/sam2.safetensors"})
    with pytest.raises(tpokit.UsageError, match="must be package://PACKAGE/FOLDER/FILE"):
        make_head(tmp_path, sam2={"checkpoint": "package://nobody"})


def test_a_call_about_nothing_to_look_at_is_refused(tmp_path):
    head = make_head(tmp_path)
    with pytest.raises(DataError, match="found in an image or a video, there is none"):
        head.prepare(Seen("data/1"))
    with pytest.raises(DataError, match="found in an image or a video, there is none"):
        head.read_target({"mask": None}, Seen("data/1"))


def test_a_mask_of_another_size_than_its_medium_is_refused(tmp_path, samples):
    head = make_head(tmp_path)
    media, _ = samples[0]
    wrong = {"mask": {"rle": {"size": [10, 10], "counts": [100]}}}
    with pytest.raises(DataError, match="data/1"):
        head.read_target(wrong, seen_by(head, media))


def test_a_prompt_that_is_not_finite_is_named(tmp_path, samples):
    head = make_head(tmp_path)
    with pytest.raises(TpokitError, match="a prompt that is not finite"):
        ask(head, [samples[0][0]], slots(1).detach() * float("nan"))
