"""Several samples in one row of a batch give what they give each in a row of its own."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from tests.plugins.test_backbones_heads_connectors import DATA, PLUGINS, recipe_of, samples_of
from tpokit.attention import attention_ends, chosen_attention, tells_samples_apart
from tpokit.data.collate import Collator
from tpokit.data.conversation import Encoder
from tpokit.model import build_model
from tpokit.parts import part_of_parameters

TASKS = ["region", "temporal"]  # boxes that are given; words of the question and frames


def composed(backbone, folder, **options):
    recipe = recipe_of(backbone, TASKS, folder)
    entry = recipe.backbone.model_copy(
        update={"options": {**recipe.backbone.options, "attention": "auto", **options}}
    )
    model = build_model(recipe.model_copy(update={"backbone": entry}), PLUGINS).eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(model.bridge.output.weight, std=0.3)
    names = [name for task in TASKS for name in DATA[task]]
    processor = model.backbone.processor
    heads = {task: model.head(task) for task in model.heads}
    encoder = Encoder(processor, heads, model.tokens, processor.max_length)
    samples = samples_of(recipe, [*names, "talk", "boxes", "moments"])
    examples = [encoder.encode(sample, "test") for sample in samples]
    return model, Collator(processor, heads, model.tokens, packs=True), examples


def outcome(model, batch):
    """Loss terms, and the gradient of each part as one vector."""
    model.zero_grad()
    found = model(batch)
    torch.stack([term.sum for term in found.values()]).sum().backward()
    terms = {name: term.sum.item() for name, term in found.items()}
    parameters = dict(model.named_parameters())
    gradients = {}
    for name, part in part_of_parameters(model).items():
        if parameters[name].grad is not None:
            gradients.setdefault(part, []).append(parameters[name].grad.flatten())
    return terms, {part: torch.cat(found) for part, found in gradients.items()}


@pytest.mark.parametrize(
    ("backbone", "attention"),
    [*((name, "sdpa") for name in PLUGINS.names("backbone")), ("llava_onevision", "eager")],
)
def test_packed_samples_learn_as_if_they_were_alone(backbone, attention, tmp_path):
    model, collator, examples = composed(backbone, tmp_path, attention=attention)
    assert model.backbone.packs
    alone = replace(collator, packs=False)(examples)  # masked, as for a backbone that cannot pack
    packed = collator.rows([examples[:3], examples[3:4], examples[4:]])
    with torch.no_grad():
        hidden = model.hidden(alone)
        found = iter(model.hidden(packed)[packed.mask])
    for row, example in zip(hidden, examples, strict=True):
        states = torch.stack(list(islice(found, len(example.ids))))
        torch.testing.assert_close(states, row[: len(states)], rtol=1e-5, atol=1e-5)
    terms, gradients = outcome(model, alone)
    found_terms, found_gradients = outcome(model, packed)
    assert found_terms == pytest.approx(terms, rel=1e-5, abs=1e-5)
    assert set(gradients) == {"vision", "connector", "llm", "bridge", *TASKS}
    for part, gradient in gradients.items():
        wrong = (found_gradients[part] - gradient).norm() / gradient.norm()
        assert gradient.norm() > 0, part
        assert wrong < 1e-5, part


def test_flash_attention_is_told_where_samples_end_and_others_are_not(tmp_path):
    model, collator, examples = composed("llava_onevision", tmp_path)
    lengths = [len(example.ids) for example in examples[:3]]
    batch = collator.rows([examples[:2], examples[2:3]])
    llm = model.backbone.model.model.language_model
    assert attention_ends(llm, batch.sequences) == {}
    llm.config._attn_implementation = "flash_attention_2"
    row = max(lengths[0] + lengths[1], lengths[2])
    ends = [0, lengths[0], row, 2 * row]  # the padding of a row is the end of its last sample
    told = attention_ends(llm, batch.sequences)
    assert told["cu_seq_lens_q"].tolist() == told["cu_seq_lens_k"].tolist() == ends
    assert told["cu_seq_lens_q"].dtype == torch.int32
    assert told["max_length_q"] == told["max_length_k"] == row
    assert attention_ends(llm, None) == {}


def test_a_recurrent_model_and_one_with_masks_of_its_own_cannot_pack():
    class Modern:
        _supports_attention_backend, _is_stateful = True, False

    class Recurrent(Modern):
        _is_stateful = True

    class Old(Modern):
        _supports_attention_backend = False

    found = [tells_samples_apart(kind()) for kind in (Modern, Recurrent, Old)]
    assert found == [True, False, False]


def test_flash_attention_is_chosen_for_weights_of_16_bits_on_a_gpu_that_has_it(monkeypatch):
    assert chosen_attention("auto", torch.bfloat16) == "sdpa"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("tpokit.attention.is_flash_attn_2_available", lambda: True)
    found = [
        chosen_attention("auto", dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float32, None)
    ]
    assert found == ["flash_attention_2", "flash_attention_2", "sdpa", "sdpa"]
    assert chosen_attention("eager", torch.bfloat16) == "eager"
