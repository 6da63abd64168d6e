"""The mask head without numbers, and small."""

import pytest

from tpokit import Host
from tpokit_mask.head import MaskHead
from tpokit_mask.options import MaskOptions


def options(**sam2):
    return MaskOptions(sam2={"checkpoint": "nowhere.pt", **sam2}, slots=2, loss_side=512)


def test_without_numbers_it_has_the_sizes_of_the_real_one_and_needs_no_file():
    head = MaskHead.build_empty(options(size="sam2.1_hiera_tiny", trained="decoder"), Host(64))
    assert head.sam2.image_size == 1024
    assert all(parameter.is_meta for parameter in head.parameters())
    names = {name.partition(".")[0] for name, _ in head.named_parameters()}
    assert names == {"trained_parts", "adapter", "box_decoder", "box_encoder"}
    assert sum(p.numel() for p in head.sam2.model.parameters()) == pytest.approx(38.9e6, rel=0.01)


@pytest.mark.parametrize(
    ("size", "version"),
    [("sam2_hiera_large", "2.0"), ({"image_size": 256, "version": "2.1"}, "2.1")],
)
def test_small_it_keeps_what_a_recipe_says_besides_sizes(size, version):
    head = MaskHead.build_small(options(size=size, cache="kept"), Host(64))
    assert (head.sam2.image_size, head.options.sam2.size.version) == (128, version)
    assert (head.options.slots, head.options.loss_side) == (2, None)
    assert sum(p.numel() for p in head.sam2.model.parameters()) < 1e6
