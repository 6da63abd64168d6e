"""Template, token counts and pixels, held against transformers' own processor."""

import pickle

import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionImageProcessor, SiglipVisionConfig

from tests.plugins.llava_onevision.tiny_onevision import (
    TEMPLATE,
    build,
    library_processor,
    tiny_config,
    view_of,
    write_tiny,
)
from tpokit import CheckpointError, DataError, MediaNeed
from tpokit.batch import Batch
from tpokit_llava_onevision.processor import OnevisionProcessor

GREY_STEP = 2 / 255  # one step of a pixel, where values are spread over -1 to 1


def processor_of(crops="anyres", frames=4):
    return OnevisionProcessor(library_processor(), tiny_config(), frames, crops)


def full_size():
    """Processor with the sizes of released checkpoints."""
    config = LlavaOnevisionConfig(vision_config=SiglipVisionConfig(image_size=384, patch_size=14))
    config.image_token_index, config.video_token_index = 190, 191
    library = library_processor(384, LlavaOnevisionImageProcessor().image_grid_pinpoints, 27)
    return OnevisionProcessor(library, config, 16, "anyres"), config


def message(role, text, *kinds):
    parts = [{"type": kind} for kind in kinds]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


# ---- template ----


def test_the_template_is_the_checkpoints():
    processor = processor_of()
    talk = [message("user", "w7", "image"), message("assistant", "w8"), message("user", "w9")]
    text = processor.render(talk, answer_next=True)
    assert text == (
        "<|im_start|>user <image>\nw7<|im_end|><|im_start|>assistant \nw8<|im_end|>"
        "<|im_start|>user \nw9<|im_end|><|im_start|>assistant\n"
    )
    assert not processor.render(talk[:2], answer_next=False).endswith("assistant\n")


def test_the_end_of_a_turn_is_read_from_the_template():
    assert processor_of().end_of_turn == "<|im_end|>"
    library = library_processor()
    library.chat_template = TEMPLATE.replace("{{'<|im_end|>'}}", "{{ '[END] \\n' }}")
    assert OnevisionProcessor(library, tiny_config(), 4, "anyres").end_of_turn == "[END]"
    library.chat_template = TEMPLATE.replace("{{'<|im_end|>'}}", "{{ '\\n' }}")
    with pytest.raises(CheckpointError, match="writes nothing behind an answer"):
        OnevisionProcessor(library, tiny_config(), 4, "anyres")


def test_it_needs_the_frames_that_the_recipe_says():
    assert processor_of(frames=7).media_need() == MediaNeed(frames=7)
    assert processor_of().max_length == 1024


def test_it_travels_to_data_workers():
    again = pickle.loads(pickle.dumps(processor_of()))
    assert again.end_of_turn == "<|im_end|>"
    assert again.expand("<image>", [view_of()]) == processor_of().expand("<image>", [view_of()])


# ---- tokens of a medium ----


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [
        (224, 224, 1485),
        (384, 384, 1485),
        (640, 480, 2929),
        (1024, 768, 4725),
        (1280, 720, 5967),
        (1920, 1080, 7269),
        (1000, 200, 2123),
        (200, 1000, 2187),
        (2304, 2304, 7371),
    ],
)
def test_a_lone_image_at_full_size_takes_as_many_tokens_as_published(width, height, tokens):
    processor, _ = full_size()
    view = view_of(height=height, width=width)
    assert processor.expand("<image>", [view]).count("<image>") == tokens


def test_several_images_videos_and_single_mode_at_full_size():
    processor, _ = full_size()
    image, clip = view_of(), view_of("video", frames=16)
    assert processor.expand("<image> w7 <image>", [image, image]).count("<image>") == 2 * 730
    assert processor.expand("<video>", [clip]).count("<video>") == 196 * 16 + 1
    processor._crops = "single"
    assert processor.expand("<image>", [image]).count("<image>") == 730


@pytest.mark.parametrize("crops", ["anyres", "single"])
def test_features_are_as_many_as_promised_for_any_size(tmp_path, crops):
    backbone = build(write_tiny(tmp_path / "tiny"), crops=crops)
    random = np.random.default_rng(0)
    views = [
        [view_of(height=int(h), width=int(w))] for h, w in random.integers(5, 260, size=(20, 2))
    ]
    media = backbone.processor.collate_media(views)
    with torch.no_grad():
        images, videos = backbone._visual.tokens(media)
    assert len(images) == sum(media["image_tokens"])
    assert len(videos) == 0
    assert set(media["image_tiles"]) <= ({1} if crops == "single" else {2, 3, 5})


