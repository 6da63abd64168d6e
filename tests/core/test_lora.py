"""Adapters give what PEFT's give, with fewer passes over the activations."""

import copy

import pytest
import torch
from peft.tuners.lora import Linear
from torch import nn

from tpokit.lora import LoraLinear, add_lora, merge_lora


class Two(nn.Module):
    """Two layers that read the same input, as queries and keys do."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8, bias=False), nn.Linear(6, 8)

    def forward(self, x):
        return self.one(x) + self.two(x).tanh()


def adapted(dropout=0.0):
    torch.manual_seed(0)
    model = Two()
    add_lora(model, "one|two", rank=2, alpha=3.0, dropout=dropout, seed=1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def as_peft(model):
    """The same layers with PEFT's way of computing."""
    model = copy.deepcopy(model)
    for layer in (model.one, model.two):
        layer.__class__ = Linear
    return model


def output_and_gradients(model, x):
    x = x.clone().requires_grad_()
    found = model(x)
    found.float().square().sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [found, x.grad, *(parameter.grad for parameter in trained)]


def saved_bytes(model, x):
    """What the forward pass keeps for the backward pass, besides parameters and the input."""
    known = {parameter.data_ptr() for parameter in model.parameters()} | {x.data_ptr()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = model(x)
    assert found.requires_grad
    return sum(kept.values())


def test_output_and_gradients_are_those_of_peft():
    model = adapted()
    assert isinstance(model.one, LoraLinear)
    x = torch.randn(2, 5, 6)
    pairs = zip(
        output_and_gradients(model, x), output_and_gradients(as_peft(model), x), strict=True
    )
    for ours, theirs in pairs:
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_under_autocast_the_output_is_of_its_format_and_the_input_is_not_copied():
    model = adapted()
    model.one.base_layer.bfloat16(), model.two.base_layer.bfloat16()
    x = torch.randn(64, 6, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = model(x), as_peft(model)(x)
        assert ours.dtype == theirs.dtype == torch.bfloat16
        assert torch.allclose(ours.float(), theirs.float(), atol=0.1)
        assert saved_bytes(model, x) <= saved_bytes(as_peft(model), x) - 2 * x.nbytes


def test_adapters_of_another_format_than_the_base_work_without_autocast():
    model = adapted()
    model.one.base_layer.bfloat16(), model.two.base_layer.bfloat16()
    x = torch.randn(3, 6, dtype=torch.bfloat16)
    assert torch.equal(model(x), as_peft(model)(x))


def test_dropout_is_on_the_input_of_the_adapter_in_training_alone():
    model = adapted(dropout=0.5)
    x = torch.randn(4, 6)
    found = []
    for way in (model, as_peft(model)):
        torch.manual_seed(3)
        found.append(way.train()(x))
    assert torch.allclose(*found, atol=1e-5)
    assert not torch.allclose(found[0], model.eval()(x), atol=1e-5)


@pytest.mark.parametrize("shape", [(6,), (0, 6), (2, 3, 6)])
def test_an_adapter_that_is_merged_gives_the_same(shape):
    model = adapted()
    x = torch.randn(shape)
    before = model(x)
    merge_lora(model)
    assert type(model.one) is nn.Linear
    assert torch.allclose(model(x), before, atol=1e-5)
