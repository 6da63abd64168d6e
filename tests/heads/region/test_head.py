"""The region head: parity with the release, laws of its losses, reading and decoding boxes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tpokit import Box, DataError, Host, MediaInfo, Seen, TpokitError
from tpokit_region.head import RegionHead
from tpokit_region.options import RegionOptions

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "region" / "box_head.safetensors")
TOLERANCE = 5e-5  # why: tests/golden/region/README.md
WIDTH = 8
IMAGE = MediaInfo("image", 640, 480)


def head(width=WIDTH, **options):
    return RegionHead(RegionOptions(**options), Host(width))


def released_head(**options):
    """Our head with the weights of the golden run."""
    made = head(64, **options)
    state = {
        name.removeprefix("weights.").replace("loc_", "box_"): value
        for name, value in GOLDEN.items()
        if name.startswith("weights.")
    }
    made.load_state_dict(state, strict=True)
    return made


def combined(terms):
    """The release's box loss from our terms: 2 L1 + GIoU / 5."""
    return 2 * terms["l1"].sum / terms["l1"].count + 0.2 * terms["giou"].sum / terms["giou"].count


# ---- parity with the release ----


def test_boxes_and_loss_of_the_release_are_met():
    made = released_head()
    boxes = made(GOLDEN["region.last_hidden_at_boxes"][:, None])
    terms = made.loss(boxes, GOLDEN["region.target_boxes"])
    assert torch.allclose(boxes, GOLDEN["region.pred_boxes"], atol=TOLERANCE)
    for name, golden in (("l1", "region.l1"), ("giou", "region.giou_loss")):
        assert terms[name].sum.item() / terms[name].count == pytest.approx(
            float(GOLDEN[golden]), abs=TOLERANCE
        )
    assert combined(terms).item() == pytest.approx(float(GOLDEN["region.loss_box"]), abs=TOLERANCE)


