"""The bridge of the release, numbers and gradients: from ids to boxes, prompts of masks, losses."""

import pytest
import torch
from torch.nn import functional

from tests.plugins.videochat2.released_bridge import (
    FACTS,
    RUNS,
    SCALE,
    SPECIAL,
    WEIGHTS,
    WORDS,
    batch_of,
    released_model,
)
from tpokit.inference.generate import generate

TOLERANCE = FACTS["tolerance"]
OUTPUT = "lm.base_model.model.lm_head"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return released_model(tmp_path_factory.mktemp("bridge"))


@pytest.fixture(autouse=True)
def _no_gradient(model):
    model.zero_grad()


def near(found, stored):
    torch.testing.assert_close(found, RUNS[stored].reshape(found.shape), atol=TOLERANCE, rtol=0)


def same_gradient(found, expected):
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


def at(hidden, case, token):
    """Hidden states where a token of the release stands."""
    return hidden[RUNS[f"{case}.input_ids"] == SPECIAL[token]]


def whole_output_row(row):
    """A row of the released output layer, its adapter taken in."""
    adapter = (
        WEIGHTS[f"{OUTPUT}.lora_B.default.weight"][row] @ WEIGHTS[f"{OUTPUT}.lora_A.default.weight"]
    )
    return WEIGHTS[f"{OUTPUT}.base_layer.weight"][row] + SCALE * adapter


def logits_of_the_release(model, hidden, unasked):
    """Logits in the release's order: words, and seven task tokens.

    ``unasked``: its rows of slots and given tokens, which ours has not, as they are never asked.
    """
    triggers = model.bridge.output(hidden)
    columns = [model.backbone.logits(hidden)]
    for name in SPECIAL:  # in the order of their ids
        if name in model.tokens.triggers:
            columns.append(triggers[..., [model.tokens.triggers.index(name)]])
        else:
            columns.append((hidden @ unasked[name])[..., None])
    return torch.cat(columns, -1)


@pytest.fixture
def unasked(model):
    names = [name for name in SPECIAL if name not in model.tokens.triggers]
    return {name: whole_output_row(SPECIAL[name]).requires_grad_() for name in names}


def language_loss(logits, case):
    labels = RUNS[f"{case}.labels"]
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def embeds_of(model, batch):
    embeds = model.backbone.embed(batch, idle_vision=False)
    return model.bridge.write(embeds, batch.tokens, model.given(batch))


def test_a_region_run_is_that_of_the_release(model, unasked):
    batch = batch_of(model, "region", [1, 1])
    mask = batch.mask
    embeds = embeds_of(model, batch)
    torch.testing.assert_close(
        embeds[mask], RUNS["region.inputs_embeds"][mask], atol=TOLERANCE, rtol=0
    )
    hidden = model.hidden(batch)
    slots = at(hidden, "region", "<boxes>")
    near(slots, "region.last_hidden_at_boxes")
    head = model.head("region")
    boxes = head(slots[:, None])
    near(boxes, "region.pred_boxes")
    logits = logits_of_the_release(model, hidden, unasked)
    lengths = mask.sum(1).tolist()
    last = torch.cat([logits[row, end - 6 : end] for row, end in enumerate(lengths)])
    near(last, "region.logits_valid")
    language = language_loss(logits, "region")
    near(language, "region.loss_lm")
    box_loss = as_released(head, boxes, RUNS["region.target_boxes"])
    near(box_loss, "region.loss_box")
    near(language + box_loss, "region.loss_total")
    (language + box_loss).backward()
    compare_gradients(model)


def as_released(head, boxes, targets):
    """2 L1 + GIoU / 5, with the mean of the release over proper boxes."""
    terms = head_with(head, giou_over="proper").loss(boxes, targets)
    means = {name: term.sum / term.count for name, term in terms.items()}
    return 2 * means["l1"] + means["giou"] / 5


def head_with(head, **changes):
    options = head.options.model_copy(update=changes)
    other = type(head)(options, head.host)
    other.box_decoder = head.box_decoder
    return other


