"""The box of a mask as the release draws it; vectors of the released code in tests/golden."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.heads.mask.tiny_head import HEIGHT, WIDTH, disc, image, make_head
from tpokit.types import MediaInfo, Seen
from tpokit_mask.outer_box import outer_boxes
from tpokit_mask.results import tight_box_px

GOLDEN = Path(__file__).parents[2] / "golden" / "videochat2" / "mask_to_box.safetensors"


def test_boxes_are_those_of_the_release():
    stored = load_file(GOLDEN)
    np.testing.assert_allclose(outer_boxes(stored["masks"]), stored["boxes"], atol=1e-6)


def test_the_box_is_a_pixel_wider_than_the_tight_one_and_ends_on_a_pixel():
    x0, y0, x1, y1 = tight_box_px(disc(0))
    expected = (x0 - 1) / WIDTH, (y0 - 1) / HEIGHT, x1 / WIDTH, y1 / HEIGHT
    np.testing.assert_allclose(outer_boxes(disc(0)[None])[0], expected)


def test_no_masks_give_no_boxes():
    assert outer_boxes(np.zeros((0, 4, 5), bool)).shape == (0, 4)


@pytest.mark.parametrize("drawn", ["tight", "outer"])
def test_the_head_learns_from_the_box_that_its_option_names(tmp_path, drawn):
    medium, annotation = image(tmp_path)
    seen = Seen("here", media=(medium,), info=(MediaInfo("image", WIDTH, HEIGHT),))
    head = make_head(tmp_path, learn="box", box_of_mask=drawn)
    target = head.collate([head.read_target(annotation, _prepared(head, seen))])
    x0, y0, x1, y1 = tight_box_px(disc(0))
    tight = np.array([x0 / WIDTH, y0 / HEIGHT, x1 / WIDTH, y1 / HEIGHT])
    expected = tight if drawn == "tight" else outer_boxes(disc(0)[None])[0]
    np.testing.assert_allclose(target.boxes[0].numpy(), expected, rtol=1e-6)


def _prepared(head, seen):
    return replace(seen, prepared=head.prepare(seen))
