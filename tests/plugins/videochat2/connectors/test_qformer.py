"""The Q-Former: parity with the release, instructions, clips of several lengths."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from tests.plugins.videochat2.connectors.released_names import connector_state, without_text_side
from tpokit import DataError, UsageError
from tpokit.interfaces import ConnectorHost, Instruction
from tpokit_videochat2.connectors.options import QFormerOptions
from tpokit_videochat2.connectors.qformer import QFormerConnector, pad_clips

FOLDER = Path(__file__).parents[3] / "golden" / "videochat2"
CASE = json.loads((FOLDER / "qformer.json").read_text())
GOLDEN = load_file(FOLDER / "qformer.safetensors")
TOLERANCE = CASE["tolerance"]
HOST = ConnectorHost(vision=6, hidden=10, grid=(2, 3))
TINY = {
    "queries": 3,
    "extra_queries": 2,
    "layers": 3,
    "width": 8,
    "heads": 2,
    "intermediate": 12,
    "dropout": 0.0,
    "positions": 6,
}


def tiny(host=HOST, **options):
    """A connector whose answer depends on what it sees more than fresh weights' does."""
    made = QFormerConnector(QFormerOptions(**{**TINY, **options}), host)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def released_qformer(vocabulary, attention="sdpa"):
    """Ours with the weights of the golden run, which starts behind the norm and has no projection.

    Loading is strict but for these two.
    """
    sizes = CASE["config"]
    options = QFormerOptions(
        queries=sizes["num_query_token"],
        extra_queries=sizes["extra_num_query_token"],
        layers=sizes["layers"],
        width=sizes["hidden_size"],
        heads=sizes["heads"],
        intermediate=sizes["intermediate_size"],
        cross_attention_every=sizes["cross_attention_freq"],
        layer_norm_eps=sizes["layer_norm_eps"],
        vocabulary=vocabulary,
        positions=sizes["max_position_embeddings"],
        attention=attention,
    )
    patches = GOLDEN["encoder_hidden_states"].shape[1]
    host = ConnectorHost(sizes["encoder_width"], 10, (1, patches))
    made = QFormerConnector(options, host).eval()
    made.norm = nn.Identity()
    state = connector_state(GOLDEN)
    state |= {name: value for name, value in made.state_dict().items() if "projection" in name}
    made.load_state_dict(state if vocabulary else without_text_side(state), strict=True)
    return made


def instruction():
    return Instruction(GOLDEN["instruction_ids"], GOLDEN["instruction_mask"].bool())


def assert_met(ours, golden):
    assert (ours - GOLDEN[golden]).abs().max() <= TOLERANCE


# ---- parity with the release ----


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("vocabulary", [0, CASE["config"]["vocab_size"]])
def test_queries_of_the_release_are_met_without_instruction(vocabulary, attention):
    made = released_qformer(vocabulary, attention)
    assert_met(made.query_states(GOLDEN["encoder_hidden_states"], [1, 1]), "out_plain")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_queries_of_the_release_are_met_with_an_instruction_padded_on_the_left(attention):
    made = released_qformer(CASE["config"]["vocab_size"], attention)
    states = made.query_states(GOLDEN["encoder_hidden_states"], [1, 1], instruction())
    assert_met(states, "out_instructed")


def test_text_rows_of_the_release_are_met():
    made = released_qformer(CASE["config"]["vocab_size"])
    queries = torch.cat([made.queries, made.extra_queries], dim=1).expand(2, -1, -1)
    mask = torch.cat([torch.ones(2, queries.shape[1]), GOLDEN["instruction_mask"]], dim=1)
    output = made.qformer(
        input_ids=GOLDEN["instruction_ids"],
        attention_mask=mask,
        query_embeds=queries,
        encoder_hidden_states=GOLDEN["encoder_hidden_states"],
    )
    assert_met(output.last_hidden_state[:, queries.shape[1] :], "out_instructed_text")


def test_sizes_of_the_release_have_its_numbers_of_parameters():
    host = ConnectorHost(vision=1024, hidden=4096, grid=(14, 14))
    with torch.device("meta"):
        made = QFormerConnector(QFormerOptions(vocabulary=30523), host)
    counts = {name: 0 for name, _ in made.named_children()}
    for name, parameter in made.named_parameters():
        counts[name.split(".")[0]] = counts.get(name.split(".")[0], 0) + parameter.numel()
    assert counts == {
        "norm": 2_048,
        "qformer": 182_121_728 - 512,  # the release counts its buffer of positions
        "projection": 3_149_824,
        "queries": 24_576,
        "extra_queries": 49_152,
    }


# ---- instructions ----


