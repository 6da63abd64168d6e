"""Tables of positions against released numbers, and that they are kept."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tpokit_videochat2.positions import PositionSizes, position_table, sinusoids

FOLDER = Path(__file__).parents[2] / "golden" / "videochat2"
FACTS = json.loads((FOLDER / "pos_embed.json").read_text())
TABLES = load_file(FOLDER / "pos_embed.safetensors")
CPU = torch.device("cpu")
SIZES = PositionSizes(width=64, grid=14, pretrained_frames=4, pretrained_grid=14)


@pytest.mark.parametrize("name", FACTS["cases"])
def test_tables_are_those_of_the_release(name):
    case = FACTS["cases"][name]
    sizes = PositionSizes(case["dim"], case["grid"], case.get("checkpoint_frames", 4), 14)
    table = position_table(sizes, case["frames"], CPU, torch.float32)
    assert table.shape == TABLES[name][0].shape
    # the stated tolerance is 5e-5; exponents in float32 would already be off by 1e-5
    assert (table - TABLES[name][0]).abs().max() <= 5e-6 < FACTS["tolerance"]


def test_an_image_is_not_a_video_squeezed_to_one_frame():
    image = position_table(SIZES, 1, CPU, torch.float64)
    assert torch.equal(image, sinusoids(196, 64))
    middle = sinusoids(4 * 196, 64).view(4, 196, 64)[1:3].mean(0)
    assert (image - middle).abs().max() > 0.1


def test_as_many_frames_as_pretrained_are_not_stretched():
    table = position_table(SIZES, 4, CPU, torch.float64)
    assert torch.equal(table, sinusoids(4 * 196, 64))


def test_every_position_of_a_longer_video_lies_between_two_pretrained_ones():
    table = position_table(SIZES, 8, CPU, torch.float64).view(8, 196, 64)
    pretrained = sinusoids(4 * 196, 64).view(4, 196, 64)
    # half-pixel centres: frames 0 to 7 lie at -1/4, 1/4, 3/4, ... of the pretrained ones
    assert torch.allclose(table[0], pretrained[0])
    assert torch.allclose(table[2], 0.25 * pretrained[0] + 0.75 * pretrained[1])


def test_a_table_is_made_once_for_each_length_and_format():
    first = position_table(SIZES, 12, CPU, torch.bfloat16)
    assert position_table(PositionSizes(*SIZES), 12, torch.device("cpu"), torch.bfloat16) is first
    assert first.dtype == torch.bfloat16
    assert position_table(SIZES, 12, CPU, torch.float32) is not first


def test_the_tables_that_are_kept_are_bounded():
    for frames in range(1, 100):
        position_table(PositionSizes(4, 1, 4, 1), frames, CPU, torch.float32)
    assert position_table.cache_info().currsize <= 32


def test_a_table_made_while_predicting_can_be_used_in_training():
    with torch.inference_mode():
        table = position_table(SIZES, 13, CPU, torch.float32)
    assert not table.is_inference()
