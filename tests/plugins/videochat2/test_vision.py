"""The vision tower against released numbers, against transformers' VideoMAE, and clip by clip."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file
from transformers import VideoMAEConfig, VideoMAEModel

from tpokit import DataError, UsageError
from tpokit_videochat2 import blocks
from tpokit_videochat2.config import IMAGENET_MEAN, IMAGENET_STD, VisionOptions
from tpokit_videochat2.vision import VisionTower

FOLDER = Path(__file__).parents[2] / "golden" / "videochat2"
FACTS = json.loads((FOLDER / "vit.json").read_text())
TOLERANCE = FACTS["tolerance"]
RELEASED = {  # released name inside a block: ours
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.q_bias": "self_attn.qkv.q_bias",
    "attn.v_bias": "self_attn.qkv.v_bias",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp": "mlp",
}
TINY = VisionOptions(
    image_size=32, patch_size=16, hidden_size=24, layers=3, heads=3, intermediate_size=48
)
MIXED = [1, 5, 1, 2, 5, 3]  # images and videos, not in order of their length


def our_name(released):
    name = released.removeprefix("weights.vision_encoder.encoder.")
    if name.startswith("patch_embed"):
        return name.replace("patch_embed.proj", "patch_embed")
    blocks, number, inner = name.split(".", 2)
    old = next(old for old in RELEASED if inner.startswith(old))
    return f"{blocks}.{number}.{RELEASED[old]}{inner.removeprefix(old)}"


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def released(request):
    """Our tower with the weights of the golden run."""
    config = FACTS["config"]
    sizes = VisionOptions(
        image_size=config["img_size"],
        patch_size=config["patch_size"],
        hidden_size=config["embed_dim"],
        layers=config["blocks_run"],
        heads=config["num_heads"],
        intermediate_size=config["embed_dim"] * config["mlp_ratio"],
        layer_norm_eps=config["layer_norm_eps"],
        pretrained_frames=config["checkpoint_frames"],
    )
    tower = VisionTower(sizes, request.param)
    weights = load_file(FOLDER / "vit_weights.safetensors")
    tower.load_state_dict({our_name(name): tensor for name, tensor in weights.items()}, strict=True)
    return tower.eval()


@pytest.fixture(scope="module")
def frames():
    """The four golden frames as the tower sees them, ``[4, 3, 224, 224]``."""
    stored = load_file(FOLDER / "vit_frames.safetensors")["frames_u8"][0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (stored / 255 - mean) / std


@pytest.fixture(scope="module")
def outputs():
    return {
        name.removeprefix("out_"): tensor[0]
        for name, tensor in load_file(FOLDER / "vit_outputs.safetensors").items()
    }


def tiny(attention="sdpa", **changes):
    """A tower with weights large enough that a wrong neighbour shows."""
    torch.manual_seed(3)
    tower = VisionTower(TINY.model_copy(update=changes), attention)
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tower


def pixels_of(frames, side=32):
    return torch.randn(frames, 3, side, side, generator=torch.Generator().manual_seed(frames))


def gradients(tower):
    found = {name: parameter.grad.clone() for name, parameter in tower.named_parameters()}
    tower.zero_grad()
    return found


def weighted(features):
    """A loss in which every feature counts differently."""
    return (features * torch.linspace(-1, 1, features.shape[-1])).square().sum()


# ---- released numbers ----


@torch.no_grad()
def test_videos_and_images_give_the_features_of_the_release(released, frames, outputs):
    for name, pixels, shown in (
        ("video4", frames, range(4)),
        ("image", frames[:1], range(1)),
        ("video8", frames.repeat_interleave(2, 0), (0, 3, 7)),
        ("video16", frames.repeat_interleave(4, 0), (0, 6, 15)),
    ):
        features = released(pixels, [len(pixels)])[list(shown)]
        assert (features - outputs[name]).abs().max() <= TOLERANCE, name


@torch.no_grad()
def test_a_batch_of_videos_and_a_mixed_batch_give_the_features_of_the_release(
    released, frames, outputs
):
    batch = released(torch.cat([frames, frames.flip(-1)]), [4, 4])
    assert (batch[:4] - outputs["video4"]).abs().max() <= TOLERANCE
    assert (batch[4:] - outputs["batch2_second"]).abs().max() <= TOLERANCE
    mixed = released(torch.cat([frames, frames[:1], frames.flip(-1)]), [4, 1, 4])
    assert (mixed[:4] - outputs["video4"]).abs().max() <= TOLERANCE
    assert (mixed[4] - outputs["image"][0]).abs().max() <= TOLERANCE
    assert (mixed[5:] - outputs["batch2_second"]).abs().max() <= TOLERANCE


def test_there_is_nothing_in_the_state_but_released_names():
    released = {our_name(name) for name in load_file(FOLDER / "vit_weights.safetensors")}
    config = VisionOptions(image_size=32, hidden_size=24, layers=3, heads=3, intermediate_size=48)
    assert set(VisionTower(config).state_dict()) == released


# ---- VideoMAE ----


def test_it_equals_videomae_in_features_and_gradients():
    tower = tiny()
    config = VideoMAEConfig(
        image_size=32,
        patch_size=16,
        num_frames=4,
        tubelet_size=1,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=48,
        layer_norm_eps=1e-6,
        use_mean_pooling=True,  # so there is no norm at the end
    )
    videomae = VideoMAEModel(config)
    weights = {
        "embeddings.patch_embeddings.projection.weight": tower.patch_embed.weight,
        "embeddings.patch_embeddings.projection.bias": tower.patch_embed.bias,
    }
    for number, block in enumerate(tower.blocks):
        qkv = block.self_attn.qkv
        query, key, value = qkv.weight.chunk(3)
        inner = {
            "attention.attention.query.weight": query,
            "attention.attention.query.bias": qkv.q_bias,
            "attention.attention.key.weight": key,
            "attention.attention.key.bias": torch.zeros_like(qkv.q_bias),
            "attention.attention.value.weight": value,
            "attention.attention.value.bias": qkv.v_bias,
        }
        for theirs, ours in (
            ("attention.output.dense", block.self_attn.projection),
            ("layernorm_before", block.layer_norm1),
            ("layernorm_after", block.layer_norm2),
            ("intermediate.dense", block.mlp.fc1),
            ("output.dense", block.mlp.fc2),
        ):
            inner |= {f"{theirs}.{kind}": tensor for kind, tensor in ours.named_parameters()}
        weights |= {f"encoder.layer.{number}.{name}": tensor for name, tensor in inner.items()}
    result = videomae.load_state_dict(weights, strict=False)
    assert not result.missing_keys
    # in transformers 5.23 keys have no bias, in 5.17 they have; one that is zero changes nothing
    assert {name.rpartition("attention.")[2] for name in result.unexpected_keys} <= {"key.bias"}

    pixels = pixels_of(8)
    # the table over 4 frames of 2 x 2 patches is VideoMAE's, if that is the grid of pretraining
    tower.sizes = tower.sizes.model_copy(update={"pretrained_grid": 2})
    ours = tower(pixels, [4, 4]).reshape(2, 16, 24)
    theirs = videomae(pixels.unflatten(0, (2, 4))).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-5)
    weighted(ours).backward()
    weighted(theirs).backward()
    first = videomae.encoder.layer[0].attention.attention
    for gradient, expected in (
        (
            tower.patch_embed.weight.grad,
            videomae.embeddings.patch_embeddings.projection.weight.grad,
        ),
        (tower.blocks[0].self_attn.qkv.weight.grad[24:48], first.key.weight.grad),
        (tower.blocks[0].self_attn.qkv.v_bias.grad, first.value.bias.grad),
    ):
        assert (gradient - expected).abs().max() <= 1e-4 * expected.abs().max()


# ---- clips of different lengths ----


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [MIXED, [1, 1, 4], [3, 3], [1]])
def test_clips_together_equal_clips_alone(attention, lengths):
    tower = tiny(attention)
    pixels = pixels_of(sum(lengths))
    together = tower(pixels, lengths, (-1, -3))
    assert together.shape == (sum(lengths), 4, 48)
    weighted(together).backward()
    expected = gradients(tower)
    alone = torch.cat([tower(clip, [len(clip)], (-1, -3)) for clip in pixels.split(lengths)])
    weighted(alone).backward()
    assert torch.allclose(together, alone, atol=1e-5)
    for name, gradient in gradients(tower).items():
        assert (gradient - expected[name]).abs().max() <= 1e-4 * gradient.abs().max(), name


def test_frames_seen_alone_are_images():
    tower = tiny()
    pixels = pixels_of(3)
    images = torch.cat([tower(frame[None], [1]) for frame in pixels])
    assert torch.allclose(tower.encode_frames(pixels), images, atol=1e-5)
    assert (tower.encode_frames(pixels) - tower(pixels, [3])).abs().max() > 0.1


def test_every_module_is_called_once_whatever_the_clips_are():
    tower = tiny()
    calls = {}
    for lengths in ([1], [4, 4], MIXED):
        calls[tuple(lengths)] = seen = []
        hooks = [
            module.register_forward_hook(lambda *_, name=name, seen=seen: seen.append(name))
            for name, module in tower.named_modules()
            if next(module.parameters(recurse=False), None) is not None
        ]
        tower(pixels_of(sum(lengths)), lengths)
        for hook in hooks:
            hook.remove()
    first, *others = calls.values()
    assert len(first) == len(set(first)) == 1 + 3 * 6
    assert all(other == first for other in others)


def test_attention_is_called_once_for_each_length(monkeypatch):
    batches = []
    inner = blocks.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def watched(module, query, *others, **settings):
        batches.append(tuple(query.shape))
        return inner(module, query, *others, **settings)

    monkeypatch.setitem(blocks.ALL_ATTENTION_FUNCTIONS, "sdpa", watched)
    tiny(layers=1)(pixels_of(sum(MIXED)), MIXED)
    assert batches == [(2, 3, 4, 8), (1, 3, 8, 8), (1, 3, 12, 8), (2, 3, 20, 8)]


def test_flash_attention_is_told_where_clips_end(monkeypatch):
    """On a CPU: transformers' door to it is replaced by one that reads the ends of the clips."""
    inner = blocks.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def by_ends(module, query, key, value, mask=None, **settings):
        settings.pop("attention_mask", None)
        ends = settings.pop("cu_seq_lens_q", None)
        if ends is None:
            return inner(module, query, key, value, mask, **settings)
        assert ends.dtype == torch.int32
        assert torch.equal(ends, settings.pop("cu_seq_lens_k"))
        lengths = ends.diff().tolist()
        assert settings.pop("max_length_q") == settings.pop("max_length_k") == max(lengths)
        pieces = zip(*(states.split(lengths, 2) for states in (query, key, value)), strict=True)
        return torch.cat([inner(module, *piece, mask, **settings)[0] for piece in pieces], 1), None

    pixels = pixels_of(sum(MIXED))
    expected = tiny()(pixels, MIXED)
    monkeypatch.setattr(blocks, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setitem(blocks.ALL_ATTENTION_FUNCTIONS, "flash_attention_2", by_ends)
    assert torch.allclose(tiny("flash_attention_2")(pixels, MIXED), expected, atol=1e-5)


# ---- layers ----


def test_layers_are_counted_from_the_end_and_joined_in_the_order_asked():
    tower = tiny().eval()
    pixels = pixels_of(3)
    first, last = tower(pixels, [3], (-3,)), tower(pixels, [3], (-1,))
    assert torch.equal(tower(pixels, [3], (-3, -1)), torch.cat([first, last], -1))
    assert torch.equal(tower(pixels, [3], (-1, -3)), torch.cat([last, first], -1))
    shorter = tiny(layers=1)
    shorter.load_state_dict(
        {
            name: tensor
            for name, tensor in tower.state_dict().items()
            if name in shorter.state_dict()
        }
    )
    assert torch.equal(shorter(pixels, [3]), first)


def test_blocks_behind_the_wanted_ones_take_part_only_where_they_are_trained():
    tower = tiny()
    runs = []
    for block in tower.blocks:
        block.register_forward_hook(lambda *_: runs.append(1))
    pixels = pixels_of(2)
    trained = tower(pixels, [2], (-2,))
    weighted(trained).backward()
    assert len(runs) == 3
    assert not any(parameter.grad.any() for parameter in tower.blocks[2].parameters())
    runs.clear()
    with torch.no_grad():
        assert torch.equal(tower(pixels, [2], (-2,)), trained)
    assert len(runs) == 2


# ---- memory, formats, start ----


@pytest.mark.parametrize("lengths", [MIXED, [4]])
def test_recomputing_activations_changes_neither_features_nor_gradients(lengths):
    tower = tiny().train()
    pixels = pixels_of(sum(lengths))
    plain = tower(pixels, lengths, (-1, -2))
    weighted(plain).backward()
    expected = gradients(tower)
    runs = []
    tower.blocks[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    tower.gradient_checkpointing_enable()
    features = tower(pixels, lengths, (-1, -2))
    assert torch.equal(features, plain)
    weighted(features).backward()
    assert len(runs) == 2  # once forward, once again for the backward pass
    for name, gradient in gradients(tower).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-5, atol=1e-6), name


def test_recomputing_lets_gradients_reach_blocks_behind_frozen_patches():
    tower = tiny().train()
    tower.patch_embed.requires_grad_(False)
    tower.gradient_checkpointing_enable()
    weighted(tower(pixels_of(2), [2])).backward()
    assert all(parameter.grad.any() for parameter in tower.blocks.parameters())


def test_it_runs_in_bfloat16_whatever_the_pixels_are():
    tower = tiny()
    pixels = pixels_of(sum(MIXED))
    expected = tower(pixels, MIXED)
    features = tower.bfloat16()(pixels, MIXED)
    assert features.dtype == torch.bfloat16
    assert (features.float() - expected).abs().max() <= 0.05 * expected.abs().max()
    features.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in tower.parameters())


