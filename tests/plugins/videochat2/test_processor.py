"""Counts, pixels, instructions, and a processor that goes through data workers."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from transformers import PreTrainedTokenizerFast

import tpokit_shapes_world
from tests.core.data.fakes import words_tokenizer
from tests.plugins.videochat2.talks import (
    HOST,
    MEAN,
    STD,
    BoxHead,
    encoder_of,
    media_of,
    processor_of,
    sample_of,
    show,
    view_of,
)
from tpokit import CheckpointError, ConnectorChoice, DataError, MediaNeed, Turn, UsageError
from tpokit.data.collate import Collator
from tpokit_videochat2.connectors.options import PoolAdapterOptions
from tpokit_videochat2.connectors.pool_adapter import PoolAdapter
from tpokit_videochat2.tokenizer import load_tokenizer

TINY = Path(tpokit_shapes_world.__file__).parent / "base"
GREY_STEP = 1 / 255 / 0.224  # one step of a pixel, in the channel that is spread the widest
POOLED = (ConnectorChoice(PoolAdapter, PoolAdapterOptions(grid=(1, 2), frames=2)), HOST)


def instruction_tokenizer(longest=16):
    """Whole words between [CLS] and [SEP], as those of BERT."""
    words = [*("[PAD]", "[CLS]", "[SEP]", "[UNK]"), *("watch", "the", "red", "cup", "where", "is")]
    words += ["it", "go"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", model_max_length=longest
    )


def talk(system, question):
    return (Turn("system", system), Turn("user", question)) if system else (Turn("user", question),)


# ---- tokenizer and model ----


def test_a_tokenizer_of_another_release_is_refused_with_both_numbers():
    with pytest.raises(CheckpointError) as error:
        processor_of(rows=32768)
    assert "the tokenizer has 32000 words, but the word table of the LLM has 32768 rows" in str(
        error.value
    )
    assert "Mistral v0.3" in str(error.value)
    with pytest.raises(CheckpointError, match=r"32000 words, .* has 31999 rows"):
        processor_of(rows=31999)


@pytest.mark.parametrize("rows", [32000, 32064, 32640])
def test_a_table_may_be_padded(rows):
    assert processor_of(rows=rows).rows == rows


def test_a_tokenizer_of_whole_words_serves_as_well():
    processor = processor_of(
        tokenizer=load_tokenizer(TINY), rows=160, media_token="<video>", need=MediaNeed(rate=1.0)
    )
    assert processor.end_of_turn == "<|im_end|>"
    assert processor.media_id == 5
    assert processor.media_need() == MediaNeed(rate=1.0)
    messages = [{"role": "user", "content": [{"type": "text", "text": "where is it"}]}]
    assert processor.render(messages, True) == "<|im_start|>[INST] where is it [/INST]"


def test_a_tokenizer_without_an_end_of_turn_is_refused():
    with pytest.raises(CheckpointError, match="names no eos_token"):
        processor_of(tokenizer=words_tokenizer(), rows=32, media_token="<image>")


@pytest.mark.parametrize("token", ["<nothing>", "red"])
def test_a_media_token_that_cannot_be_told_from_text_is_refused(token):
    with pytest.raises(CheckpointError, match=f"'{token}' is no special token"):
        processor_of(tokenizer=load_tokenizer(TINY), rows=160, media_token=token)


def test_it_travels_to_data_workers():
    again = pickle.loads(pickle.dumps(processor_of(template="videochat2")))
    view = view_of("video", 3)
    assert again.expand("<unk>", [view]) == processor_of().expand("<unk>", [view])
    assert (again.start_of_turn, again.end_of_turn) == (" ", "</s>")


class Encoded(torch.utils.data.Dataset):
    """Encodes its samples in whatever process it is asked in."""

    def __init__(self, encoder, samples):
        self.encoder, self.samples = encoder, samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.encoder.encode(self.samples[index], "data").ids


def test_forked_workers_encode_as_the_main_process_does(monkeypatch):
    show(monkeypatch, a=view_of())
    encoder = encoder_of(template="chat")
    samples = [
        sample_of(Turn("user", f"what {n}"), Turn("assistant", f"({n})"), media=media_of("a"))
        for n in range(6)
    ]
    dataset = Encoded(encoder, samples)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    assert list(loader) == [dataset[index] for index in range(6)]


# ---- tokens of a clip ----


def test_a_clip_gives_as_many_tokens_as_its_connector_says():
    views = [view_of(), view_of("video", 4), view_of("video", 2)]
    processor = processor_of(connector=POOLED)
    text = processor.expand("<unk>|<unk>|<unk>", views)
    assert [part.count("<unk>") for part in text.split("|")] == [2, 4, 4]
    assert processor.collate_media([views[:1], views[1:]])["tokens"] == [2, 4, 4]
    assert processor_of().collate_media([views])["tokens"] == [96, 96, 96]


def test_a_video_that_the_connector_cannot_take_names_its_sample(monkeypatch):
    show(monkeypatch, clip=view_of("video", 5))
    encoder = replace(encoder_of(), processor=processor_of(connector=POOLED))
    sample = sample_of(Turn("user", "q"), Turn("assistant", "a"), media=media_of("clip"))
    with pytest.raises(DataError, match=r"data/7: .*5 frames"):
        encoder.encode(sample, "data")


# ---- pixels ----


def reference(frame):
    """One frame by Pillow."""
    resized = Image.fromarray(frame).resize((16, 16), Image.Resampling.BICUBIC)
    values = np.asarray(resized, np.float32) / 255
    return torch.from_numpy((values - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(16, 16), (8, 30), (40, 12), (100, 333), (1, 7)])
def test_pixels_are_those_of_torchvision_frame_by_frame(size):
    view = view_of("video", 2, size=size)
    frames = torch.from_numpy(view.frames).permute(0, 3, 1, 2).contiguous()
    transform = v2.Compose(
        [
            v2.Resize([16, 16], v2.InterpolationMode.BICUBIC, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    expected = torch.stack([transform(frame) for frame in frames])
    torch.testing.assert_close(processor_of().collate_media([[view]])["pixels"], expected)


@pytest.mark.parametrize("size", [(16, 16), (100, 333), (64, 64), (90, 31)])
def test_pixels_of_larger_pictures_are_those_of_pillow(size):
    view = view_of("video", 2, size=size)
    media = processor_of().collate_media([[view]])
    expected = torch.stack([reference(frame) for frame in view.frames])
    assert media["pixels"].dtype == torch.float32
    # both round to a whole grey value after each direction, and not always alike
    assert (media["pixels"] - expected).abs().max() <= 2 * GREY_STEP + 1e-5
    assert (media["pixels"] - expected).abs().mean() <= GREY_STEP / 4


def test_a_frame_of_the_right_size_is_only_normalised():
    view = view_of(size=(16, 16))
    pixels = processor_of().collate_media([[view]])["pixels"]
    torch.testing.assert_close(pixels[0], reference(view.frames[0]))


def test_frames_stay_in_the_order_of_samples_and_media():
    views = [
        [view_of("video", 3, size=(9, 20), seed=1), view_of(size=(16, 16), seed=2)],
        [],
        [view_of(size=(9, 20), seed=3), view_of("video", 2, size=(30, 9), seed=4)],
    ]
    processor = processor_of()
    media = processor.collate_media(views)
    alone = [processor.collate_media([[view]])["pixels"] for sample in views for view in sample]
    assert torch.equal(media["pixels"], torch.cat(alone))
    assert media["pixels"].is_contiguous()
    assert media["frames"] == [3, 1, 1, 2]
    frames = processor.collate_frames([view for sample in views for view in sample])
    assert torch.equal(frames, media["pixels"])


def test_pixels_are_counted_before_there_are_any():
    processor, views = processor_of(), [view_of("video", 3), view_of("image", 1)]
    assert processor.pixels(views) == processor.collate_media([views])["pixels"].numel() / 3
    assert processor.pixels([]) == 0


def test_without_media_there_is_nothing():
    assert processor_of().collate_media([[], []]) == {}


# ---- instructions ----

VIEWS = [[view_of(), view_of()], [], [view_of()]]
TURNS = [
    (*talk("watch", "where is the <image> cup"), Turn("assistant", "it go")),
    talk("watch it", "it"),
    talk("", "<video> is it red"),
]


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("system", [[1, 4, 2], [1, 4, 2], [1, 2]]),
        (
            "question",
            [[1, 4, 8, 9, 5, 7, 2], [1, 4, 8, 9, 5, 7, 2], [1, 9, 10, 6, 2]],
        ),
    ],
)
def test_each_clip_gets_the_instruction_of_its_sample(instruction, expected):
    processor = processor_of(instruction=instruction, instruction_tokenizer=instruction_tokenizer())
    found = processor.collate_instructions(TURNS, VIEWS)
    width = max(len(row) for row in expected)
    padded = [[0] * (width - len(row)) + row for row in expected]
    assert found["instruction_ids"].tolist() == padded
    assert found["instruction_ids"].dtype == torch.int64
    expected_mask = [[False] * (width - len(row)) + [True] * len(row) for row in expected]
    assert found["instruction_mask"].tolist() == expected_mask


def test_a_long_instruction_keeps_its_end():
    processor = processor_of(
        instruction="system", instruction_tokenizer=instruction_tokenizer(longest=5)
    )
    turns = [talk("watch the red cup where it is", "q")]
    found = processor.collate_instructions(turns, [[view_of()]])
    assert found["instruction_ids"].tolist() == [[1, 8, 10, 9, 2]]


def test_a_batch_carries_its_instructions_only_with_media(monkeypatch):
    show(monkeypatch, a=view_of())
    tokenizer = instruction_tokenizer()
    encoder = encoder_of(BoxHead, instruction="system", instruction_tokenizer=tokenizer)
    collate = Collator(encoder.processor, encoder.heads, encoder.tokens)
    said = (*talk("watch", "q"), Turn("assistant", "a"))
    with_media = encoder.encode(sample_of(*said, media=media_of("a")), "data")
    without = encoder.encode(sample_of(*said), "data")
    assert collate([without]).media == {}
    media = collate([without, with_media]).media
    assert media["instruction_ids"].tolist() == [[1, 4, 2]]
    assert sorted(media) == ["frames", "instruction_ids", "instruction_mask", "pixels", "tokens"]
    (row,) = ((collate([with_media]).ids == encoder.processor.media_id).sum(1)).tolist()
    assert row == media["tokens"][0]


def test_an_instruction_needs_a_tokenizer():
    assert processor_of().collate_instructions(TURNS, VIEWS) == {}
    with pytest.raises(UsageError, match="instruction: 'system' needs a tokenizer"):
        processor_of(instruction="system")
