"""The backbone against transformers' own forward pass, and the promises of the contract."""

import re

import pytest
import torch
from torch import nn
from transformers import AutoProcessor

from tests.plugins.llava_onevision.tiny_onevision import (
    IMAGE,
    ROWS,
    VIDEO,
    batch_of,
    build,
    view_of,
    write_tiny,
)
from tpokit import CheckpointError, DataError
from tpokit.lora import add_lora, lora_layers, merge_lora
from tpokit.model import positions_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("onevision") / "tiny")


@pytest.fixture
def backbone(folder):
    return build(folder)


LONE = [view_of("image", 50, 70, seed=1)]
WIDE = [view_of("image", 30, 100, seed=2)]
LARGE = [view_of("image", 300, 280, seed=3)]
SEVERAL = [view_of("image", 40, 90, seed=4), view_of("image", 64, 64, seed=5)]
CLIP = [view_of("video", 48, 64, frames=4, seed=6)]
LONG_CLIP = [view_of("video", 64, 40, frames=6, seed=7)]
SAMPLES = {
    "lone image": (LONE, "w7 w8 w9"),
    "wide image": (WIDE, "w10"),
    "large image": (LARGE, "w11"),
    "several images": (SEVERAL, "w12 w13"),
    "video": (CLIP, "w14"),
    "image and video": ([*LONE, *CLIP], "w15"),
    "words only": ([], "w16 w17 w18 w19"),
}


def library_output(folder, backbone, samples):
    """Hidden states and logits of transformers' model on its own processor's inputs."""
    library = AutoProcessor.from_pretrained(folder)
    texts = [
        library.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [
                        *({"type": view.kind} for view in views),
                        {"type": "text", "text": words},
                    ],
                }
            ],
            tokenize=False,
            add_generation_prompt=True,
        )
        for views, words in samples
    ]
    images = [[v.frames[0] for v in views if v.kind == "image"] for views, _ in samples]
    videos = [v.frames for views, _ in samples for v in views if v.kind == "video"]
    inputs = library(
        text=texts,
        images=images if any(images) else None,
        videos=videos or None,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    with torch.no_grad():
        output = backbone.model(**inputs, output_hidden_states=True)
    return output.hidden_states[-1], output.logits, inputs["attention_mask"].bool()


@torch.no_grad()
def our_output(backbone, batch):
    embeds = backbone.embed(batch, idle_vision=False)
    hidden, _ = backbone.decode(embeds, batch.mask, positions_of(batch.mask))
    return hidden, backbone.logits(hidden)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_gives_what_transformers_gives(folder, backbone, name):
    expected, expected_logits, mask = library_output(folder, backbone, [SAMPLES[name]])
    batch = batch_of(backbone, [SAMPLES[name]])
    assert torch.equal(batch.mask, mask)
    hidden, logits = our_output(backbone, batch)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=0)


def test_a_mixed_batch_gives_what_transformers_gives_for_it_and_for_each(folder, backbone):
    # transformers takes clips of one length only in a batch, so the mixed batch has one clip
    samples = [SAMPLES[name] for name in SAMPLES if name != "image and video"]
    expected, _, mask = library_output(folder, backbone, samples)
    batch = batch_of(backbone, samples)
    hidden, _ = our_output(backbone, batch)
    torch.testing.assert_close(hidden[mask], expected[mask], atol=1e-5, rtol=0)
    for row, sample in enumerate(samples):
        single, _, _ = library_output(folder, backbone, [sample])
        torch.testing.assert_close(
            hidden[row, batch.mask[row]], single[0], atol=1e-5, rtol=0, msg=sample[1]
        )


def test_clips_of_unequal_length_share_a_batch(folder, backbone):
    samples = [(CLIP, "w7"), (LONG_CLIP, "w8 w9"), ([*CLIP, *LONG_CLIP], "w10")]
    batch = batch_of(backbone, samples)
    hidden, _ = our_output(backbone, batch)
    for row, sample in enumerate(samples[:2]):
        single, _, _ = library_output(folder, backbone, [sample])
        torch.testing.assert_close(hidden[row, batch.mask[row]], single[0], atol=1e-5, rtol=0)
    alone, _ = our_output(backbone, batch_of(backbone, samples[2:]))
    torch.testing.assert_close(hidden[2, batch.mask[2]], alone[0], atol=1e-5, rtol=0)


