"""The detector of the temporal head: laws that hold for any weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpokit.errors import CheckpointError
from tpokit_temporal.detector import layers_in_pieces, precision
from tpokit_temporal.detector.network import Detector
from tpokit_temporal.detector.outputs import DetectorOutput
from tpokit_temporal.detector.positions import endpoint_channels
from tpokit_temporal.options import TemporalOptions
from tpokit_temporal.released_names import UNUSED, from_released, our_names, to_released

CLIP_WIDTH, WORD_WIDTH = 6, 10
SMALL = {
    "width": 16,
    "feed_forward": 24,
    "heads": 4,
    "encoder_layers": 2,
    "queries": 3,
    "dummies": 3,
    "global_tokens": 4,
    "global_tokens_used": 2,
}


def detector(seed=0, **options) -> Detector:
    torch.manual_seed(seed)
    return Detector(TemporalOptions(**{**SMALL, **options}), CLIP_WIDTH, WORD_WIDTH).eval()


def batch(clip_counts, word_counts, seed=0) -> dict[str, Tensor]:
    """Random features, padding that is not 0, and some relevant clips."""
    random = torch.Generator().manual_seed(seed)
    b, clips, words = len(clip_counts), max(clip_counts), max(word_counts)
    clip_mask = torch.arange(clips) < torch.tensor(clip_counts)[:, None]
    features = torch.randn(b, clips, CLIP_WIDTH - 2, generator=random)
    return {
        "clips": torch.cat([features, endpoint_channels(clip_mask)], -1),
        "clip_mask": clip_mask,
        "words": torch.randn(b, words, WORD_WIDTH, generator=random),
        "word_mask": torch.arange(words) < torch.tensor(word_counts)[:, None],
        "task_token": torch.randn(b, WORD_WIDTH, generator=random),
        "relevant": (torch.rand(b, clips, generator=random) < 0.5) & clip_mask,
        "negatives": torch.ones(b, dtype=torch.bool),
    }


def of_sample(inputs: dict[str, Tensor], row: int, words_from: int | None = None) -> dict:
    """One sample alone and without padding, perhaps with the words of another."""
    other = row if words_from is None else words_from
    clips, words = int(inputs["clip_mask"][row].sum()), int(inputs["word_mask"][other].sum())
    alone = {name: inputs[name][row : row + 1, :clips] for name in ("clips", "clip_mask")}
    alone |= {name: inputs[name][other : other + 1, :words] for name in ("words", "word_mask")}
    alone["task_token"] = inputs["task_token"][other : other + 1]
    alone["relevant"] = inputs["relevant"][row : row + 1, :clips]
    return alone


def tensors_of(found: DetectorOutput) -> dict[str, Tensor]:
    named = found._asdict()
    named |= {} if found.alignment is None else found.alignment._asdict()
    if found.negative is not None:
        named |= {f"{name}_negative": value for name, value in vars(found.negative).items()}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def total(found: DetectorOutput) -> Tensor:
    """A number that depends on every output that can teach."""
    values = [value for value in tensors_of(found).values() if value.requires_grad]
    return sum(
        (value.double() * torch.arange(value[0].numel()).view_as(value[0])).sum()
        for value in values
    )


# ---- a sample and its batch ----


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), min_size=2, max_size=4))
def test_a_result_does_not_depend_on_the_batch_it_is_in(lengths):
    made = detector()
    inputs = batch(*zip(*lengths, strict=True))
    with torch.no_grad():
        together = made(**inputs)
        for row, (clips, words) in enumerate(lengths):
            alone = made(**of_sample(inputs, row))
            negative = made(**of_sample(inputs, row, (row + 1) % len(lengths)))
            words += 1 + SMALL["dummies"]
            pairs = [
                (together.logits[:, row], alone.logits[:, 0]),
                (together.moments[:, row], alone.moments[:, 0]),
                (together.saliency[row, :clips], alone.saliency[0]),
                (together.attention[row, :clips], alone.attention[0]),
                (together.text_attention[row, :clips, :words], alone.text_attention[0]),
                (together.dummies[row], alone.dummies[0]),
                (together.negative.saliency[row, :clips], negative.saliency[0]),
                (together.negative.attention[row, :clips], negative.attention[0]),
            ]
            for name in ("moment", "other", "sentence", "dummy_sentence"):
                ours = getattr(together.alignment, name)[row]
                pairs.append((ours, getattr(alone.alignment, name)[0]))
            pairs.append((together.alignment.clips[row, :clips], alone.alignment.clips[0]))
            likeness = together.alignment.moment_similarity[row, :clips, :words]
            pairs.append((likeness, alone.alignment.moment_similarity[0]))
            for found, expected in pairs:
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_with_released_quirks_it_does_depend_on_the_batch():
    made = detector(released_quirks=True, heads=8)
    inputs = batch((9, 4), (6, 2))
    with torch.no_grad():
        apart = made(**inputs).saliency[0] - made(**of_sample(inputs, 0)).saliency[0]
    assert apart.abs().max() > 1e-3


def test_the_task_token_is_one_more_word_behind_the_last():
    made = detector()
    inputs = batch((5, 5), (4, 2))
    words = torch.cat([inputs["words"], torch.zeros(2, 1, WORD_WIDTH)], 1)
    for row, count in enumerate((4, 2)):
        words[row, count] = inputs["task_token"][row]
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    with torch.no_grad():
        with_token = made(**inputs)
        written = made(**{**inputs, "words": words, "word_mask": mask, "task_token": None})
    assert torch.equal(with_token.text_mask, written.text_mask)
    torch.testing.assert_close(with_token.moments, written.moments)
    torch.testing.assert_close(with_token.text_attention, written.text_attention)


def test_a_task_token_is_enough_of_a_query():
    made = detector()
    inputs = batch((5,), (0,))
    with torch.no_grad():
        found = made(**inputs)
    assert found.text_mask.shape == (1, SMALL["dummies"] + 1)
    assert all(bool(value.isfinite().all()) for value in tensors_of(found).values())


def test_a_sample_alone_has_no_negative():
    assert detector()(**batch((5,), (3,))).negative is None


def test_what_is_not_asked_for_is_not_there():
    inputs = batch((5, 4), (3, 2))
    found = detector()(**{**inputs, "relevant": None, "negatives": None})
    assert found.negative is None
    assert found.alignment is None


# ---- learning ----


@pytest.mark.parametrize(
    "options", [{}, {"decoder_layers": 1}, {"released_quirks": True, "heads": 8}]
)
def test_every_parameter_gets_a_gradient(options):
    made = detector(**options).train()
    found = made(**batch((7, 5, 6), (4, 2, 3)))
    total(found).backward()
    without = [name for name, value in made.named_parameters() if value.grad is None]
    assert not without
    assert all(bool(value.grad.isfinite().all()) for value in made.parameters())


def test_the_gradient_reaches_the_task_token_from_every_output_for_the_losses():
    inputs = batch((7, 5), (4, 2))
    inputs["task_token"].requires_grad_()
    made = detector()
    found = tensors_of(made(**inputs))
    reaches = {
        name
        for name, value in found.items()
        if value.requires_grad
        and torch.autograd.grad(
            (value.double() * torch.arange(value[0].numel()).view_as(value[0])).sum(),
            inputs["task_token"],
            retain_graph=True,
            allow_unused=True,
        )[0]
        is not None
    }
    of_video = {"global_tokens", "moment", "other", "clips"}
    assert reaches == {name for name, value in found.items() if value.requires_grad} - of_video


def test_a_video_of_one_clip_teaches_with_finite_gradients():
    made = detector().train()
    total(made(**batch((1, 1), (2, 3)))).backward()
    largest = max(float(value.grad.abs().max()) for value in made.parameters())
    assert largest < 1e6


def test_dropout_draws_from_the_seed_and_only_in_training():
    made, inputs = detector(), batch((6, 5), (4, 3))
    assert torch.equal(made(**inputs).saliency, made(**inputs).saliency)
    made.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(made(**inputs).saliency)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_without_dropout_training_is_inference():
    made, inputs = detector(dropout=0.0, input_dropout=0.0), batch((6, 5), (4, 3))
    evaluated = made(**inputs).moments
    torch.testing.assert_close(made.train()(**inputs).moments, evaluated)


def test_fresh_weights_start_from_no_correction_unless_as_released():
    assert not detector().decoder.correction[-1].weight.any()
    released = detector(released_quirks=True, heads=8).decoder.correction[-1]
    assert released.weight.any()
    assert not released.bias.any()


# ---- ways of computing ----


@pytest.fixture
def as_elsewhere(monkeypatch):
    """Compute as on other devices than a CPU."""

    def switch():
        monkeypatch.setattr(layers_in_pieces, "works_on", lambda x: False)

    return switch


def test_a_cpu_computes_the_same_in_its_own_way(as_elsewhere):
    inputs = batch((9, 4, 7), (6, 2, 0))
    inputs = {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
    for token in ("words", "clips", "task_token"):
        inputs[token].requires_grad_()
    found = []
    for _ in range(2):
        made = detector(released_quirks=True, heads=8).double()
        output = made(**inputs)
        total(output).backward()
        grads = {name: value.grad for name, value in made.named_parameters()}
        grads |= {name: inputs[name].grad.clone() for name in ("words", "clips", "task_token")}
        for name in ("words", "clips", "task_token"):
            inputs[name].grad = None
        found.append(tensors_of(output) | grads)
        as_elsewhere()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-5, atol=1e-5, msg=name)


def test_no_value_has_to_be_known_on_the_host(as_elsewhere):
    as_elsewhere()  # tensors on this device have shapes but no values
    made = detector(released_quirks=True, heads=8).to("meta").train()
    inputs = {name: value.to("meta") for name, value in batch((7, 5), (4, 2)).items()}
    found = made(**inputs)
    total = sum(v.sum() for v in tensors_of(found).values() if v.requires_grad)
    total.backward()
    assert found.saliency.shape == (2, 7)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_16_bit_weights_and_autocast_give_about_the_same_in_float32(
    as_elsewhere, monkeypatch, elsewhere, autocast
):
    monkeypatch.setattr(precision, "bfloat16_is_emulated", lambda: False)
    if elsewhere:
        as_elsewhere()
    inputs = batch((6, 5), (4, 3))
    made = detector(global_tokens_used=4)  # all of them: which are best may hang on a rounding
    expected = tensors_of(made(**inputs))
    made = made.train() if autocast else made.bfloat16().train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = made(**inputs)
    sum(v.float().sum() for v in tensors_of(found).values() if v.requires_grad).backward()
    made.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = tensors_of(made(**inputs))
    for name in ("logits", "moments", "saliency", "attention"):
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], expected[name], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("emulated", [False, True])
def test_autocast_is_left_alone_unless_the_cpu_only_emulates_it(monkeypatch, emulated):
    monkeypatch.setattr(precision, "bfloat16_is_emulated", lambda: emulated)
    made, inputs = detector(), batch((6, 5), (4, 3))
    exact = made(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(**inputs)
    same = torch.equal(found.saliency, exact.saliency)
    assert same == emulated


# ---- names of the release ----


def test_parameters_survive_the_way_to_released_names_and_back():
    made = detector(decoder_layers=3)
    released = to_released(made.state_dict(), made.options)
    assert set(our_names(made.options).values()) == set(made.state_dict())
    stored = {f"cg_model.{name}": value for name, value in released.items()}
    stored |= {f"cg_model.{name}": torch.zeros(1) for name in UNUSED}
    back = from_released(stored, made.options)
    assert all(torch.equal(back[name], value) for name, value in made.state_dict().items())


def test_parameters_of_another_detector_are_refused():
    made = detector()
    released = to_released(made.state_dict(), made.options)
    released["transformer.encoder.layers.2.norm1.bias"] = released.pop("class_embed.bias")
    with pytest.raises(CheckpointError) as caught:
        from_released(released, made.options)
    assert str(caught.value) == (
        "not the parameters of a CG-DETR with these options: missing class_embed.bias; unknown "
        "transformer.encoder.layers.2.norm1.bias"
    )


def test_the_released_model_has_the_parameters_that_are_published():
    options = TemporalOptions(preset="videochat_tpo")
    with torch.device("meta"):
        made = Detector(options, 770, 4096)
    assert len(our_names(options)) == 285 - len(UNUSED)
    unused = 100 * 256 + 2 * 256 + 2 * 4096 + 256 * 4096 + 256
    assert sum(value.numel() for value in made.parameters()) == 13_953_835 - unused
