"""Estimates of memory are those of the papers, and near to what is measured."""

import pytest
import torch

from tests import composed
from tests.composed import collator_of, encoder_of, samples, tiny_model
from tpokit.interfaces import LayerStack
from tpokit.training.memory_estimate import (
    ENGINES,
    NumberFormat,
    activation_memory,
    state_memory,
)
from tpokit_shapes_world.tiny_model import TinyShape

HALF = NumberFormat.of("bfloat16")


@pytest.mark.parametrize(
    ("engine", "expected_gb"), [("zero0", 120), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)]
)
def test_the_model_takes_what_figure_1_of_the_zero_paper_says(engine, expected_gb):
    memory = state_memory(7_500_000_000, 7_500_000_000, HALF, engine, devices=64)
    assert memory.bytes / 1e9 == pytest.approx(expected_gb, abs=0.05)


def test_what_is_frozen_has_weights_alone():
    memory = state_memory(1000, 10, HALF, "zero0", devices=8)
    assert (memory.weights, memory.gradients, memory.optimizer) == (2000, 20, 120)


def test_on_one_device_every_engine_takes_the_same():
    numbers = NumberFormat.of("float32")
    assert {state_memory(1000, 500, numbers, engine, 1).bytes for engine in ENGINES} == {10_000}


def gpt(width, layers, tokens, part="llm"):
    return LayerStack(part, layers, width, width, 4 * width, gated=False, tokens=tokens)


def test_a_gpt_keeps_what_the_paper_says_without_dropout():
    memory = activation_memory([gpt(12288, 96, 2048)], {"llm": "full"}, HALF, labels=0, rows=51200)
    assert memory.kept == (34 - 2) * 2048 * 12288 * 96
    assert memory.recomputed == 2 * 2048 * 12288 * 96 + 32 * 2048 * 12288


def test_labels_keep_their_logits():
    memory = activation_memory([], {"llm": "full"}, HALF, labels=10, rows=500)
    assert memory.kept == memory.recomputed == 20_000


@pytest.mark.parametrize(
    ("modes", "kept"),
    [
        ({"region": "full"}, ()),
        ({"bridge": "full"}, ("llm",)),
        ({"llm": "lora", "vision": "frozen"}, ("llm",)),
        ({"connector": "full"}, ("connector", "llm")),
        ({"vision": "full"}, ("vision", "connector", "llm")),
    ],
)
def test_a_part_keeps_nothing_where_no_gradient_goes(modes, kept):
    stacks = {part: gpt(8, 1, 1, part) for part in ("vision", "connector", "llm")}
    expected = activation_memory([stacks[part] for part in kept], {"vision": "full"}, HALF, 0, 1)
    assert activation_memory(list(stacks.values()), modes, HALF, 0, 1) == expected


def test_the_estimate_is_near_to_what_autograd_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(composed, "SMALL", TinyShape())  # narrow layers keep what no formula has
    model = tiny_model(tmp_path, frames=4).train()
    model.trained_tasks = frozenset()
    encoder = encoder_of(model)
    examples = [encoder.encode(s, "talk") for s in samples(tmp_path, 6, frames=4, turns=(3, 3))]
    batch = collator_of(model)(examples)
    whole = (*model.parameters(), *model.buffers())
    own = {tensor.untyped_storage().data_ptr() for tensor in whole}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # alive: its place is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = model(batch)
    assert terms["language"].sum.requires_grad
    measured = sum(size for size, _ in kept.values())
    backbone = model.backbone
    pixels = sum(backbone.processor.pixels(example.views) for example in examples)
    stacks = backbone.layer_stacks(batch.ids.numel(), pixels)
    modes = dict.fromkeys(("vision", "connector", "llm", "bridge"), "full")
    labels = len(batch.learnt.ids)
    estimate = activation_memory(
        stacks, modes, NumberFormat.of("float32"), labels, backbone.rows
    ).kept
    assert 0.7 < measured / estimate < 1.5