def test_placeholders_are_given_to_their_own_kind():
    # the template moves images in front of videos, whatever order they were named in
    clip, image = view_of("video", frames=4), view_of(height=56, width=56)
    text = processor_of().expand("<image> <video> w7", [clip, image])
    assert text == "<image>" * 36 + " " + "<video>" * 17 + " w7"


def test_too_few_or_too_many_placeholders_are_an_error():
    with pytest.raises(DataError, match=r"1 placeholders <image>, but the sample has 2 .*image0"):
        processor_of().expand("<image>", [view_of(), view_of()])
    with pytest.raises(DataError, match=r"1 placeholders <video>, but the sample has 0 .*none"):
        processor_of().expand("<video>", [])


# ---- pixels ----

SIZES = [(56, 56), (64, 64), (30, 100), (100, 30), (113, 57), (300, 280), (7, 9), (1, 40)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_a_lone_image_are_transformers(size):
    view = view_of(height=size[0], width=size[1])
    expected = library_processor().image_processor(
        [[view.frames[0]]], return_tensors="pt", input_data_format="channels_last"
    )
    media = processor_of().collate_media([[view]])
    torch.testing.assert_close(
        media["pixels"], expected["pixel_values"][0], atol=1e-5 * GREY_STEP, rtol=0
    )
    assert media["image_sizes"] == [list(size)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_several_images_are_transformers(size):
    views = [view_of(height=size[0], width=size[1]), view_of(seed=1)]
    expected = library_processor().image_processor(
        [[view.frames[0] for view in views]],
        return_tensors="pt",
        input_data_format="channels_last",
    )
    media = processor_of().collate_media([views])
    torch.testing.assert_close(
        media["pixels"], expected["pixel_values"][:, 0], atol=1e-5 * GREY_STEP, rtol=0
    )


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_a_video_are_transformers(size):
    view = view_of("video", *size, frames=3)
    library = library_processor().video_processor
    expected = library([view.frames.transpose(0, 3, 1, 2)], return_tensors="pt")
    media = processor_of().collate_media([[view]])
    torch.testing.assert_close(
        media["pixels"], expected["pixel_values_videos"][0], atol=1e-5 * GREY_STEP, rtol=0
    )


def test_a_batch_gives_the_pixels_of_its_samples():
    samples = [
        [view_of(seed=1)],
        [],
        [view_of("video", frames=2, seed=2), view_of(height=64, seed=3)],
        [view_of(seed=4), view_of(seed=5)],
        [view_of(seed=6)],
        [view_of("video", frames=3, seed=7)],
    ]
    processor = processor_of()
    media = processor.collate_media(samples)
    alone = [processor.collate_media([sample]) for sample in samples if sample]
    images = [part["pixels"][: sum(part["image_tiles"])] for part in alone]
    clips = [part["pixels"][sum(part["image_tiles"]) :] for part in alone]
    assert torch.equal(media["pixels"], torch.cat([*images, *clips]))
    for name in ("image_tiles", "image_sizes", "video_frames", "image_tokens", "video_tokens"):
        assert media[name] == [number for part in alone for number in part[name]]


@pytest.mark.parametrize("crops", ["anyres", "single"])
def test_pixels_are_counted_before_there_are_any(crops):
    processor = processor_of(crops)
    wide, clip = view_of(height=57, width=113), view_of("video", frames=3)
    for views in ([wide], [wide, view_of()], [clip, wide], [clip]):
        assert processor.pixels(views) == processor.collate_media([views])["pixels"].numel() / 3
    assert processor.pixels([]) == 0


def test_no_media_give_nothing():
    assert processor_of().collate_media([[], []]) == {}


def test_media_go_along_with_their_batch():
    media = processor_of().collate_media([[view_of()], [view_of("video", frames=2)]])
    nothing = torch.empty(0, dtype=torch.long)
    batch = Batch(*[nothing] * 5, {}, {}, {}, {}, None, media, {}, ())
    moved = batch.to("meta").media
    assert moved["pixels"].is_meta
    assert {name: moved[name] for name in moved if name != "pixels"} == {
        name: media[name] for name in media if name != "pixels"
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("do_normalize", False, "image processor: do_normalize is False"),
        ("do_center_crop", True, "image processor: do_center_crop is True"),
        ("size", {"shortest_edge": 56}, "tiles must be square"),
    ],
)
def test_settings_that_onevision_never_had_are_an_error(name, value, message):
    library = library_processor()
    setattr(library.image_processor, name, value)
    with pytest.raises(CheckpointError, match=message):
        OnevisionProcessor(library, tiny_config(), 4, "anyres")
