"""Rules of the region head for the released VideoChat-TPO."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tpokit import CheckpointError, Host, TokenTable, UsageError
from tpokit_region.head import RegionHead
from tpokit_region.options import RegionOptions
from tpokit_region.released_weights import RegionReleasedWeights

GOLDEN = {
    name.removeprefix("weights."): tensor
    for name, tensor in load_file(
        Path(__file__).parents[2] / "golden" / "region" / "box_head.safetensors"
    ).items()
    if name.startswith("weights.")
}
SHAPES = {name: tuple(tensor.shape) for name, tensor in GOLDEN.items()}
NO_TOKENS = TokenTable(50, {}, {})


def rules_of(head=None, **options):
    made = head or RegionHead(RegionOptions(**{"given": False, **options}), Host(64))
    return RegionReleasedWeights.from_model(made)


def test_published_weights_fill_a_head_of_the_options():
    rules = RegionReleasedWeights.from_published(SHAPES)
    assert rules.options() == {"format": "corners", "hidden": 32, "given": False}
    head = RegionHead(RegionOptions(**rules.options()), Host(64))
    state = {
        place.ours.removeprefix("heads.region."): GOLDEN[tensor.name]
        for tensor in rules.tensors(NO_TOKENS)
        for place in tensor.places
    }
    head.load_state_dict(state, strict=True)
    assert torch.equal(head.box_decoder[2].bias, GOLDEN["loc_decoder.2.bias"])


def test_the_encoder_of_given_boxes_is_left_to_the_mask_task():
    tensors = list(RegionReleasedWeights.from_published(SHAPES).tensors(NO_TOKENS))
    assert {tensor.name for tensor in tensors} == {
        name for name in SHAPES if name.startswith("loc_decoder.")
    }
    assert all(tensor.shape == SHAPES[tensor.name] for tensor in tensors)


def test_a_head_of_ours_is_published_under_the_same_names():
    published = list(RegionReleasedWeights.from_published(SHAPES).tensors(NO_TOKENS))
    assert list(rules_of(hidden=32).tensors(NO_TOKENS)) == published


def test_files_without_the_head_are_passed_over():
    assert RegionReleasedWeights.from_published({"loc_encoder.0.weight": (32, 4)}) is None


@pytest.mark.parametrize(
    ("first", "found"), [({}, "is missing"), ({"loc_decoder.0.weight": (3,)}, r"has shape \[3\]")]
)
def test_a_first_layer_that_tells_no_sizes_is_named(first, found):
    shapes = {"loc_decoder.2.bias": (4,), **first}
    with pytest.raises(CheckpointError, match=rf"loc_decoder\.0\.weight must be there .*{found}"):
        RegionReleasedWeights.from_published(shapes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "centre"}, "holds a head with format: corners, not centre"),
        (
            {"given": True},
            "holds no head that takes boxes in questions; train it with given: false",
        ),
    ],
)
def test_what_the_format_cannot_hold_is_refused(options, message):
    with pytest.raises(UsageError, match=rf"^heads\.region: the format videochat_tpo {message}"):
        rules_of(**options)
