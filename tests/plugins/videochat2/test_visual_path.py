"""From pixels to tokens of the LLM against released numbers: tower, norm, Q-Former, projection."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.plugins.videochat2.connectors.released_names import connector_state, without_text_side
from tests.plugins.videochat2.test_vision import our_name
from tpokit.interfaces import ConnectorHost, Instruction
from tpokit_videochat2.config import IMAGENET_MEAN, IMAGENET_STD, VisionOptions
from tpokit_videochat2.connectors.options import QFormerOptions
from tpokit_videochat2.connectors.qformer import QFormerConnector
from tpokit_videochat2.vision import VisionTower

FOLDER = Path(__file__).parents[2] / "golden" / "videochat2"
FACTS = json.loads((FOLDER / "visual_path.json").read_text())
SIZES = FACTS["config"]
TOWER = load_file(FOLDER / "visual_path_tower.safetensors")
GOLDEN = load_file(FOLDER / "visual_path_rest.safetensors")
VIDEOS = [4, 4]
IMAGES = [1, 1]
WORDS = SIZES["qv"] + 1


@pytest.fixture(scope="module")
def tower():
    sizes = VisionOptions(
        image_size=224,
        patch_size=SIZES["patch"],
        hidden_size=SIZES["embed"],
        layers=SIZES["depth"] - 1,
        heads=SIZES["vheads"],
        intermediate_size=TOWER["weights.vision_encoder.encoder.blocks.0.mlp.fc1.bias"].numel(),
        pretrained_grid=224 // SIZES["patch"],
    )
    made = VisionTower(sizes)
    made.load_state_dict({our_name(name): value for name, value in TOWER.items()}, strict=True)
    return made.eval()


def connector(vocabulary):
    """The Q-Former with the weights of the golden run; without vocabulary it has no text side."""
    options = QFormerOptions(
        queries=SIZES["nq"],
        extra_queries=SIZES["ne"],
        layers=SIZES["ql"],
        width=SIZES["qh"],
        heads=SIZES["qheads"],
        intermediate=SIZES["qi"],
        vocabulary=vocabulary,
        positions=24,
    )
    patches = 224 // SIZES["patch"]
    made = QFormerConnector(options, ConnectorHost(SIZES["embed"], SIZES["lh"], (patches, patches)))
    state = connector_state(GOLDEN)
    made.load_state_dict(state if vocabulary else without_text_side(state), strict=True)
    return made.eval()


@pytest.fixture(scope="module")
def videos():
    """Both videos as the tower sees them, ``[2, 4, 3, 224, 224]``."""
    large = GOLDEN["frames_u8_small"].repeat_interleave(4, -1).repeat_interleave(4, -2)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (large / 255 - mean) / std


def assert_met(ours, golden):
    expected = GOLDEN[golden]
    assert (ours.reshape(expected.shape) - expected).abs().max() <= FACTS["tolerance"], golden


@pytest.mark.parametrize("vocabulary", [0, WORDS])
def test_tokens_of_videos_and_images_of_the_release_are_met(tower, videos, vocabulary):
    made = connector(vocabulary)
    for name, frames, pixels in (
        ("video", VIDEOS, videos.flatten(0, 1)),
        ("image", IMAGES, videos[:, 0]),
    ):
        features = tower(pixels, frames)
        assert_met(made.query_states(features, frames), f"{name}_queries")
        assert_met(made(features, frames), f"{name}_projected")


@pytest.mark.parametrize("vocabulary", [0, WORDS])
def test_videos_and_images_of_the_release_are_met_in_one_batch(tower, videos, vocabulary):
    frames = [4, 1, 1, 4]
    pixels = torch.cat([videos[0], videos[:, 0], videos[1]])
    tokens = connector(vocabulary)(tower(pixels, frames), frames).unflatten(0, (4, -1))
    assert_met(tokens[[0, 3]], "video_projected")
    assert_met(tokens[[1, 2]], "image_projected")


def test_tokens_of_the_release_are_met_with_an_instruction(tower, videos):
    made = connector(WORDS)
    said = Instruction(GOLDEN["instruction_ids"], GOLDEN["instruction_mask"].bool())
    features = tower(videos.flatten(0, 1), VIDEOS)
    assert_met(made.query_states(features, VIDEOS, said), "video_queries_instructed")
    assert_met(made(features, VIDEOS, said), "video_projected_instructed")
