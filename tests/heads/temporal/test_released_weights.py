"""Rules of the temporal head for the released VideoChat-TPO."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tpokit import CheckpointError, DataError, Host, Media, MediaInfo, Seen, TokenTable, UsageError
from tpokit_temporal.head import TemporalHead
from tpokit_temporal.options import TemporalOptions
from tpokit_temporal.released_weights import TemporalReleasedWeights

GOLDEN = Path(__file__).parents[2] / "golden" / "videochat2"
RELEASED = {
    name: tuple(shape)
    for name, (shape, _) in json.loads((GOLDEN / "released_checkpoint.json").read_text())[
        "tensors"
    ].items()
    if name.startswith("cg_")
}
TINY = {
    name.removeprefix("weights."): tensor
    for name, tensor in load_file(GOLDEN / "bridge_temporal.safetensors").items()
    if name.startswith("weights.cg_")
}
TINY_SHAPES = {name: tuple(tensor.shape) for name, tensor in TINY.items()}
NO_TOKENS = TokenTable(50, {}, {})


def tiny_rules():
    return TemporalReleasedWeights.from_published(TINY_SHAPES)


def head_of(options, hidden, folder=Path()):
    torch.manual_seed(0)
    return TemporalHead(TemporalOptions(**options), Host(hidden, folder=folder))


# ---- from published files ----


def test_every_name_of_the_release_is_known_with_its_shape():
    rules = TemporalReleasedWeights.from_published(RELEASED)
    tensors = {tensor.name: tensor for tensor in rules.tensors(NO_TOKENS)}
    assert {name: tensor.shape for name, tensor in tensors.items()} == RELEASED
    nowhere = {name for name, tensor in tensors.items() if not tensor.places}
    assert len(nowhere) == 8
    assert "cg_criterion.empty_weight" in nowhere
    assert all(tensors[name].unused and tensors[name].optional for name in nowhere)


def test_the_release_has_its_own_sizes_and_reads_features_of_each_second():
    options = TemporalOptions(**TemporalReleasedWeights.from_published(RELEASED).options())
    assert options == TemporalOptions(preset="videochat_tpo", features=options.features)
    video, text = options.features.video[0], options.features.text
    assert (str(video.folder), video.width, video.clip_s) == ("features/videos", 768, 1.0)
    assert (str(text.folder), text.width, text.words_max) == ("features/queries", 4096, 100)


def test_published_weights_fill_a_head_of_the_options():
    rules = tiny_rules()
    head = head_of(rules.options(), hidden=64)
    state = {
        place.ours.removeprefix("heads.temporal."): TINY[tensor.name]
        for tensor in rules.tensors(NO_TOKENS)
        for place in tensor.places
    }
    head.load_state_dict(state, strict=True)
    assert torch.equal(head.detector.dummies, TINY["cg_model.dummy_rep_token"])


def test_the_folders_of_features_need_not_be_there_before_moments_are_asked_for(tmp_path):
    head = head_of(tiny_rules().options(), hidden=64, folder=tmp_path)
    seen = Seen(
        "clips/7",
        "when does it fall",
        (Media("video", Path("a.mp4")),),
        (MediaInfo("video", 64, 48, duration_s=8.0),),
    )
    with pytest.raises(DataError, match=r"clips/7: there is no file .*features/videos/a\.npz"):
        head.prepare(seen)


def test_files_without_the_head_are_passed_over():
    assert TemporalReleasedWeights.from_published({"temporal_token": (1, 1, 8)}) is None


def test_a_tensor_that_tells_sizes_and_is_missing_is_named():
    shapes = dict(TINY_SHAPES)
    del shapes["cg_model.query_embed.weight"]
    with pytest.raises(CheckpointError, match=r"cg_model\.query_embed\.weight is missing; the siz"):
        TemporalReleasedWeights.from_published(shapes)


def test_impossible_sizes_are_refused():
    shapes = {**TINY_SHAPES, "cg_model.token_type_embeddings.weight": (2, 30)}
    with pytest.raises(CheckpointError, match="impossible sizes: Value error, width 30 is not a m"):
        TemporalReleasedWeights.from_published(shapes)


# ---- from a head of ours ----


def test_a_head_is_published_under_the_names_it_came_by():
    rules = tiny_rules()
    head = head_of(rules.options(), hidden=64)
    assert list(TemporalReleasedWeights.from_model(head).tensors(NO_TOKENS)) == list(
        rules.tensors(NO_TOKENS)
    )


def test_a_head_with_features_of_the_backbone_can_be_published(tmp_path):
    options = {"width": 16, "features": {"kind": "backbone", "grid": 2}}
    head = TemporalHead(TemporalOptions(**options), Host(24, 12))
    rules = TemporalReleasedWeights.from_model(head)
    shapes = {tensor.name: tensor.shape for tensor in rules.tensors(NO_TOKENS)}
    assert shapes["cg_model.input_vid_proj.0.LayerNorm.weight"] == (4 * 12 + 2,)
    published = {place.ours for t in rules.tensors(NO_TOKENS) for place in t.places}
    assert published == {f"heads.temporal.{name}" for name in head.state_dict()}


@pytest.mark.parametrize(
    ("options", "hidden", "message"),
    [
        ({"heads": 4}, 64, "has heads: 8, not 4"),
        ({"global_tokens_used": 2}, 64, "uses 1 global token, not 2"),
        ({}, 40, r"has words as wide as the LLM \(40\), but the features have 64"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(options, hidden, message):
    head = head_of({**tiny_rules().options(), **options}, hidden)
    with pytest.raises(UsageError, match=rf"heads\.temporal: the format videochat_tpo {message}"):
        TemporalReleasedWeights.from_model(head)
