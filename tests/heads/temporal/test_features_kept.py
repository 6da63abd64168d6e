"""Each video is encoded once: within a batch, and over runs by the cache."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.heads.temporal.tiny_encoders import (
    CPU,
    KINDS,
    call,
    extractor,
    features,
    frames,
    saved_models,
    shared,
    video,
)
from tpokit import DataError, Media
from tpokit.batch import moved
from tpokit_temporal.features import encoder_extractor
from tpokit_temporal.features.encoder_extractor import EncoderExtractor
from tpokit_temporal.features.options import EncoderFeatures


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return saved_models(tmp_path_factory.mktemp("models"), *KINDS)


def counted(reader, monkeypatch):
    """Frames of each run of the encoder, as they happen."""
    seen = []
    real = reader.encoder.encode_clips
    monkeypatch.setattr(
        reader.encoder, "encode_clips", lambda pixels: (seen.append(len(pixels)), real(pixels))[1]
    )
    return seen


def test_calls_of_one_video_are_encoded_once(folders, tmp_path, monkeypatch):
    reader = shared(folders["clip"])
    runs = counted(reader, monkeypatch)
    first, second = video(tmp_path, "a.mp4"), video(tmp_path, "b.mp4")
    shown = frames(8)
    calls = [
        call(first, shown, "a cat"),
        call(second, frames(4, seed=1), "a dog"),
        call(first, shown, "the red dog"),
    ]
    found = features(reader, *calls)
    assert runs == [12]
    assert torch.equal(found.clips[0], found.clips[2])
    assert not torch.equal(found.words[0], found.words[2])
    alone = features(reader, calls[1])
    torch.testing.assert_close(found.clips[1, :4], alone.clips[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_is_encoded_once_and_then_found_on_disk(folders, tmp_path, monkeypatch, kind):
    media, cache = video(tmp_path), tmp_path / "cache"
    reader = extractor(folders[kind], cache=cache)
    assert reader.wants_frames(media)
    first = features(reader, call(media, frames(8)))
    assert not reader.wants_frames(media)
    later = extractor(folders[kind], cache=cache)
    runs = counted(later, monkeypatch)
    assert not later.wants_frames(media)
    found = features(later, call(media, None))  # its frames need not even be decoded
    assert runs == [0]
    for name, part in first._asdict().items():
        assert torch.equal(part, getattr(found, name)), name


def test_new_and_kept_videos_mix_in_a_batch(folders, tmp_path):
    reader = extractor(folders["clip"], cache=tmp_path / "cache")
    calls = [
        call(video(tmp_path, f"{seed}.mp4", bytes([seed])), frames(4 + seed, seed), "a cat")
        for seed in range(4)
    ]
    wanted = features(shared(folders["clip"]), *calls)
    features(reader, calls[1])
    features(reader, calls[2])
    found = features(reader, *calls, calls[1])
    torch.testing.assert_close(found.clips[:4], wanted.clips, atol=1e-5, rtol=0)
    assert torch.equal(found.clip_mask[:4], wanted.clip_mask)
    assert torch.equal(found.clips[4], found.clips[1])
    assert torch.equal(found.clip_s[:4], wanted.clip_s)


def test_a_collated_batch_travels_to_its_device_with_the_rest(folders, tmp_path):
    reader = extractor(folders["clip"], cache=tmp_path / "cache")
    features(reader, call(video(tmp_path, "a.mp4", b"a"), frames(4)))
    calls = [call(video(tmp_path, name, name.encode()), frames(4)) for name in ("a", "b")]
    collated = reader.collate([reader.prepare(seen) for seen in calls])
    there = moved(collated, CPU)
    assert type(there) is type(collated)
    assert torch.equal(reader.encode(there, CPU).clips, reader.encode(collated, CPU).clips)


def test_a_changed_video_or_option_is_encoded_anew(folders, tmp_path, monkeypatch):
    media, cache = video(tmp_path), tmp_path / "cache"
    features(extractor(folders["clip"], cache=cache), call(media, frames(8)))
    assert not extractor(folders["clip"], cache=cache).wants_frames(media)
    for changed in (
        {"clip_s": 1.0},
        {"frames_per_clip": 2},
        {"clips_max": 3},
        {"dtype": "bfloat16"},
    ):
        assert extractor(folders["clip"], cache=cache, **changed).wants_frames(media), changed
    # what changes no number of a clip as it is kept
    for same in ({"words": False}, {"normalise": False}, {"batch": 2}, {"words_max": 5}):
        assert not extractor(folders["clip"], cache=cache, **same).wants_frames(media), same
    reader = extractor(folders["clip"], cache=cache)
    assert reader.wants_frames(Media("video", media.path, start_s=1.0))
    monkeypatch.setattr(encoder_extractor.transformers, "__version__", "5.99.0")
    assert extractor(folders["clip"], cache=cache).wants_frames(media)
    video(tmp_path, content=b"an other video")
    assert reader.wants_frames(media)


def test_another_model_is_another_model_and_a_moved_one_the_same(folders, tmp_path):
    media, cache = video(tmp_path), tmp_path / "cache"
    features(extractor(folders["clip"], cache=cache), call(media, frames(8)))
    moved = tmp_path / "moved"
    shutil.copytree(folders["clip"], moved)
    assert not extractor(moved, cache=cache).wants_frames(media)
    weights = load_file(moved / "model.safetensors")
    weights["visual_projection.weight"] += 1e-3
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    assert extractor(moved, cache=cache).wants_frames(media)
    shutil.copy(folders["clip"] / "model.safetensors", moved)
    assert not extractor(moved, cache=cache).wants_frames(media)
    settings = moved / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.26862954", "0.3"))
    assert extractor(moved, cache=cache).wants_frames(media)


def test_a_broken_file_of_the_cache_is_made_again(folders, tmp_path):
    media, cache = video(tmp_path), tmp_path / "cache"
    reader = extractor(folders["clip"], cache=cache)
    first = features(reader, call(media, frames(8)))
    (kept,) = cache.rglob("*.safetensors")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-7])
    later = extractor(folders["clip"], cache=cache)
    assert later.wants_frames(media)
    assert torch.equal(features(later, call(media, frames(8))).clips, first.clips)
    assert len(kept.read_bytes()) == len(whole)
    assert not extractor(folders["clip"], cache=cache).wants_frames(media)


def test_what_was_promised_to_be_there_is_held_until_it_is_used(folders, tmp_path):
    media, cache = video(tmp_path), tmp_path / "cache"
    reader = extractor(folders["clip"], cache=cache)
    first = features(reader, call(media, frames(8)))
    assert not reader.wants_frames(media)
    shutil.rmtree(cache)  # between the promise and its use
    assert torch.equal(features(reader, call(media, None)).clips, first.clips)
    fresh = extractor(folders["clip"], cache=cache)
    with pytest.raises(DataError, match=r"v.mp4 were not decoded, and its features are not in the"):
        fresh.prepare(call(media, None))


def test_without_a_cache_nothing_is_written(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    reader = shared(folders["clip"])
    assert reader.cache is None
    features(reader, call(video(tmp_path), frames(8)))
    assert reader.wants_frames(video(tmp_path))
    assert not (tmp_path / "home").exists()


def test_the_cache_lies_in_the_home_of_the_user_if_nothing_else_is_said(
    folders, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    options = EncoderFeatures(model=str(folders["clip"]))
    reader = EncoderExtractor(options, Path("/"))
    features(reader, call(video(tmp_path), frames(8)))
    assert reader.cache.folder == tmp_path / "home" / ".cache" / "tpokit" / "features"
    assert reader.cache.size().files >= 1


def test_a_missing_video_is_left_to_whoever_decodes_it(folders, tmp_path):
    reader = extractor(folders["clip"], cache=tmp_path / "cache")
    gone = Media("video", tmp_path / "gone.mp4")
    assert reader.wants_frames(gone)
    with pytest.raises(DataError, match=r"^moments/1: .*gone.mp4 cannot be read: "):
        reader.prepare(call(gone, frames(4)))
