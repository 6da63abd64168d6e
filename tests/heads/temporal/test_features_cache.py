"""Clips in a cache: what is kept of them."""

import torch

from tpokit import Media
from tpokit.data.feature_cache import FeatureCache
from tpokit_temporal.features.cache import FORMAT, CachedClips


def cached(folder, clips, clip_s=1.9999999):
    """What a later run finds of clips that were kept."""
    path = folder / "v.mp4"
    path.write_bytes(b"a video")
    key = FeatureCache(folder, FORMAT).key(Media("video", path), {"model": "abc"})
    assert CachedClips.read(FeatureCache(folder, FORMAT), key) is None
    CachedClips(clips, clip_s).keep(FeatureCache(folder, FORMAT), key)
    return CachedClips.read(FeatureCache(folder, FORMAT), key)


def test_clips_come_back_to_the_last_bit_with_their_length(tmp_path):
    clips = torch.randn(5, 4)
    found = cached(tmp_path, clips)
    assert torch.equal(found.clips, clips)
    assert found.clip_s == 1.9999999


def test_clips_in_16_bits_are_kept_as_the_same_numbers_in_32(tmp_path):
    clips = torch.randn(5, 4).bfloat16().requires_grad_()
    found = cached(tmp_path, clips)
    assert found.clips.dtype == torch.float32
    assert torch.equal(found.clips, clips.float())