def test_the_side_of_the_padding_changes_nothing(backbone):
    samples = list(SAMPLES.values())
    right, left = (batch_of(backbone, samples, side) for side in ("right", "left"))
    at_right, _ = our_output(backbone, right)
    at_left, _ = our_output(backbone, left)
    torch.testing.assert_close(at_left[left.mask], at_right[right.mask], atol=1e-5, rtol=0)
    assert bool(at_left.isfinite().all())


@torch.no_grad()
def test_a_cache_changes_nothing(backbone):
    batch = batch_of(backbone, [(LONE, "w7 w8"), ([], "w9 w10 w11")], "left")
    positions = positions_of(batch.mask)
    embeds = backbone.embed(batch, idle_vision=False)
    whole, nothing = backbone.decode(embeds, batch.mask, positions)
    assert nothing is None
    start = embeds.shape[1] - 3
    _, cache = backbone.decode(
        embeds[:, :start], batch.mask[:, :start], positions[:, :start], use_cache=True
    )
    for at in range(start, embeds.shape[1]):
        step = slice(at, at + 1)
        hidden, cache = backbone.decode(
            embeds[:, step], batch.mask[:, : at + 1], positions[:, step], cache, use_cache=True
        )
        torch.testing.assert_close(hidden, whole[:, step], atol=1e-5, rtol=0)


def test_ids_of_task_tokens_can_be_looked_up(backbone):
    ids = torch.tensor([[7, ROWS, ROWS + 5]])
    assert backbone.embed_ids(ids).shape == (1, 3, backbone.width)
    assert torch.equal(backbone.embed_ids(ids)[:, :1], backbone.embed_ids(ids[:, :1]))


# ---- one call for everything ----


def calls_of(module):
    """Batch sizes of the calls of a module."""
    sizes = []
    module.register_forward_hook(lambda _, args, output: sizes.append(len(args[0])))
    return sizes


def test_images_and_videos_of_a_batch_take_one_call_of_tower_and_connector(backbone):
    tower = calls_of(backbone.model.model.vision_tower)
    connector = calls_of(backbone.model.model.multi_modal_projector)
    batch = batch_of(backbone, list(SAMPLES.values()))
    backbone.embed(batch, idle_vision=True)
    assert tower == connector == [3 + 3 + 5 + 2 + 4 + 3 + 4]


def test_without_media_the_tower_rests_unless_it_must_keep_step(backbone):
    tower = calls_of(backbone.model.model.vision_tower)
    batch = batch_of(backbone, [([], "w7 w8")])
    still = backbone.embed(batch, idle_vision=False)
    assert tower == []
    moved = backbone.embed(batch, idle_vision=True)
    assert tower == [1]
    assert torch.equal(still, moved)


@pytest.mark.parametrize("views", [[], LONE, SEVERAL, CLIP])
def test_every_parameter_of_vision_and_connector_takes_part(backbone, views):
    batch = batch_of(backbone, [(views, "w7")])
    backbone.embed(batch, idle_vision=True).sum().backward()
    for part in ("vision", "connector"):
        for member in backbone.parts()[part]:
            named = [("vector", member)]
            if isinstance(member, nn.Module):
                named = list(member.named_parameters())
            for name, parameter in named:
                assert parameter.grad is not None, name
                if not views:
                    assert not parameter.grad.any(), name


def test_a_frozen_tower_keeps_no_graph_and_the_connector_learns(backbone):
    backbone.model.model.vision_tower.requires_grad_(False)
    seen = []
    backbone.model.model.vision_tower.register_forward_hook(
        lambda _, args, output: seen.append(output.last_hidden_state.requires_grad)
    )
    backbone.embed(batch_of(backbone, [(LONE, "w7")]), idle_vision=False).sum().backward()
    assert seen == [False]
    assert bool(backbone.model.model.multi_modal_projector.linear_1.weight.grad.any())


# ---- parts and adapters ----


