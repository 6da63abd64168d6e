"""What every connector must hold, whatever it computes."""

import pickle
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from tpokit.interfaces import ConnectorChoice, ConnectorHost, FeatureNeed, Instruction
from tpokit_videochat2.connectors.mlp import MlpConnector
from tpokit_videochat2.connectors.options import MlpOptions, PoolAdapterOptions, QFormerOptions
from tpokit_videochat2.connectors.pool_adapter import PoolAdapter
from tpokit_videochat2.connectors.qformer import QFormerConnector

HOST = ConnectorHost(vision=6, hidden=10, grid=(2, 4), leading=1)
TINY = {
    "queries": 3,
    "extra_queries": 2,
    "layers": 3,
    "width": 8,
    "heads": 2,
    "intermediate": 12,
    "dropout": 0.0,
}
CHOICES = {
    "mlp": ConnectorChoice(MlpConnector, MlpOptions()),
    "mlp-one-layer": ConnectorChoice(MlpConnector, MlpOptions(layers=1, norm=True, leading=True)),
    "mlp-two-vision-layers": ConnectorChoice(MlpConnector, MlpOptions(vision_layers=(-3, -1))),
    "pool_adapter": ConnectorChoice(PoolAdapter, PoolAdapterOptions(grid=2)),
    "pool_adapter-time": ConnectorChoice(PoolAdapter, PoolAdapterOptions(grid=[1, 2], frames=2)),
    "pool_adapter-adaptive": ConnectorChoice(
        PoolAdapter, PoolAdapterOptions(grid=[2, 3], frames=3, mode="adaptive")
    ),
    "qformer": ConnectorChoice(QFormerConnector, QFormerOptions(**TINY)),
    "qformer-eager": ConnectorChoice(QFormerConnector, QFormerOptions(**TINY, attention="eager")),
    "qformer-words": ConnectorChoice(QFormerConnector, QFormerOptions(**TINY, vocabulary=9)),
}
LENGTHS = [[1], [4], [1, 1, 1], [2, 2], [1, 4, 2], [6, 1, 4, 1]]
"""Frames of the clips of a batch: images, videos, mixtures."""


@pytest.fixture(params=CHOICES)
def choice(request):
    return CHOICES[request.param]


def features(choice, frames, **options):
    width = HOST.vision * len(choice.feature_need().layers)
    return torch.randn(frames, HOST.leading + 8, width, **options)


def with_fewer_zeros(connector):
    """Fresh biases, and with them some gradients, are zero."""
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return connector


def gradients(connector):
    return {name: parameter.grad for name, parameter in connector.named_parameters()}


@pytest.mark.parametrize("frames", LENGTHS, ids=str)
def test_tokens_says_what_forward_gives(choice, frames):
    tokens = choice.build(HOST)(features(choice, sum(frames)), frames)
    promised = [choice.tokens(HOST, count) for count in frames]
    assert tokens.shape == (sum(promised), HOST.hidden)


@pytest.mark.parametrize("frames", LENGTHS, ids=str)
def test_a_batch_equals_each_clip_alone(choice, frames):
    connector = with_fewer_zeros(choice.build(HOST))
    together = features(choice, sum(frames), requires_grad=True)
    alone = together.detach().clone().requires_grad_()
    tokens = connector(together, frames)
    tokens.square().sum().backward()
    expected_gradients = gradients(connector)
    connector.zero_grad()
    pieces = [
        connector(clip, [count]) for clip, count in zip(alone.split(frames), frames, strict=True)
    ]
    torch.cat(pieces).square().sum().backward()
    assert torch.allclose(tokens, torch.cat(pieces), atol=1e-5)
    assert torch.allclose(together.grad, alone.grad, atol=1e-4)
    for name, gradient in gradients(connector).items():
        assert torch.allclose(gradient, expected_gradients[name], rtol=1e-3, atol=1e-4), name


def test_every_parameter_takes_part_and_what_is_not_text_learns(choice):
    connector = with_fewer_zeros(choice.build(HOST))
    connector(features(choice, 5), [1, 4]).square().sum().backward()
    found = gradients(connector)
    assert found
    assert all(gradient is not None for gradient in found.values())
    if connector.options is not CHOICES["qformer-words"].options:
        assert all(gradient.count_nonzero() for gradient in found.values())


def test_with_an_instruction_all_but_the_last_text_rows_learn():
    connector = with_fewer_zeros(CHOICES["qformer-words"].build(HOST))
    words = Instruction(torch.tensor([[0, 4], [5, 8]]), torch.tensor([[False, True], [True, True]]))
    connector(features(CHOICES["qformer-words"], 5), [1, 4], words).square().sum().backward()
    idle = {name for name, gradient in gradients(connector).items() if not gradient.count_nonzero()}
    last = "qformer.encoder.layer.2."  # nobody reads what it makes of the words
    assert idle == {
        f"{last}{name}.{kind}"
        for name in ("intermediate.dense", "output.dense", "output.LayerNorm")
        for kind in ("weight", "bias")
    }


def test_an_idle_call_gives_finite_gradients_of_zero(choice):
    connector = choice.build(HOST)
    tokens = connector(torch.zeros_like(features(choice, 1)), [1])
    (0.0 * tokens.sum()).backward()
    for name, gradient in gradients(connector).items():
        assert torch.equal(gradient, torch.zeros_like(gradient)), name


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16_gives_the_same_tokens_coarsely(choice, how):
    connector = with_fewer_zeros(choice.build(HOST))
    seen = features(choice, 7)
    exact = connector(seen, [1, 4, 2])
    if how == "weights":
        coarse = connector.bfloat16()(seen.bfloat16(), [1, 4, 2])
    else:
        with torch.autocast("cpu", torch.bfloat16):
            coarse = connector(seen.bfloat16(), [1, 4, 2])
    assert coarse.dtype == torch.bfloat16
    coarse.float().square().sum().backward()
    assert all(gradient.isfinite().all() for gradient in gradients(connector).values())
    assert (coarse.float() - exact).abs().max() <= 0.05 * exact.abs().max()


@pytest.mark.parametrize("frames", LENGTHS, ids=str)
def test_no_value_of_a_tensor_is_looked_at(choice, frames):
    connector = choice.build(HOST).to("meta")  # tensors there have no values
    seen = features(choice, sum(frames), device="meta")
    tokens = connector(seen, frames)
    assert tokens.device.type == "meta"
    assert len(tokens) == sum(choice.tokens(HOST, count) for count in frames)


def test_a_choice_can_be_sent_to_a_data_worker(choice):
    sent = pickle.loads(pickle.dumps(choice))
    assert sent == choice
    assert sent.description == choice.description
    assert sent.tokens(HOST, 4) == choice.tokens(HOST, 4)


def test_options_can_be_written_down_and_read_again(choice):
    written = choice.description["options"]
    assert type(choice.options).model_validate(written) == choice.options


def test_layers_of_the_vision_tower_are_asked_for(choice):
    assert choice.feature_need() == FeatureNeed(choice.options.vision_layers)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least 1 item"),
        ([0], "less than or equal to -1"),
        ([-1, -1], "a layer stands twice"),
    ],
)
@pytest.mark.parametrize("name", ["mlp", "pool_adapter", "qformer"])
def test_layers_that_cannot_be_meant_are_refused(name, layers, message):
    options = {**CHOICES[name].options.model_dump(), "vision_layers": layers}
    with pytest.raises(ValidationError, match=message):
        type(CHOICES[name].options).model_validate(options)


def test_options_are_checked_without_torch():
    code = "import sys, tpokit_videochat2.connectors.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
