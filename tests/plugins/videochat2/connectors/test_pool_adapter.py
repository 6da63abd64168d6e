"""The pool-adapter: parity with the published class, laws of averaging, the stage over time."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from tpokit import DataError, UsageError
from tpokit.interfaces import ConnectorHost
from tpokit_videochat2.connectors.options import PoolAdapterOptions
from tpokit_videochat2.connectors.pool_adapter import PoolAdapter, pool

FOLDER = Path(__file__).parents[3] / "golden" / "pool_adapter"
CASES = json.loads((FOLDER / "pool_adapter.json").read_text())["cases"]
GOLDEN = load_file(FOLDER / "pool_adapter.safetensors")
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # why: tests/golden/pool_adapter/README.md
HOST = ConnectorHost(vision=4, hidden=6, grid=(4, 6), leading=1)
WINDOWS = st.tuples(*[st.tuples(st.integers(1, 3), st.integers(1, 3))] * 3)
"""For time, rows and columns: how many windows, and how long each is."""


def adapter(host=HOST, **options):
    return PoolAdapter(PoolAdapterOptions(**options), host)


def features(frames, host=HOST):
    rows, columns = host.grid
    return torch.randn(frames, host.leading + rows * columns, host.vision)


def pooled_only(host=HOST, **options):
    """One whose tokens are the averages themselves."""
    made = adapter(host, norm=False, **options)
    made.mlp = nn.Identity()
    return made


# ---- parity with the published class ----


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_gradients_of_the_published_class_are_met(name):
    case = CASES[name]
    golden = {k.removeprefix(f"{name}."): v for k, v in GOLDEN.items() if k.startswith(f"{name}.")}
    host = ConnectorHost(case["din"], case["dout"], (case["grid"], case["grid"]), leading=1)
    made = adapter(host, grid=case["pool"], norm=False).to(getattr(torch, case["dtype"]))
    made.load_state_dict(
        {k.removeprefix("param."): v for k, v in golden.items() if k.startswith("param.")},
        strict=True,
    )
    given_features = golden["input"].flatten(0, 2).requires_grad_()
    tokens = made(given_features, [1] * case["b"]).unflatten(0, (case["b"], 1, -1))
    (tokens * golden["cotangent"]).sum().backward()
    gradients = {f"grad.{k}": p.grad for k, p in made.named_parameters()}
    ours = {"output": tokens, "grad_input": given_features.grad, **gradients}
    for what, value in ours.items():
        expected = golden[what].reshape(value.shape)
        tolerance = TOLERANCE[case["dtype"]]
        if case["dtype"] == "bfloat16" and what.startswith("grad"):
            tolerance *= max(1.0, float(expected.abs().max()))
        assert value.dtype == expected.dtype
        assert (value - expected).abs().max() <= tolerance, what


def test_a_grid_that_does_not_divide_is_refused_with_both_numbers():
    host = ConnectorHost(vision=4, hidden=6, grid=(4, 4), leading=1)
    message = r"4 rows of patches cannot be averaged to 3 rows .*grid may be 1, 2, 4, or set mode: "
    with pytest.raises(UsageError, match=message):
        adapter(host, grid=3)
    with pytest.raises(UsageError, match=message):
        PoolAdapter.tokens(PoolAdapterOptions(grid=3), host, frames=1)


# ---- laws of averaging ----


@settings(max_examples=40, deadline=None)
@given(windows=WINDOWS, seed=st.integers(0, 9))
def test_a_token_is_the_mean_of_its_window(windows, seed):
    shape = [count * length for count, length in windows]
    size = tuple(count for count, _ in windows)
    clips = torch.randn(2, *shape, 3, generator=torch.Generator().manual_seed(seed))
    averaged = pool(clips, size)
    assert averaged.shape == (2, *size, 3)
    for t, n, m in torch.cartesian_prod(*(torch.arange(count) for count in size)).tolist():
        places = [
            slice(place * length, (place + 1) * length)
            for place, (_, length) in zip((t, n, m), windows, strict=True)
        ]
        expected = clips[:, *places].mean((1, 2, 3))
        assert torch.allclose(averaged[:, t, n, m], expected, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(windows=WINDOWS)
def test_a_patch_gets_the_gradient_of_its_window_divided_by_the_size_of_the_window(windows):
    lengths = [length for _, length in windows]
    size = tuple(count for count, _ in windows)
    clips = torch.randn(1, *(c * n for c, n in windows), 2, requires_grad=True)
    cotangent = torch.randn(1, *size, 2)
    (pool(clips, size) * cotangent).sum().backward()
    expected = cotangent
    for axis, length in enumerate(lengths, start=1):
        expected = expected.repeat_interleave(length, dim=axis) / length
    assert torch.allclose(clips.grad, expected, atol=1e-6)


def test_as_many_tokens_as_patches_is_the_identity_and_one_is_the_mean():
    seen = features(2)
    patches = seen[:, 1:]
    assert torch.equal(pooled_only(grid=HOST.grid)(seen, [2]), patches.flatten(0, 1))
    assert torch.allclose(pooled_only(grid=1)(seen, [1, 1]), patches.mean(1), atol=1e-6)


def test_pooling_twice_is_pooling_once():
    clips = torch.randn(3, 1, 8, 8, 5)
    twice = pool(pool(clips, (1, 4, 4)), (1, 2, 2))
    assert torch.allclose(twice, pool(clips, (1, 2, 2)), atol=1e-6)


def test_moving_the_image_by_a_window_moves_the_tokens_by_a_place():
    clips = torch.randn(1, 1, 8, 8, 3)
    moved = pool(clips.roll((2, 4), dims=(2, 3)), (1, 4, 2))
    assert torch.allclose(moved, pool(clips, (1, 4, 2)).roll((1, 1), dims=(2, 3)), atol=1e-6)


def test_tokens_stand_frame_by_frame_row_by_row():
    host = ConnectorHost(vision=1, hidden=1, grid=(2, 4))
    numbered = torch.arange(16.0).reshape(2, 8, 1)
    tokens = pooled_only(host, grid=[2, 2])(numbered, [2])
    assert tokens.flatten().tolist() == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5]


@pytest.mark.parametrize("leading", [0, 1, 3])
def test_leading_tokens_are_not_seen_and_get_no_gradient(leading):
    host = HOST._replace(leading=leading)
    made = adapter(host, grid=[2, 3])
    seen = features(2, host).requires_grad_()
    tokens = made(seen, [2])
    tokens.square().sum().backward()
    assert tokens.shape == (2 * 6, 6)
    assert seen.grad[:, :leading].count_nonzero() == 0
    assert (seen.grad[:, leading:] != 0).all()


def test_several_frames_are_each_alone():
    made = adapter(grid=2)
    seen = features(5)
    alone = torch.cat([made(frame[None], [1]) for frame in seen])
    assert torch.allclose(made(seen, [2, 3]), alone, atol=1e-6)


def test_the_norm_is_that_of_float32_and_can_be_left_out():
    made = adapter(grid=2)
    assert {"norm.weight", "norm.bias"} < dict(made.named_parameters()).keys()
    seen = features(1).bfloat16() * 100
    normed = made.norm(seen)
    assert normed.dtype == torch.bfloat16
    assert torch.equal(normed, nn.functional.layer_norm(seen.float(), (4,)).bfloat16())
    assert [n for n, _ in adapter(grid=2, norm=False, hidden=9).named_parameters()] == [
        "mlp.0.weight",
        "mlp.0.bias",
        "mlp.2.weight",
        "mlp.2.bias",
    ]


# ---- the stage over time ----


def test_frames_are_averaged_in_equal_groups_and_an_image_stays_one():
    made = pooled_only(grid=1, frames=2)
    seen = features(4 + 1 + 6)
    means = seen[:, 1:].mean(1)
    groups = [means[0:2], means[2:4], means[4:5], means[5:8], means[8:11]]
    expected = torch.stack([group.mean(0) for group in groups])
    assert torch.allclose(made(seen, [4, 1, 6]), expected, atol=1e-6)
    assert torch.allclose(made(seen[:8], [4, 4]), pooled_by_hand(means[:8], 2), atol=1e-6)


def pooled_by_hand(means, length):
    return torch.stack([group.mean(0) for group in means.split(length)])


def test_frames_that_do_not_divide_are_refused():
    made = adapter(grid=2, frames=4)
    message = r"6 frames cannot be averaged to 4 in equal groups; .*mode: adaptive"
    with pytest.raises(DataError, match=message):
        made.tokens(made.options, HOST, frames=6)
    with pytest.raises(DataError, match=message):
        made(features(10), [4, 6])


# ---- the adaptive mode ----


def test_adaptive_takes_any_grid_and_is_exact_where_it_divides():
    exact, adaptive = adapter(grid=[2, 3]), adapter(grid=[2, 3], mode="adaptive")
    adaptive.load_state_dict(exact.state_dict())
    seen = features(2)
    assert torch.equal(adaptive(seen, [2]), exact(seen, [2]))
    uneven = pooled_only(grid=[3, 4], mode="adaptive")(seen, [2])
    planes = seen[:, 1:].unflatten(1, HOST.grid).permute(0, 3, 1, 2)
    expected = nn.functional.adaptive_avg_pool2d(planes, (3, 4)).permute(0, 2, 3, 1)
    assert torch.allclose(uneven, expected.flatten(0, 2), atol=1e-6)


def test_adaptive_takes_any_number_of_frames():
    made = adapter(grid=2, frames=4, mode="adaptive")
    frames = [6, 3, 1, 9]
    tokens = [made.tokens(made.options, HOST, count) for count in frames]
    assert tokens == [16, 12, 4, 16]
    assert len(made(features(sum(frames)), frames)) == sum(tokens)


def test_a_grid_finer_than_the_patches_is_refused_in_every_mode():
    for mode in ("exact", "adaptive"):
        with pytest.raises(UsageError, match="asks for 5 rows of tokens, but a frame has only 4"):
            adapter(grid=[5, 6], mode=mode)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "grid\n.*Field required"),
        ({"grid": "16x16"}, r"must be a whole number, or \[rows, columns\]"),
        ({"grid": [2, 2, 2]}, r"must be a whole number, or \[rows, columns\]"),
        ({"grid": True}, r"must be a whole number, or \[rows, columns\]"),
        ({"grid": 0}, "grid.0\n.*greater than or equal to 1"),
        ({"grid": 2, "frames": 0}, "frames\n.*greater than or equal to 1"),
        ({"grid": 2, "mode": "max"}, "mode\n.*'exact' or 'adaptive'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        PoolAdapterOptions.model_validate(options)