def test_an_instruction_changes_what_queries_see_and_padding_does_not():
    made = tiny(vocabulary=9)
    features = torch.randn(1, 6, 6)
    words = torch.tensor([[5, 7]])
    said = made(features, [1], Instruction(words, torch.ones(1, 2, dtype=torch.bool)))
    plain = made(features, [1])
    assert (said - plain).abs().max() > 1e-2
    padded = Instruction(torch.tensor([[5, 7, 0, 3]]), torch.tensor([[True, True, False, False]]))
    assert torch.allclose(made(features, [1], padded), said, atol=1e-6)


def test_clips_with_and_without_instruction_may_share_a_batch():
    made = tiny(vocabulary=9)
    features = torch.randn(3, 6, 6)
    both = Instruction(torch.tensor([[5, 7], [0, 0]]), torch.tensor([[True, True], [False, False]]))
    first = Instruction(both.ids[:1], both.mask[:1])
    together = made(features, [2, 1], both)
    alone = torch.cat([made(features[:2], [2], first), made(features[2:], [1])])
    assert torch.allclose(together, alone, atol=1e-5)


def test_an_instruction_of_no_words_is_none():
    made = tiny(vocabulary=9)
    features = torch.randn(1, 6, 6)
    nothing = Instruction(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, dtype=torch.bool))
    assert torch.equal(made(features, [1], nothing), made(features, [1]))


def test_without_an_instruction_the_text_side_gets_gradients_of_zero():
    made = tiny(vocabulary=9)
    made(torch.randn(2, 6, 6), [1, 1]).square().sum().backward()
    wordless = tiny().state_dict()
    text = {name: p.grad for name, p in made.named_parameters() if name not in wordless}
    assert len(text) == 2 + 3 * 6  # two tables; of each layer two linear layers and a norm
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in text.values())


def test_without_vocabulary_an_instruction_is_refused():
    with pytest.raises(UsageError, match=r"built without words \(vocabulary: 0\).*set vocabulary"):
        tiny()(
            torch.randn(1, 6, 6),
            [1],
            Instruction(torch.ones(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)),
        )


def test_an_instruction_that_is_too_long_is_refused():
    long = torch.ones(1, 7, dtype=torch.long)
    with pytest.raises(DataError, match=r"has 7 tokens, at most 6 fit \(positions\)"):
        tiny(vocabulary=9)(torch.randn(1, 6, 6), [1], Instruction(long, long.bool()))


# ---- what it sees ----


@settings(max_examples=30, deadline=None)
@given(frames=st.lists(st.integers(1, 4), min_size=1, max_size=5), patches=st.integers(1, 3))
def test_padding_keeps_every_frame_of_every_clip_and_adds_zeros(frames, patches):
    features = torch.arange(1.0, 1 + sum(frames) * patches * 2).reshape(sum(frames), patches, 2)
    padded, seen = pad_clips(features, frames)
    assert padded.shape == (len(frames), max(frames) * patches, 2)
    if seen is None:
        seen = torch.ones(padded.shape[:2], dtype=torch.bool)
        assert len(set(frames)) == 1
    for row, mask, clip in zip(padded, seen, features.split(frames), strict=True):
        assert torch.equal(row[mask], clip.flatten(0, 1))
        assert row[~mask].count_nonzero() == 0
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_shorter_clip_does_not_see_its_padding(attention):
    made = tiny(attention=attention)
    features = torch.randn(4, 6, 6)
    together = made(features, [1, 3])
    alone = torch.cat([made(features[:1], [1]), made(features[1:], [3])])
    assert torch.allclose(together, alone, atol=1e-5)


def test_every_frame_and_every_leading_token_is_seen():
    made = tiny(host=HOST._replace(leading=1))
    features = torch.randn(3, 7, 6, requires_grad=True)
    made(features, [3]).square().sum().backward()
    assert (features.grad.abs().amax(-1) > 0).all()


def test_queries_look_at_frames_in_every_nth_layer():
    layers = tiny(layers=5, cross_attention_every=3).qformer.encoder.layer
    assert [layer.has_cross_attention for layer in layers] == [True, False, False, True, False]


def test_without_extra_queries_there_is_no_empty_parameter():
    made = tiny(extra_queries=0)
    assert "extra_queries" not in dict(made.named_parameters())
    assert made(torch.randn(1, 6, 6), [1]).shape == (3, 10)


def test_dropout_acts_in_training_alone():
    made = tiny(dropout=0.5)
    features = torch.randn(1, 6, 6)
    assert not torch.equal(made(features, [1]), made(features, [1]))
    made.eval()
    assert torch.equal(made(features, [1]), made(features, [1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10, "heads": 4}, "width 10 is not a multiple of heads 4"),
        ({"queries": 0}, "queries\n.*greater than or equal to 1"),
        ({"dropout": 1.0}, "dropout\n.*less than 1"),
        ({"attention": "flash"}, "attention\n.*'sdpa' or 'eager'"),
        ({"depth": 3}, "depth\n.*Extra inputs are not permitted"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        QFormerOptions.model_validate({**TINY, **options})