def test_another_size_of_frames_works_with_resized_positions():
    tower = tiny(image_size=48)
    assert tower(pixels_of(3, side=48), [1, 2]).shape == (3, 9, 24)


def test_fresh_weights_follow_the_seed_and_can_learn():
    towers = []
    for _ in range(2):
        torch.manual_seed(11)
        towers.append(VisionTower(TINY))
    states = [tower.state_dict() for tower in towers]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    tower = towers[0]
    assert 0.015 < tower.blocks[0].self_attn.qkv.weight.std() < 0.025
    pixels = pixels_of(4)
    wanted = torch.randn(4, 4, 24)
    optimizer = torch.optim.Adam(tower.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = (tower(pixels, [4]) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_it_is_built_without_weights_where_they_are_loaded_later():
    with init_empty_weights(include_buffers=False):
        tower = VisionTower(VisionOptions())
    assert {parameter.device.type for parameter in tower.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in tower.parameters()) == 290_477_056
    assert len(list(tower.parameters())) == 301


# ---- what is refused ----


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        (
            (3, 3, 32, 32),
            [1, 1],
            "clips have [1, 1] frames, 2 together; the pixels are of 3 frames",
        ),
        ((3, 3, 32, 32), [3, 0], "clips have [3, 0] frames; each must have at least one"),
        ((0, 3, 32, 32), [], "clips have [] frames; each must have at least one"),
        ((3, 3, 48, 32), [3], "[3, 3, 48, 32]; the vision tower takes frames of 32 x 32 pixels"),
        ((1, 3, 3, 32, 32), [3], "[1, 3, 3, 32, 32]; the vision tower takes frames of 32 x 32"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(shape, lengths, message):
    with pytest.raises(DataError) as raised:
        tiny()(torch.zeros(shape), lengths)
    assert message in str(raised.value)


@pytest.mark.parametrize("layers", [(0,), (-4,), (-1, 2), ()])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(UsageError) as raised:
        tiny()(pixels_of(1), [1], layers)
    assert "it has 3, counted from the end, from -1 (the last) to -3 (the first)" in str(
        raised.value
    )


def test_attention_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"'flash_attention_2' needs a GPU and .* flash-attn"):
        VisionTower(TINY, "flash_attention_2")
    with pytest.raises(UsageError, match="'fast' is not known; it must be one of sdpa, eager, fla"):
        VisionTower(TINY, "fast")