def test_gradients_of_the_release_are_met():
    made = released_head()
    boxes = made(GOLDEN["region.last_hidden_at_boxes"][:, None])
    combined(made.loss(boxes, GOLDEN["region.target_boxes"])).backward()
    for parameter, golden in (
        (made.box_decoder[0].weight, "region.grad.loc_decoder.0.weight"),
        (made.box_decoder[2].bias, "region.grad.loc_decoder.2.bias"),
    ):
        expected = GOLDEN[golden]
        assert (parameter.grad - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_a_given_box_is_encoded_as_in_the_release():
    embedding = released_head().encode_given(GOLDEN["track.input_box"])
    assert torch.allclose(embedding, GOLDEN["track.embedding_at_track_box"], atol=TOLERANCE)


def test_the_loss_over_proper_boxes_is_that_of_the_release():
    made = head(giou_over="proper")
    for case in ("", "all_invalid_"):
        terms = made.loss(GOLDEN[f"boxloss.{case}pred"], GOLDEN[f"boxloss.{case}target"])
        expected = float(GOLDEN[f"boxloss.{case}value"])
        assert combined(terms).item() == pytest.approx(expected, abs=TOLERANCE)


def test_by_default_a_swapped_box_costs_nothing_in_giou_but_counts():
    made, proper = head(), head(giou_over="proper")
    boxes, targets = GOLDEN["boxloss.pred"], GOLDEN["boxloss.target"]  # one of four is swapped
    ours, released = made.loss(boxes, targets)["giou"], proper.loss(boxes, targets)["giou"]
    assert ours.count == released.count == 4
    assert ours.sum.item() == pytest.approx(released.sum.item() * 3 / 4)
    alone = made.loss(GOLDEN["boxloss.all_invalid_pred"], GOLDEN["boxloss.all_invalid_target"])
    assert alone["giou"].sum.item() == 0


# ---- laws of the losses ----


@pytest.mark.parametrize("box_format", ["corners", "centre"])
def test_a_perfect_box_costs_nothing(box_format):
    made = head(format=box_format)
    boxes = made(torch.randn(3, 1, WIDTH))
    terms = made.loss(boxes, boxes.detach())
    assert {name: round(term.sum.item(), 6) for name, term in terms.items()} == {
        "l1": 0,
        "mse": 0,
        "giou": 0,
    }


@pytest.mark.parametrize("giou_over", ["all", "proper"])
def test_no_call_costs_nothing_and_keeps_its_graph(giou_over):
    made = head(giou_over=giou_over)
    targets = made.collate([])
    terms = made.loss(made(torch.zeros(0, 1, WIDTH)), targets)
    assert tuple(terms) == made.terms
    for term in terms.values():
        assert term.sum.item() == 0
        assert term.sum.requires_grad
        assert term.count == 0
    sum(term.sum for term in terms.values()).backward()
    assert all(p.grad is None or not p.grad.any() for p in made.parameters())


def test_hand_computed_terms():
    terms = head().loss(torch.tensor([[0.0, 0, 0.5, 1.0]]), torch.tensor([[0.0, 0, 1.0, 1.0]]))
    assert terms["l1"].sum.item() == pytest.approx(0.5 / 4)
    assert terms["mse"].sum.item() == pytest.approx(0.25 / 4)
    assert terms["giou"].sum.item() == pytest.approx(0.5)


def test_counts_follow_from_the_targets_alone():
    made = head()
    targets = made.collate([(0.1, 0.1, 0.2, 0.2), (0.3, 0.3, 0.9, 0.9)])
    assert targets.shape == (2, 4)
    assert made.counts(targets) == {"l1": 2, "mse": 2, "giou": 2}
    assert made.counts(made.collate([])) == {"l1": 0, "mse": 0, "giou": 0}


def test_a_batch_costs_the_sum_of_its_calls():
    made = head()
    slots, targets = torch.randn(4, 1, WIDTH), torch.rand(4, 2, 2).sort(1).values.flatten(1)
    whole = made.loss(made(slots), targets)
    for name, term in whole.items():
        parts = [made.loss(made(slots[i : i + 1]), targets[i : i + 1])[name].sum for i in range(4)]
        assert term.sum.item() == pytest.approx(sum(parts).item(), abs=1e-6)


@pytest.mark.parametrize("box_format", ["corners", "centre"])
@pytest.mark.parametrize("with_autocast", [True, False])
def test_losses_are_float32_under_bf16(box_format, with_autocast):
    made = head(format=box_format).bfloat16()
    slots = torch.randn(3, 1, WIDTH).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=with_autocast):
        boxes = made(slots)
        terms = made.loss(boxes, torch.rand(3, 4))
        assert made.encode_given(torch.rand(2, 4)).shape == (2, WIDTH)
    assert boxes.dtype == torch.float32
    assert (boxes != boxes.bfloat16().float()).any()  # finer than bf16 could say
    assert {term.sum.dtype for term in terms.values()} == {torch.float32}
    sum(term.sum for term in terms.values()).backward()
    assert slots.grad.dtype == torch.bfloat16
    assert {p.grad.dtype for p in made.box_decoder.parameters()} == {torch.bfloat16}


def test_every_parameter_takes_part_when_idle():
    made = head()
    inputs = made.idle_inputs()
    idle = made(inputs["slots"], inputs["context"]).sum() + made.encode_given(inputs["given"]).sum()
    (idle * 0).backward()
    assert all(p.grad is not None and not p.grad.any() for p in made.parameters())


def test_without_given_there_is_no_encoder_and_no_given_token():
    made = head(given=False)
    assert made.tokens.given is None
    assert made.tokens.trigger == RegionHead.tokens.trigger
    assert "given" not in made.idle_inputs()
    assert not [name for name, _ in made.named_parameters() if name.startswith("box_encoder")]
    with pytest.raises(DataError, match="s1: task 'region' takes nothing given"):
        made.read_given([0.1, 0.1, 0.2, 0.2], Seen("s1"))
    assert RegionHead.tokens.given is not None  # other heads keep theirs


def test_a_fresh_head_starts_from_a_box_in_the_middle_in_both_formats():
    for box_format in ("corners", "centre"):
        boxes = head(format=box_format, width=64)(torch.zeros(1, 1, 64))
        assert (boxes - torch.tensor([0.25, 0.25, 0.75, 0.75])).abs().max() < 0.25


@given(st.lists(st.floats(-100, 100, width=32), min_size=WIDTH, max_size=WIDTH))
def test_boxes_by_their_centre_are_never_swapped(values):
    boxes = head(format="centre")(torch.tensor(values)[None, None])
    assert (boxes[:, 2:] >= boxes[:, :2]).all()


def test_the_hidden_width_is_half_the_backbones_or_as_asked():
    assert head(64).box_decoder[0].out_features == 32
    assert head(64, hidden=5).box_decoder[0].out_features == 5


