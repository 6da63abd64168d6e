"""The mask adapter: parity with the released shape, alone and through SAM 2."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.heads.mask.test_sam2_port import ALL_FRAMES, official_loss
from tests.heads.mask.tiny_sam2 import GOLDEN, tiny_maps, tiny_sam2
from tpokit_mask.adapter import MaskAdapter
from tpokit_mask.losses.terms import box_tokens_term
from tpokit_mask.sam2_port import Tracking, track

PARAMETERS = {"fc1": "layers.0.0", "fc2": "layers.0.2"}


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, torch.Tensor], dict]:
    return (
        load_file(GOLDEN / "adapter.safetensors"),
        json.loads((GOLDEN / "adapter.json").read_text()),
    )


def loaded(tensors: dict[str, torch.Tensor]) -> MaskAdapter:
    adapter = MaskAdapter(40, 48, 1, "mlp")
    adapter.load_state_dict(
        {
            f"{ours}.{kind}": tensors[f"{theirs}_{kind}"]
            for theirs, ours in PARAMETERS.items()
            for kind in ("weight", "bias")
        }
    )
    return adapter


def assert_gradients(adapter, hidden, tensors, loss: str) -> None:
    found = {"e": hidden.grad}
    for theirs, ours in PARAMETERS.items():
        for kind in ("weight", "bias"):
            found[f"{theirs}_{kind}"] = adapter.get_parameter(f"{ours}.{kind}").grad
    for name, gradient in found.items():
        wanted = tensors[f"{loss}.grad.{name}"]
        assert (gradient - wanted).norm() < 5e-3 * wanted.norm(), name


def test_tokens_of_boxes_and_their_loss_are_those_of_the_release(golden):
    tensors, facts = golden
    adapter, hidden = loaded(tensors), tensors["e"].clone().requires_grad_()
    tokens = adapter(hidden[:, None])
    torch.testing.assert_close(tokens, tensors["tokens"], rtol=1e-5, atol=1e-6)
    box_tokens = tiny_sam2().box_tokens(tensors["boxes_normalised"])
    torch.testing.assert_close(box_tokens, tensors["box_tokens"], rtol=1e-5, atol=1e-6)
    term = box_tokens_term(tokens, box_tokens, torch.ones(3, dtype=torch.bool), 3.0)
    loss = term.sum / term.count
    assert loss.item() == pytest.approx(facts["box_token_loss"]["value"], rel=1e-5)
    loss.backward()
    assert_gradients(adapter, hidden, tensors, "box_token_loss")


def test_the_loss_of_masks_through_a_video_teaches_the_adapter(golden):
    tensors, facts = golden
    adapter, hidden = loaded(tensors), tensors["e"].clone().requires_grad_()
    sam2 = tiny_sam2().set_trained("nothing").train()
    tokens = adapter(hidden[:, None])
    losses = official_loss(
        track(sam2, tiny_maps(sam2), tokens, ALL_FRAMES, Tracking(said_frames=4))
    )
    for name, stated in facts["mask_loss"]["losses"].items():
        assert losses[name].item() == pytest.approx(stated, rel=1e-3), name
    losses["core_loss"].backward()
    assert_gradients(adapter, hidden, tensors, "mask_loss")


def test_box_tokens_are_exact_under_autocast_and_of_any_number():
    sam2, boxes = tiny_sam2(), torch.tensor([[0.501, 0.1, 0.7, 0.9]])
    with torch.autocast("cpu", torch.bfloat16):
        tokens = sam2.box_tokens(boxes.expand(2, 4))
    assert torch.equal(tokens, sam2.box_tokens(boxes.expand(2, 4)))
    assert sam2.box_tokens(torch.zeros(0, 4)).shape == (0, 3, 48)


@pytest.mark.parametrize(("kind", "tokens"), [("linear", 2), ("mlp", 6)])
def test_every_slot_makes_its_own_tokens_in_order(kind, tokens):
    adapter = MaskAdapter(8, 16, 2, kind)
    slots = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(1))
    found = adapter(slots)
    assert adapter.tokens == tokens and found.shape == (5, tokens, 16)
    changed = slots.clone()
    changed[:, 1] += 1
    differs = (adapter(changed) != found).any(-1).any(0)
    assert differs.tolist() == [False] * (tokens // 2) + [True] * (tokens // 2)
    assert adapter(slots[:0]).shape == (0, tokens, 16)


def test_linear_layers_are_one_for_each_slot_and_the_mlp_is_shared():
    def count(*arguments) -> int:
        return sum(value.numel() for value in MaskAdapter(*arguments).parameters())

    assert count(8, 16, 1, "linear") == 8 * 16 + 16
    assert count(8, 16, 3, "linear") == 3 * (8 * 16 + 16)
    assert count(4096, 256, 1, "mlp") == count(4096, 256, 4, "mlp") == 19_927_808


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_tokens_are_float32_whatever_comes_in(kind):
    adapter, slots = MaskAdapter(8, 16, 2, kind), torch.randn(1, 2, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = adapter(slots)
    assert torch.equal(found, adapter(slots.float()))
    assert adapter.bfloat16()(slots.float()).dtype == torch.float32
