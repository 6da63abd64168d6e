"""Rows of several samples: every index points at what it names."""

import pytest
import torch

from tests.core.data.fakes import ROWS, PointHead, SeeingHead, WordProcessor, write_image
from tpokit import ContextNeed, Media, MediaNeed, NoOptions, Sample, TokenTable, Turn
from tpokit.data.collate import Collator
from tpokit.data.conversation import Encoder
from tpokit.types import IGNORED


class FramedProcessor(WordProcessor):
    def collate_frames(self, views):
        return [view.path.name for view in views for _ in view.frames]


class LookingHead(SeeingHead):
    """Wants the words of the question and the vision tower."""

    def context_need(self):
        return ContextNeed(media=MediaNeed(frames=4), question=True, vision=True)


@pytest.fixture
def encoder():
    processor = FramedProcessor()
    heads = {kind.task: kind(NoOptions(), 4) for kind in (PointHead, LookingHead)}
    tokens = TokenTable.build(
        ROWS, {task: head.tokens for task, head in heads.items()}, processor.tokenizer
    )
    return Encoder(processor, heads, tokens, 200)


def talk(name, *texts, **fields):
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[place % 2], text) for place, text in enumerate(texts))
    return Sample(name, turns, **fields)


@pytest.fixture
def batch(encoder, tmp_path):
    first, second = (Media("image", write_image(tmp_path / f"{name}.png")) for name in "ab")
    samples = [
        talk("talk", "where", "it is here"),
        talk(
            "seen", "is it here", "<sight> <sight>", media=(first,), targets={"sight": (1.0, 2.0)}
        ),
        talk(
            "given", "the <point>", "no <point>", given={"point": (0.5,)}, targets={"point": (3.0,)}
        ),
        talk("other", "the ring", "<sight>", media=(second,), targets={"sight": (4.0,)}),
        talk("last", "and", "no"),
    ]
    examples = [encoder.encode(sample, "data") for sample in samples]
    collate = Collator(encoder.processor, encoder.heads, encoder.tokens, packs=True)
    return collate.rows([examples[:1], examples[1:4], examples[4:]]), examples


def test_every_index_points_at_what_it_names(encoder, batch):
    packed, examples = batch
    tokens = encoder.tokens
    assert packed.samples == ("data/talk", "data/seen", "data/given", "data/other", "data/last")
    for task, rows in (("point", [1]), ("sight", [1, 1, 1])):
        where = packed.slots[task]
        assert where.rows.tolist() == rows
        found = packed.ids[where.rows[:, None], where.positions]
        assert found.tolist() == [list(tokens.slot_ids(task))] * len(rows)
    given = packed.given["point"]
    assert packed.ids[given.rows, given.positions].tolist() == [tokens.given_id("point")]
    assert packed.targets["sight"].tolist() == [1.0, 2.0, 4.0]
    assert (packed.ids[packed.tokens.rows, packed.tokens.positions] - ROWS).tolist() == (
        packed.tokens.which.tolist()
    )
    names = encoder.processor.tokenizer.convert_ids_to_tokens
    words = packed.contexts["sight"].question
    asked = [
        names(packed.ids[row, at[mask]].tolist())
        for row, at, mask in zip(words.rows, words.positions, words.mask, strict=True)
    ]
    assert asked == [["is", "it", "here"], ["is", "it", "here"], ["the", "ring"]]
    frames = packed.contexts["sight"].frames
    assert [frames.pixels[at] for at in frames.which[:, 0]] == ["a.png", "a.png", "b.png"]
    last = packed.questions
    assert last.rows.tolist() == [0, 1, 1, 1, 2]
    assert packed.ids[last.rows, last.positions[:, 0]].tolist() == [
        example.ids[example.questions[-1][0]] for example in examples
    ]


def test_a_sample_sees_itself_alone(batch):
    packed, examples = batch
    sequences = packed.sequences
    lengths = [len(example.ids) for example in examples]
    row = sum(lengths[1:4])
    assert packed.ids.shape == (3, row)
    starts = [0, row, row + lengths[1], row + lengths[1] + lengths[2], 2 * row]
    assert sequences.bounds.tolist() == [*starts, 3 * row]
    assert sequences.longest == row, "padding counts as the end of a row's last sample"
    assert sequences.positions[0].tolist() == list(range(row))
    assert sequences.positions[1].tolist() == [at for size in lengths[1:4] for at in range(size)]
    assert packed.mask.sum(1).tolist() == [lengths[0], row, lengths[4]]


def test_the_first_token_of_a_sample_is_never_predicted_from_the_one_before(encoder, batch):
    _, examples = batch
    examples[1].labels[0] = examples[1].ids[0]  # as with a template that opens with an answer
    collate = Collator(encoder.processor, encoder.heads, encoder.tokens, packs=True)
    packed = collate.rows([examples[:2]])
    border = len(examples[0].ids)
    assert packed.labels[0, border] == IGNORED
    assert border - 1 not in packed.learnt.positions.tolist()
    alone = [collate([example]) for example in examples[:2]]
    assert packed.counts["language"] == sum(one.counts["language"] for one in alone)


def test_without_packing_a_row_is_a_sample(encoder, batch):
    _, examples = batch
    collate = Collator(encoder.processor, encoder.heads, encoder.tokens)
    assert collate(examples).sequences is None
    able = Collator(encoder.processor, encoder.heads, encoder.tokens, packs=True)(examples)
    length = able.ids.shape[1]
    assert able.sequences.bounds.tolist() == [length * row for row in range(6)]
    assert torch.equal(able.sequences.positions, torch.arange(length).expand(5, -1))