# ---- reading ----


@pytest.mark.parametrize(
    "annotation",
    [
        [0.1, 0.2, 0.5, 0.6],
        (0.1, 0.2, 0.5, 0.6),
        {"box": [0.1, 0.2, 0.5, 0.6]},
        np.array([0.1, 0.2, 0.5, 0.6]),
    ],
)
def test_a_box_is_read_from_every_plain_form(annotation):
    assert head().read_target(annotation, Seen("s1")) == (0.1, 0.2, 0.5, 0.6)
    assert head().read_given(annotation, Seen("s1")) == (0.1, 0.2, 0.5, 0.6)


def test_what_sticks_out_by_the_tolerance_is_clamped():
    assert head().read_target([-0.005, 0, 1.005, 1], Seen("s1")) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ([0.1, 0.2, 0.5], r"\[0.1, 0.2, 0.5\] is no box; a box is four numbers x0, y0, x1, y1"),
        ("0.1 0.2 0.5 0.6", "is no box"),
        (None, "None is no box"),
        (0.5, "0.5 is no box"),
        ({"bbox": [0, 0, 1, 1]}, "has no 'box'"),
        ([0.1, 0.2, "0.5", 0.6], "x1 of the box .* is not a finite number"),
        ([0.1, True, 0.5, 0.6], "y0 of the box .* is not a finite number"),
        ([0.1, 0.2, 0.5, float("nan")], "y1 of the box .* is not a finite number"),
        ([float("inf"), 0.2, 0.5, 0.6], "x0 of the box .* is not a finite number"),
        (
            [0.8, 0.2, 0.5, 0.6],
            "swapped: x0 = 0.8 is larger than x1 = 0.5; the left one comes first",
        ),
        (
            [0.1, 0.7, 0.5, 0.6],
            "swapped: y0 = 0.7 is larger than y1 = 0.6; the top one comes first",
        ),
        ([0.1, 0.2, 0.1, 0.6], r"\[0.1, 0.2, 0.1, 0.6\] is empty: its width is 0"),
        ([0.1, 0.2, 0.5, 0.2], "is empty: its height is 0; it needs x0 < x1 and y0 < y1"),
        ([1.0, 0.2, 1.004, 0.6], "is empty: its width is 0"),
        ([0.1, 0.2, 1.01, 0.6], r"leaves the image: x1 = 1.01, but .* in \[0, 1\]$"),
        ([-0.1, 0.2, 0.5, 0.6], "leaves the image: x0 = -0.1"),
        ([10, 20, 110, 70], "are these pixels\\? divide by width and height"),
    ],
)
def test_a_wrong_box_is_refused_with_the_reason(annotation, message):
    for read in (head().read_target, head().read_given):
        with pytest.raises(DataError, match=message) as caught:
            read(annotation, Seen("cups/a1"))
        assert str(caught.value).startswith("cups/a1: ")


# ---- results ----


def test_boxes_are_decoded_in_pixels_of_their_own_image():
    found = head().decode(
        torch.tensor([[0.25, 0.5, 0.75, 1.0], [0.1, 0.2, 0.3, 0.4]]),
        [IMAGE, MediaInfo("video", 100, 10, 5.0)],
    )
    assert found[0] == Box(160, 240, 480, 480)
    assert [round(v, 4) for v in (found[1].x0, found[1].y0, found[1].x1, found[1].y1)] == [
        10,
        2,
        30,
        4,
    ]


def test_decoded_corners_are_ordered_and_inside_the_image():
    assert head().decode(torch.tensor([[0.75, 1.2, 0.25, -0.1]]), [IMAGE]) == [
        Box(160, 0, 480, 480)
    ]


def test_no_call_gives_no_box():
    assert head().decode(torch.zeros(0, 4), []) == []


def test_a_box_that_is_not_finite_is_an_error():
    with pytest.raises(TpokitError, match="gave a box that is not finite"):
        head().decode(torch.tensor([[0.1, float("nan"), 0.5, 0.6]]), [IMAGE])


@pytest.mark.parametrize("box_format", ["corners", "centre"])
def test_the_right_result_is_the_target_in_pixels(box_format):
    made = head(format=box_format)
    target = made.read_target([0.25, 0.5, 0.75, 1.0], Seen("s1"))
    assert made.result_of(target, IMAGE) == Box(160, 240, 480, 480)
