"""Loss terms of the temporal head: laws that hold whatever the predictions are."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tpokit import TpokitError
from tpokit_temporal.annotations import read_annotation
from tpokit_temporal.detector.outputs import Alignment, DetectorOutput, Negative
from tpokit_temporal.losses.terms import LossSettings, temporal_terms
from tpokit_temporal.losses.weights import TERMS
from tpokit_temporal.targets import TemporalTargets, collate_targets

LAYERS, QUERIES, WORDS, DUMMIES, POOL, WIDTH = 3, 6, 4, 3, 5, 8
IN_BATCH = ("align_sentence", "align_dummy")  # contrasts: they depend on the batch by nature
OURS, RELEASED = LossSettings(), LossSettings(released_quirks=True)
ANNOTATIONS = (  # clips, annotation; every video lasts a second a clip
    (9, {"moments_s": [[1.0, 3.0]], "saliency": [0, 4, 12, 0, 0, 0, 0, 0, 0], "saliency_max": 12}),
    (5, {"moments_s": [[0.0, 2.0], [3.0, 4.0]]}),
    (7, {"moments_s": [[2.0, 6.0]], "saliency": [0, 0, 0.25, 1, 0.5, 0.5, 0]}),
    (8, {"moments_s": [[1.0, 2.0], [3.0, 5.0], [6.5, 7.5]], "video": "the first again"}),
)


def made_targets(annotations=ANNOTATIONS):
    videos = ["the first again", *(f"video {row}" for row in range(1, len(annotations)))]
    return collate_targets(
        [
            read_annotation(annotation, clips, float(clips), f"sample {row}", videos[row])
            for row, (clips, annotation) in enumerate(annotations)
        ]
    )


def made_output(targets: TemporalTargets, seed: int = 0) -> DetectorOutput:
    """Random predictions that keep to their ranges."""
    random = torch.Generator().manual_seed(seed)
    samples, clips = targets.saliency.shape

    def draw(*shape):
        return torch.randn(*shape, generator=random)

    text_mask = torch.ones(samples, DUMMIES + WORDS, dtype=torch.bool)
    for row in range(samples):
        text_mask[row, DUMMIES + 1 + row % WORDS :] = False
    attention = draw(samples, clips, DUMMIES + WORDS).masked_fill(~text_mask[:, None], -torch.inf)
    attention = attention.softmax(-1)
    return DetectorOutput(
        logits=draw(LAYERS, samples, QUERIES, 2),
        moments=draw(LAYERS, samples, QUERIES, 2).sigmoid(),
        saliency=draw(samples, clips),
        attention=attention[..., DUMMIES:].sum(-1),
        text_attention=attention,
        clip_mask=targets.clip_mask,
        text_mask=text_mask,
        dummies=draw(samples, DUMMIES, WIDTH),
        global_tokens=draw(POOL, WIDTH),
        negative=Negative(draw(samples, clips), draw(samples, clips).sigmoid(), targets.is_real),
        alignment=Alignment(
            *(draw(samples, WIDTH) for _ in range(4)),
            moment_similarity=draw(samples, clips, DUMMIES + WORDS),
            clips=draw(samples, clips, WIDTH),
            relevant=targets.relevant,
        ),
    )


def parts_of(value) -> dict:
    """By name, of a part of an output, be it a tuple or a dataclass."""
    return value._asdict() if isinstance(value, tuple) else vars(value)


def learnable(output: DetectorOutput) -> tuple[DetectorOutput, list[torch.Tensor]]:
    """The same output, whose float tensors collect gradients; and those."""
    leaves = []

    def visit(value):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            leaves.append(value.clone().requires_grad_())
            return leaves[-1]
        if value is None or isinstance(value, torch.Tensor):
            return value
        return type(value)(*map(visit, parts_of(value).values()))

    return visit(output), leaves


def rows_of(value, rows, key=None):
    """Only some samples of an output; the pool of global tokens belongs to all."""
    if isinstance(value, torch.Tensor):
        if key in ("logits", "moments"):
            return value[:, rows]
        return value if key == "global_tokens" else value[rows]
    return type(value)(*(rows_of(part, rows, name) for name, part in parts_of(value).items()))


def targets_of(targets: TemporalTargets, rows: slice) -> TemporalTargets:
    """Only some samples; whether their negatives are real stays as it was."""
    cut = {
        name: getattr(targets, name)[rows]
        for name in ("moments", "moment_mask", "saliency", "clip_mask", "pairs", "is_real")
    }
    return replace(
        targets,
        **cut,
        moment_counts=targets.moment_counts[rows],
        clip_count=int(cut["clip_mask"].sum()),
        relevant_count=int((cut["saliency"] > 0).sum()),
        real_count=int(cut["is_real"].sum()),
    )


def padded(value, key=None):
    """The same output with three more clips and two more words, full of nonsense."""
    more = {  # field: amounts as of `functional.pad`
        "saliency": (0, 3),
        "attention": (0, 3),
        "clip_mask": (0, 3),
        "relevant": (0, 3),
        "text_mask": (0, 2),
        "text_attention": (0, 2, 0, 3),
        "moment_similarity": (0, 2, 0, 3),
        "clips": (0, 0, 0, 3),
    }
    if not isinstance(value, torch.Tensor):
        return type(value)(*(padded(part, name) for name, part in parts_of(value).items()))
    if key not in more:
        return value
    nonsense = False if value.dtype == torch.bool else 0.75
    return functional.pad(value, more[key], value=nonsense)


def with_more_padding(targets: TemporalTargets) -> TemporalTargets:
    return replace(
        targets,
        saliency=functional.pad(targets.saliency, (0, 3)),
        clip_mask=functional.pad(targets.clip_mask, (0, 3)),
        moments=functional.pad(targets.moments, (0, 0, 0, 1)),
        moment_mask=functional.pad(targets.moment_mask, (0, 1)),
    )


def sums(terms):
    return {name: term.sum.item() for name, term in terms.items()}


# ---- batches ----


@pytest.mark.parametrize("seed", range(3))
def test_samples_at_once_are_the_samples_one_by_one(seed):
    targets = made_targets()
    output = made_output(targets, seed)
    together = temporal_terms(output, targets, OURS)
    alone = [
        temporal_terms(rows_of(output, one), targets_of(targets, one), OURS)
        for one in (slice(row, row + 1) for row in range(len(targets)))
    ]
    for name in TERMS:
        assert together[name].count == sum(terms[name].count for terms in alone)
        if name not in IN_BATCH:
            expected = sum(terms[name].sum.item() for terms in alone)
            assert together[name].sum.item() == pytest.approx(expected, abs=1e-5, rel=1e-5), name


def test_padding_changes_nothing():
    targets = made_targets()
    output = made_output(targets)
    plain = temporal_terms(output, targets, OURS)
    more = temporal_terms(padded(output), with_more_padding(targets), OURS)
    assert {name: term.count for name, term in more.items()} == {
        name: term.count for name, term in plain.items()
    }
    assert sums(more) == {
        name: pytest.approx(value, abs=1e-5) for name, value in sums(plain).items()
    }


def test_padding_gets_no_gradient():
    targets = made_targets()
    output, _ = learnable(made_output(targets))
    terms = temporal_terms(output, targets, OURS)
    sum(term.sum for term in terms.values()).backward()
    away = ~targets.clip_mask
    for part in (output.saliency, output.attention, output.text_attention):
        assert part.grad[targets.clip_mask].any()
        assert not part.grad[away].any()
    assert not output.negative.saliency.grad[~targets.is_real].any()
    assert not output.negative.attention.grad[away].any()
    assert not output.alignment.clips.grad[away].any()


@pytest.mark.parametrize("settings", [OURS, RELEASED])
def test_no_call_costs_nothing_and_keeps_its_graph(settings):
    targets = made_targets(())
    output, leaves = learnable(made_output(targets))
    terms = temporal_terms(output, targets, settings)
    assert tuple(terms) == TERMS
    for term in terms.values():
        assert term.sum.requires_grad
        assert term.sum.item() == term.count == 0
    sum(term.sum for term in terms.values()).backward()
    assert all(leaf.grad is None or not leaf.grad.any() for leaf in leaves)


@pytest.mark.parametrize("settings", [OURS, RELEASED])
def test_one_call_has_no_negative(settings):
    targets = made_targets(ANNOTATIONS[:1])
    output = made_output(targets)._replace(negative=None)
    output, _ = learnable(output)
    terms = temporal_terms(output, targets, settings)
    for name in ("saliency_negative", "attention_negative"):
        assert terms[name].sum.item() == terms[name].count == 0
        assert terms[name].sum.requires_grad
    assert terms["saliency_rank"].sum > 0
    assert all(math.isfinite(value) for value in sums(terms).values())


@pytest.mark.parametrize("settings", [OURS, RELEASED])
def test_without_a_relevant_clip_nothing_is_divided_by_zero(settings):
    nothing = (6, {"moments_s": [[1.0, 2.0]], "saliency": [0] * 6})
    targets = made_targets((nothing, nothing))
    output, leaves = learnable(made_output(targets))
    terms = temporal_terms(output, targets, settings)
    for name in ("distill", "saliency_rank", "attention_rank"):
        assert terms[name].sum.item() == 0
    assert terms["distill"].count == 0
    sum(term.sum for term in terms.values()).backward()
    assert all(math.isfinite(value) for value in sums(terms).values())
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)


# ---- numbers ----


def test_extreme_predictions_have_a_finite_loss_and_gradient():
    targets = made_targets()
    output = made_output(targets)
    at_ends = (output.attention > 0.5).float()
    output, leaves = learnable(
        output._replace(
            logits=output.logits * 1e3,
            moments=(output.moments > 0.5).float(),
            saliency=output.saliency * 1e4,
            attention=at_ends,
            text_attention=(output.text_attention > 0.5).float(),
            negative=Negative(output.negative.saliency * 1e4, 1 - at_ends, output.negative.is_real),
            alignment=output.alignment._replace(
                clips=output.alignment.clips * 1e3,
                moment_similarity=output.alignment.moment_similarity * 1e3,
            ),
        )
    )
    terms = temporal_terms(output, targets, OURS)
    sum(term.sum for term in terms.values()).backward()
    assert all(math.isfinite(value) for value in sums(terms).values())
    assert all(leaf.grad.isfinite().all() for leaf in leaves if leaf.grad is not None)
    assert max(leaf.grad.abs().max() for leaf in leaves if leaf.grad is not None) < 1e7


@pytest.mark.parametrize("settings", [OURS, RELEASED])
def test_bfloat16_predictions_are_scored_in_float32(settings):
    targets = made_targets()
    output = made_output(targets)
    rounded = [leaf.bfloat16() for leaf in learnable(output)[1]]
    low, high = iter(rounded), iter([leaf.float() for leaf in rounded])

    def rebuilt(value, leaves):
        if isinstance(value, torch.Tensor):
            return next(leaves) if value.is_floating_point() else value
        return type(value)(*(rebuilt(part, leaves) for part in parts_of(value).values()))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = temporal_terms(rebuilt(output, low), targets, settings)
    expected = temporal_terms(rebuilt(output, high), targets, settings)
    assert {term.sum.dtype for term in found.values()} == {torch.float32}
    assert sums(found) == sums(expected)


def test_right_predictions_cost_nothing():
    targets = made_targets()
    output = made_output(targets)
    moments = output.moments.clone()
    logits = torch.tensor([-50.0, 50.0]).expand_as(output.logits).clone()
    for row, count in enumerate(targets.moment_counts):
        moments[:, row, :count] = targets.moments[row, :count]
        logits[:, row, :count] = torch.tensor([50.0, -50.0])
    curve = targets.saliency / 12
    output = output._replace(logits=logits, moments=moments, saliency=curve * 10)
    found = sums(temporal_terms(output, targets, OURS))
    for name in ("moment_l1", "moment_giou", "label"):
        assert found[name] == pytest.approx(0, abs=1e-5)
        assert found[f"aux_{name}"] == pytest.approx(0, abs=1e-5)


def test_terms_by_hand():
    four = (4, {"moments_s": [[1.0, 3.0]], "saliency": [0, 1, 1, 0]})
    targets = made_targets((four,))
    level = torch.zeros(1, 4)
    output = made_output(targets)._replace(
        logits=torch.zeros(1, 1, QUERIES, 2),
        moments=torch.tensor([0.5, 0.25]).expand(1, 1, QUERIES, 2),
        saliency=level,
        attention=level + 0.5,
        negative=None,
    )
    found = sums(temporal_terms(output, targets, OURS))
    background = 0.1 * (QUERIES - 1)
    assert found == found | {
        "moment_l1": pytest.approx(0.125),  # the width is half of what it should be
        "moment_giou": pytest.approx(0.5),
        "label": pytest.approx(math.log(2) * (1 + background) / QUERIES),
        "aux_moment_l1": 0,  # there is but one layer
        "saliency_hinge": pytest.approx(2 * 0.2),
        "saliency_rank": pytest.approx(math.log(4), rel=1e-5),  # each of all clips is as likely
        "attention_bce": pytest.approx(4 * math.log(2), rel=1e-5),
    }


def test_a_call_to_another_video_makes_the_ranking_harder():
    targets = made_targets()
    output = made_output(targets)
    alone = replace(targets, is_real=torch.zeros_like(targets.is_real), real_count=0)
    assert targets.is_real.any()
    harder = sums(temporal_terms(output, targets, OURS))
    easier = sums(temporal_terms(output, alone, OURS))
    assert harder["saliency_rank"] > easier["saliency_rank"]
    assert harder["attention_rank"] > easier["attention_rank"]


def test_distillation_moves_attention_and_not_what_it_is_to_resemble():
    targets = made_targets()
    output, _ = learnable(made_output(targets))
    terms = temporal_terms(output, targets, OURS)
    (terms["distill"].sum + terms["orthogonal_dummy"].sum).backward()
    assert output.alignment.moment_similarity.grad is None
    assert output.text_attention.grad.any()
    assert output.dummies.grad.any()
    assert output.global_tokens.grad.any()


def test_settings_weigh_background_and_move_the_margin():
    targets = made_targets()
    output = made_output(targets)
    usual = sums(temporal_terms(output, targets, OURS))
    heavy = sums(temporal_terms(output, targets, LossSettings(background=1.0)))
    wide = sums(temporal_terms(output, targets, LossSettings(margin=5.0)))
    assert heavy["label"] > usual["label"]
    assert wide["saliency_hinge"] > usual["saliency_hinge"]


# ---- running ----


class NoWaiting(TorchDispatchMode):
    """Fails where a device would have to wait for the host: at a value, or a shape that depends on
    values.
    """

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in self.WAITING, name
        if name in ("index", "index_put_", "index_put"):
            assert all(index is None or index.dtype != torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [OURS, RELEASED])
def test_no_device_waits_for_the_host(settings):
    targets = made_targets()
    output, _ = learnable(made_output(targets))
    with NoWaiting():
        terms = temporal_terms(output, targets, settings)
        sum(term.sum for term in terms.values()).backward()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        terms["label"].sum.item()


def test_an_output_without_what_only_training_gives_is_refused():
    targets = made_targets()
    output = made_output(targets)
    with pytest.raises(TpokitError, match="no alignment"):
        temporal_terms(output._replace(alignment=None), targets, OURS)
    with pytest.raises(TpokitError, match="no negatives"):
        temporal_terms(output._replace(negative=None), targets, OURS)