def test_the_parts_hold_every_parameter_once(backbone):
    counted = [
        id(parameter)
        for members in backbone.parts().values()
        for member in members
        for parameter in ([member] if isinstance(member, nn.Parameter) else member.parameters())
    ]
    assert set(backbone.parts()) == {"vision", "connector", "llm"}
    assert sorted(counted) == sorted(id(parameter) for parameter in backbone.parameters())


def test_lora_hits_the_seven_layers_of_each_block_of_the_llm_and_no_vision(backbone):
    targets = re.compile(backbone.lora_targets())
    linear = {name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    hit = {name for name in linear if targets.fullmatch(name)}
    assert len(hit) == 7 * backbone.model.config.text_config.num_hidden_layers
    assert not [name for name in hit if "vision" in name]
    assert [name for name in linear - hit if name.endswith("q_proj")]  # SigLIP has some too
    add_lora(backbone, backbone.lora_targets(), 4, 8.0, 0.0, seed=0)
    assert {name for name, _ in lora_layers(backbone)} == hit


def test_recomputed_activations_give_lora_the_same_gradients(backbone):
    add_lora(backbone, backbone.lora_targets(), 4, 8.0, 0.0, seed=0)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    backbone.train()
    gradients = []
    for _ in range(2):
        batch = batch_of(backbone, [(LONE, "w7 w8")])
        embeds = backbone.embed(batch, idle_vision=False)
        hidden, _ = backbone.decode(embeds, batch.mask, positions_of(batch.mask))
        backbone.zero_grad()
        hidden.square().sum().backward()
        gradients.append([p.grad.clone() for p in backbone.parameters() if p.requires_grad])
        backbone.gradient_checkpointing_enable()
    assert any(bool(gradient.any()) for gradient in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=1e-5)


# ---- saving ----


def test_a_saved_model_loads_again_with_the_same_numbers(backbone, tmp_path):
    batch = batch_of(backbone, [(LONE, "w7")])
    expected, _ = our_output(backbone, batch)
    backbone.processor.tokenizer.add_tokens(["<task_word>"], special_tokens=True)
    backbone.save(tmp_path / "saved")
    again = build(tmp_path / "saved")
    hidden, _ = our_output(again, batch)
    assert torch.equal(hidden, expected)
    assert "<task_word>" not in again.processor.tokenizer.get_vocab()
    assert again.processor.end_of_turn == backbone.processor.end_of_turn


def test_adapters_must_be_merged_before_saving(backbone, tmp_path):
    add_lora(backbone, backbone.lora_targets(), 4, 8.0, 0.0, seed=0)
    with pytest.raises(CheckpointError, match="merge them"):
        backbone.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    merge_lora(backbone)
    backbone.save(tmp_path / "saved")
    assert build(tmp_path / "saved").rows == ROWS


# ---- features and placeholders that do not match ----


def test_a_lost_placeholder_is_an_error_with_both_numbers(backbone):
    batch = batch_of(backbone, [(LONE, "w7"), (CLIP, "w8")])
    batch.ids[batch.ids == IMAGE] = torch.tensor([7] + [IMAGE] * 43)
    with pytest.raises(
        DataError,
        match=r"image features .* do not match: the media give 44 features, 44 were expected .* "
        r"the text has 43 placeholders; settings: num_image_tokens 16, tile of 56 px, "
        r"4 x 4 patches, anyres_max_9, crops anyres, frames 16; samples: test/0, test/1",
    ):
        backbone.embed(batch, idle_vision=False)


def test_placeholders_without_media_of_their_kind_are_an_error(backbone):
    batch = batch_of(backbone, [(LONE, "w7")])
    batch.ids[0, -1] = VIDEO
    with pytest.raises(DataError, match=r"video .* 0 features, 0 were expected .* 1 placeholders"):
        backbone.embed(batch, idle_vision=False)


def test_another_promise_of_the_processor_is_an_error(backbone):
    batch = batch_of(backbone, [(CLIP, "w7")])
    batch.media["video_tokens"] = [18]
    with pytest.raises(DataError, match=r"give 17 features, 18 were expected"):
        backbone.embed(batch, idle_vision=False)