def compare_gradients(model):
    region = model.head("region")
    named = dict(model.named_parameters())
    row = model.tokens.ids["<boxes>"] - model.tokens.rows
    block = "backbone.llm.model.layers"
    pairs = {
        "box_token": model.bridge.input.weight.grad[row][None, None],
        "loc_decoder.0.weight": region.box_decoder[0].weight.grad,
        "loc_decoder.2.bias": region.box_decoder[2].bias.grad,
        "project_up.weight": named["backbone.connector.projection.weight"].grad,
        "query_tokens": named["backbone.connector.queries"].grad,
        "vision_encoder.encoder.patch_embed.proj.bias": named[
            "backbone.vision.patch_embed.bias"
        ].grad,
        "vision_layernorm.weight": named["backbone.connector.norm.weight"].grad,
        "lm.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": named[
            f"{block}.0.self_attn.q_proj.lora_A.default.weight"
        ].grad,
        "lm.base_model.model.model.layers.1.mlp.down_proj.lora_B.default.weight": named[
            f"{block}.1.mlp.down_proj.lora_B.default.weight"
        ].grad,
    }
    stored = {name.removeprefix("region.grad.") for name in RUNS if name.startswith("region.grad.")}
    assert stored == {*pairs, f"{OUTPUT}.lora_B.default.weight"}
    for name, found in pairs.items():
        same_gradient(found, RUNS[f"region.grad.{name}"])
    # the adapter of the output layer: that of the words is ours; a trigger's is taken into its row
    expected = RUNS[f"region.grad.{OUTPUT}.lora_B.default.weight"]
    found = torch.zeros_like(expected)
    found[:WORDS] = named["backbone.llm.lm_head.lora_B.default.weight"].grad
    right = WEIGHTS[f"{OUTPUT}.lora_A.default.weight"]
    for place, trigger in enumerate(model.tokens.triggers):
        found[SPECIAL[trigger]] = SCALE * right @ model.bridge.output.weight.grad[place]
    known = [*range(WORDS), *(SPECIAL[trigger] for trigger in model.tokens.triggers)]
    same_gradient(found[known], expected[known])


@pytest.mark.parametrize("case", ["", "all_invalid_"])
def test_the_loss_of_boxes_is_that_of_the_release(model, case):
    predicted = RUNS[f"boxloss.{case}pred"]
    found = as_released(model.head("region"), predicted, RUNS[f"boxloss.{case}target"])
    near(found, f"boxloss.{case}value")


def test_a_track_run_is_that_of_the_release(model, unasked):
    batch = batch_of(model, "track", [4], RUNS["track.input_box"])
    near(embeds_of(model, batch), "track.inputs_embeds")
    hidden = model.hidden(batch)
    slot = at(hidden, "track", "<tracking>")
    near(slot, "track.last_hidden_at_tracking")
    head = model.head("mask")
    prompts, box = head(slot[:, None], None), head.box_decoder(slot)
    near(prompts, "track.mask_prompt_pred")
    near(box, "track.box_pred")
    prompt_loss = (prompts - RUNS["track.mask_prompt_target"]).abs().mean()
    box_loss = (box - RUNS["track.input_box"]).abs().mean()
    language = language_loss(logits_of_the_release(model, hidden, unasked), "track")
    near(prompt_loss, "track.loss_prompt_l1")
    near(box_loss, "track.loss_box_l1")
    near(language, "track.loss_lm")
    total = language + prompt_loss + box_loss
    near(total, "track.loss_total")
    total.backward()
    row = model.tokens.ids["<tracking>"] - model.tokens.rows
    same_gradient(model.bridge.input.weight.grad[row], RUNS["track.grad.track_token"][0, 0])
    same_gradient(head.box_encoder[0].weight.grad, RUNS["track.grad.loc_encoder.0.weight"])


def test_a_temporal_slot_is_that_of_the_release(model):
    batch = batch_of(model, "temporal", [4])
    near(embeds_of(model, batch), "temporal.inputs_embeds")
    near(at(model.hidden(batch), "temporal", "<temp>"), "temporal.prompt_token")


@pytest.mark.parametrize(
    ("order", "stored"), [("before_trigger", "release"), ("after_trigger", "with_trigger")]
)
def test_both_orders_of_decoding_give_the_stored_states(model, unasked, order, stored):
    batch = batch_of(model, "infer", [1])
    with torch.no_grad():
        last = model.hidden(batch)[0, -1]
        near(logits_of_the_release(model, last, unasked), "infer.next_token_logits")
        kept = model.bridge.output.weight.clone()
        model.bridge.output.weight.zero_()  # so that the model calls the head at once
        model.bridge.output.weight[model.tokens.triggers.index("<box_begin>")] = 100 * last
        [found] = generate(model, batch, max_new_tokens=1, slots=order)
        model.bridge.output.weight.copy_(kept)
        [(task, slots)] = found.calls
        assert task == "region"
        near(slots[0], f"infer.hidden_{stored}")
        near(model.head("region")(slots[None])[0], f"infer.box_{stored}")
