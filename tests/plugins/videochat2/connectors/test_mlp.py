"""The MLP connector: one token a patch."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tpokit.interfaces import ConnectorHost
from tpokit_videochat2.connectors.mlp import MlpConnector
from tpokit_videochat2.connectors.options import MlpOptions

HOST = ConnectorHost(vision=4, hidden=6, grid=(2, 3), leading=1)


def mlp(host=HOST, **options):
    return MlpConnector(MlpOptions(**options), host)


def test_a_token_is_two_layers_on_its_patch_in_the_order_frame_row_column():
    made = mlp(hidden=5)
    features = torch.randn(3, 7, 4)
    first, second = made.mlp[0], made.mlp[2]
    assert (first.out_features, second.in_features) == (5, 5)
    expected = second(nn.functional.gelu(first(features[:, 1:]), approximate="none"))
    assert torch.allclose(made(features, [1, 2]), expected.reshape(18, 6), atol=1e-6)


def test_one_layer_is_linear():
    made = mlp(layers=1)
    assert [name for name, _ in made.named_parameters()] == ["mlp.0.weight", "mlp.0.bias"]
    features = torch.randn(1, 7, 4)
    assert torch.allclose(
        2 * made(features, [1]) - made.mlp[0].bias, made(2 * features, [1]), atol=1e-5
    )


def test_leading_tokens_are_dropped_or_kept():
    features = torch.randn(2, 7, 4)
    dropped, kept = mlp(), mlp(leading=True)
    kept.load_state_dict(dropped.state_dict())
    with_leading = kept(features, [2]).unflatten(0, (2, 7))
    assert torch.allclose(with_leading[:, 1:].flatten(0, 1), dropped(features, [2]), atol=1e-6)
    assert dropped.tokens(dropped.options, HOST, frames=2) == 12
    assert kept.tokens(kept.options, HOST, frames=2) == 14


def test_a_norm_in_front_makes_the_scale_of_features_irrelevant():
    made = mlp(norm=True)
    assert {"norm.weight", "norm.bias"} < dict(made.named_parameters()).keys()
    features = torch.randn(1, 7, 4)
    assert torch.allclose(made(features, [1]), made(10 * features, [1]), atol=1e-3)
    assert not torch.allclose(mlp()(features, [1]), mlp()(10 * features, [1]), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 3}, "layers\n.*1 or 2"),
        ({"layers": 1, "hidden": 8}, "hidden is the width between two layers, and layers is 1"),
        ({"hidden": 0}, "hidden\n.*greater than or equal to 1"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        MlpOptions.model_validate(options)
