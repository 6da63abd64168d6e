"""How much arithmetic a model needs, beside what torch counts of a real LLaVA-OneVision."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.plugins.llava_onevision.tiny_onevision import batch_of, build, view_of, write_tiny
from tpokit.batch import LabelIndex
from tpokit.model import TpoModel
from tpokit.parts import set_modes
from tpokit.recipe import LoraEntry
from tpokit.tokens import TokenTable
from tpokit.training.flops import FlopCount, peak_flops, peak_of

LEARNT = 6
WORDS = "w7 w8 w9 w10 w11"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("onevision") / "tiny")


@pytest.fixture
def model(folder):
    backbone = build(folder)
    tokens = TokenTable.build(backbone.rows, {}, backbone.processor.tokenizer)
    return TpoModel(backbone, {}, tokens).train()


def batch_for(model, *samples):
    """The last words of each sample are learnt."""
    batch = batch_of(model.backbone, samples)
    ends = batch.mask.sum(1)
    rows = torch.arange(len(ends)).repeat_interleave(LEARNT)
    places = (ends[:, None] - 1 - torch.arange(1, LEARNT + 1)).flatten()
    batch.learnt = LabelIndex(rows, places, batch.ids[rows, places + 1])
    return batch


def counted(model, batch):
    """FLOPs of a forward and backward pass: by us, and by torch."""
    ours = FlopCount(model, peak=1.0)
    ours.start()
    with FlopCounterMode(display=False) as theirs:
        loss = model(batch)["language"].sum
        ours.take(batch)
        loss.backward()
    ours.remove()
    by_operation = {str(op): flops for op, flops in theirs.get_flop_counts()["Global"].items()}
    # Attention by blocks computes its scores again in the backward pass: 5 products instead of 4.
    again = sum(f for op, f in by_operation.items() if "attention" in op and "backward" in op) / 5
    return ours.read(), sum(by_operation.values()) - again


@pytest.mark.parametrize(
    "modes",
    [
        {"llm": "lora"},
        {"llm": "lora", "connector": "full"},
        {"vision": "full", "connector": "full", "llm": "full"},
        {"bridge": "full"},
    ],
    ids=lambda modes: "-".join(modes),
)
def test_flops_are_those_that_torch_counts(model, modes):
    set_modes(model, modes, LoraEntry(rank=4), 0)
    large = [[view_of("image", 300, 280, seed=seed)] for seed in (3, 4)]
    batch = batch_for(model, *((views, WORDS) for views in large))
    assert batch.mask.all()
    ours, theirs = counted(model, batch)
    assert ours == pytest.approx(theirs, rel=0.03)  # the first layer of two has no input to learn


def test_padding_and_what_is_computed_again_need_nothing(model):
    set_modes(model, {"llm": "lora"}, LoraEntry(rank=4), 0)
    long, short = ([], " ".join([WORDS] * 20)), ([], WORDS)
    together = counted(model, batch_for(model, long, short))[0]
    apart = sum(counted(model, batch_for(model, sample))[0] for sample in (long, short))
    assert together == pytest.approx(apart, rel=1e-6)
    model.backbone.gradient_checkpointing_enable()
    again, more = counted(model, batch_for(model, long, short))
    assert again == pytest.approx(together, rel=1e-6)
    assert more > 1.2 * together


def test_forward_passes_outside_training_do_not_count(model):
    set_modes(model, {"llm": "lora"}, LoraEntry(rank=4), 0)
    ours = FlopCount(model, peak=1.0)
    ours.start()
    ours.stop()
    batch = batch_for(model, ([], WORDS))
    with torch.no_grad():
        model(batch)
    ours.start()
    ours.take(batch)
    assert ours.read() == 0


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_name_or_not_at_all(name, peak):
    assert peak_of(name) == peak


def test_a_cpu_has_no_peak():
    assert peak_flops(torch.device("cpu"), "bfloat16") is None
