"""Rules of the mask head for the released VideoChat-TPO, and its SAM 2 by name and shape."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.heads.mask.tiny_head import make_head
from tests.heads.mask.tiny_sam2 import tiny_sizes
from tpokit import CheckpointError, Host, TokenTable, UsageError
from tpokit_mask.head import MaskHead
from tpokit_mask.options import MaskOptions
from tpokit_mask.released_sam2 import LARGE, sam2_shapes, sizes_of
from tpokit_mask.released_weights import FILE, MaskReleasedWeights
from tpokit_mask.sam2.sizes import Sam2Sizes
from tpokit_mask.sam2_port import build

LISTING = Path(__file__).parents[2] / "golden" / "videochat2" / "released_checkpoint.json"
RELEASED = {
    name: tuple(shape)
    for name, (shape, _) in json.loads(LISTING.read_text())["tensors"].items()
    if name.startswith(("sam.", "track_embed", "loc_encoder."))
}
NO_TOKENS = TokenTable(50, {}, {})
SMALL = Sam2Sizes(version="2.0", width=32, memories=2, fuser_layers=2, background=5)


def published_shapes(sizes=SMALL, width=24, hidden=6, tokens=3):
    """As a release of other sizes would have them."""
    shapes = {f"sam.{name}": shape for name, shape in sam2_shapes(sizes).items()}
    layers = {
        "track_embed.layers.0": (width, width),
        "track_embed.layers.1": (tokens * sizes.width, width),
        "track_embed_decode2.layers.0": (width, width),
        "track_embed_decode2.layers.1": (4, width),
        "loc_encoder.0": (hidden, 4),
        "loc_encoder.2": (width, hidden),
    }
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


# ---- SAM 2 by name and shape ----


@pytest.mark.parametrize("sizes", [Sam2Sizes(), SMALL, replace(SMALL, version="2.1")], ids=str)
def test_names_and_shapes_are_those_of_the_package(sizes):
    built = {name: tuple(t.shape) for name, t in build(sizes).model.state_dict().items()}
    assert sam2_shapes(sizes) == built


def test_the_released_sam2_has_the_names_and_shapes_of_the_large_one():
    sam2 = {name[4:]: shape for name, shape in RELEASED.items() if name.startswith("sam.")}
    assert sam2_shapes(LARGE) == sam2
    assert len(sam2) == 900


@pytest.mark.parametrize("sizes", [LARGE, SMALL, Sam2Sizes(trunk_width=16)], ids=str)
def test_sizes_are_told_by_shapes(sizes):
    assert sizes_of(sam2_shapes(sizes)) == sizes


def test_stages_of_no_known_model_are_refused():
    shapes = sam2_shapes(replace(SMALL, stages=(1, 1, 3, 1), global_blocks=()))
    message = r"SAM 2 with \[1, 1, 3, 1\] blocks in its stages: it must have \[2, 6, 36, 4\] or "
    with pytest.raises(CheckpointError, match=message):
        sizes_of(shapes)


def test_a_tensor_of_sam2_that_tells_sizes_and_is_missing_is_named():
    shapes = dict(sam2_shapes(SMALL))
    del shapes["no_mem_embed"]
    with pytest.raises(CheckpointError, match="the weights of SAM 2 lack no_mem_embed"):
        sizes_of(shapes)


def test_a_version_that_never_was_is_refused():
    with pytest.raises(UsageError, match=r"version must be 2\.1 or 2\.0, not 3"):
        Sam2Sizes(version="3")


# ---- from published files ----


def test_the_release_makes_a_head_over_the_large_sam2():
    rules = MaskReleasedWeights.from_published(RELEASED)
    options = MaskOptions(**rules.options())
    assert (options.sam2.size, options.sam2.checkpoint) == ("sam2_hiera_large", FILE)
    assert (options.adapter, options.slots, options.tokens_per_slot) == ("mlp", 1, 3)
    assert (options.given, options.given_hidden) == (True, 2048)
    assert {t.name: t.shape for t in rules.tensors(NO_TOKENS)} == RELEASED


def test_published_weights_of_other_sizes_make_a_head_that_loads_them(tmp_path):
    shapes = published_shapes()
    rules = MaskReleasedWeights.from_published(shapes)
    random = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    beside, state = {}, {}
    for tensor in rules.tensors(NO_TOKENS):
        (place,) = tensor.places
        kept = beside if place.file == FILE else state
        kept[place.ours.removeprefix("heads.mask.")] = weights[tensor.name]
    save_file(beside, tmp_path / FILE)
    head = MaskHead(MaskOptions(**rules.options()), Host(24, folder=tmp_path))
    head.load_state_dict(state, strict=True)
    found = head.sam2.model.state_dict()["sam_mask_decoder.mask_tokens.weight"]
    assert torch.equal(found, weights["sam.sam_mask_decoder.mask_tokens.weight"])
    assert torch.equal(head.box_encoder[2].bias, weights["loc_encoder.2.bias"])
    assert head.adapter(torch.zeros(2, 1, 24)).shape == (2, 3, 32)


def test_the_empty_head_needs_no_file(tmp_path):
    options = MaskReleasedWeights.from_published(published_shapes()).empty_options()
    assert MaskHead(MaskOptions(**options), Host(24, folder=tmp_path)).sam2.width == 32


def test_files_without_the_head_are_passed_over():
    assert MaskReleasedWeights.from_published({"loc_decoder.0.weight": (8, 24)}) is None


def test_without_an_image_encoder_all_of_the_published_sam2_is_expected():
    """As in the tiny golden release, which has the prompt encoder alone."""
    shapes = published_shapes(LARGE)
    part = {n: s for n, s in shapes.items() if not n.startswith("sam.") or "prompt" in n}
    found = {t.name for t in MaskReleasedWeights.from_published(part).tensors(NO_TOKENS)}
    assert found == set(shapes)


def test_prompt_tokens_of_another_width_are_refused():
    shapes = {**published_shapes(), "track_embed.layers.1.weight": (100, 24)}
    with pytest.raises(CheckpointError, match="has 100 rows, no multiple of the width 32 of SAM 2"):
        MaskReleasedWeights.from_published(shapes)


def test_a_layer_that_tells_sizes_and_is_missing_is_named():
    shapes = published_shapes()
    del shapes["loc_encoder.0.weight"]
    message = r"loc_encoder\.0\.weight must be there as a matrix, but is missing"
    with pytest.raises(CheckpointError, match=message):
        MaskReleasedWeights.from_published(shapes)


# ---- from a head of ours ----


def usual_head(folder, **options):
    """Whose SAM 2 has nothing that shapes do not tell."""
    sam2 = {"size": SMALL, "checkpoint": "random", **options.pop("sam2", {})}
    return MaskHead(MaskOptions(sam2=sam2, **options), Host(24, folder=folder))


def test_a_head_is_published_under_the_names_it_came_by(tmp_path):
    head = usual_head(tmp_path, given_hidden=6)
    rules = MaskReleasedWeights.from_model(head)
    again = MaskReleasedWeights.from_published(
        {tensor.name: tensor.shape for tensor in rules.tensors(NO_TOKENS)}
    )
    assert list(again.tensors(NO_TOKENS)) == list(rules.tensors(NO_TOKENS))
    published = {t.places[0].ours for t in rules.tensors(NO_TOKENS) if t.places[0].file is None}
    assert published == {f"heads.mask.{name}" for name in head.state_dict()}


def test_its_sam2_is_handed_over_for_the_file(tmp_path):
    head = usual_head(tmp_path)
    beside = MaskReleasedWeights.from_model(head).file_tensors(FILE)
    assert set(beside) == set(sam2_shapes(SMALL))
    save_file(dict(beside), tmp_path / FILE)
    size = usual_head(tmp_path, sam2={"checkpoint": FILE}).sam2.model.state_dict()
    assert all(
        torch.equal(size[name], tensor) for name, tensor in load_file(tmp_path / FILE).items()
    )


def test_what_of_sam2_was_trained_is_taken_from_the_head(tmp_path):
    head = usual_head(tmp_path, sam2={"trained": "decoder"})
    places = {
        tensor.name: tensor.places[0]
        for tensor in MaskReleasedWeights.from_model(head).tensors(NO_TOKENS)
    }
    trained = places["sam.sam_mask_decoder.mask_tokens.weight"]
    assert (trained.file, trained.ours) == (
        None,
        "heads.mask.trained_parts.sam_mask_decoder.mask_tokens.weight",
    )
    assert places["sam.no_mem_embed"].file == FILE
    ours = {place.ours for place in places.values() if place.file is None}
    assert ours == {f"heads.mask.{name}" for name in head.state_dict()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": "linear"}, "has adapter: mlp, not linear"),
        ({"slots": 2}, "has one slot, not slots: 2"),
        ({"given": False}, "encodes boxes in questions; train the head with given: true"),
        (
            {"sam2": {"size": replace(SMALL, windows=(8, 4, 4, 4))}},
            r"does not say sam2\.size\.windows, which differs from the usual: \(8, 4, 4, 4\) inst",
        ),
        (
            {"sam2": {"size": replace(SMALL, stages=(1, 1, 1, 1), global_blocks=())}},
            r"SAM 2 with \[1, 1, 1, 1\] blocks",
        ),
        ({"sam2": {"size": "sam2.1_hiera_tiny"}}, r"holds the SAM 2 sam2_hiera_large, not sam2\.1"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, options, message):
    head = usual_head(tmp_path, **options)
    with pytest.raises(UsageError, match=rf"^heads\.mask: the format videochat_tpo:? {message}"):
        MaskReleasedWeights.from_model(head)


def test_the_side_of_images_is_no_matter_of_weights(tmp_path):
    sizes = replace(tiny_sizes(), windows=Sam2Sizes().windows)
    assert make_head(tmp_path).sam2.image_size != sizes.image_size
    rules = MaskReleasedWeights.from_model(make_head(tmp_path))
    assert len(list(rules.tensors(NO_TOKENS))) == len(sam2_shapes(tiny_sizes())) + 12
