"""Frozen dual encoders, tiny random ones: what they give, and that no checkpoint holds them."""

import pickle

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
)

from tests.heads.temporal.tiny_encoders import (
    CPU,
    KINDS,
    LONGEST,
    call,
    extractor,
    features,
    frames,
    saved_models,
    shared,
    video,
)
from tpokit import Media, Seen, UsageError
from tpokit.data.media import read_media
from tpokit_temporal.features.encoder_extractor import clip_frames
from tpokit_temporal.features.extractor import unit


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return saved_models(tmp_path_factory.mktemp("models"), *KINDS, "clip16")


def library(folder):
    return (
        AutoModel.from_pretrained(folder).eval(),
        AutoImageProcessor.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )


# ---- the same numbers as the library's own way ----


@pytest.mark.parametrize("kind", KINDS)
def test_clips_are_the_embeddings_that_the_library_gives(folders, tmp_path, kind):
    reader = shared(folders[kind], normalise=False, batch=3)
    shown = frames(8)
    found = features(reader, call(video(tmp_path), shown)).clips[0]
    model, processor, _ = library(folders[kind])
    with torch.no_grad():
        if kind == "xclip":  # two clips of four frames
            pixels = [processor(list(part), return_tensors="pt") for part in np.split(shown, 2)]
            pixels = torch.cat([part["pixel_values"] for part in pixels])
            wanted = model.get_video_features(pixel_values=pixels).pooler_output
        else:
            pixels = processor(list(shown), return_tensors="pt")["pixel_values"]
            wanted = model.get_image_features(pixel_values=pixels).pooler_output
    assert found.shape == wanted.shape == (2 if kind == "xclip" else 8, reader.video_width)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_the_hidden_states_that_the_library_gives(folders, tmp_path, kind):
    reader = shared(folders[kind], normalise=False)
    seen = call(video(tmp_path), frames(4), "when does the cat jump")
    found = features(reader, seen)
    model, _, tokens = library(folders[kind])
    padding = "max_length" if kind == "siglip" else False  # as each was trained
    given = tokens(seen.question, padding=padding, return_tensors="pt")
    if kind == "siglip":
        del given["attention_mask"]
    with torch.no_grad():
        wanted = model.get_text_features(**given).last_hidden_state[:, :7]
    assert found.words.shape == (1, 7, reader.text_width)
    assert found.word_mask.all()
    torch.testing.assert_close(found.words, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_features_do_not_depend_on_batch_mates(folders, tmp_path, kind):
    reader = shared(folders[kind])
    one = call(video(tmp_path, "a.mp4"), frames(8), "a dog")
    other = call(video(tmp_path, "b.mp4"), frames(20, seed=1), "when does the red cat jump")
    alone, together = features(reader, one), features(reader, other, one)
    length, words = alone.clips.shape[1], alone.words.shape[1]
    assert together.clip_mask[1].sum() == length
    assert together.word_mask[1].sum() == words == 4
    torch.testing.assert_close(together.clips[1, :length], alone.clips[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(together.words[1, :words], alone.words[0], atol=1e-5, rtol=0)
    assert not together.clips[1, length:].any()
    assert not together.words[1, words:].any()


def test_clips_and_words_are_scaled_to_length_one(folders, tmp_path):
    found = features(shared(folders["clip"]), call(video(tmp_path), frames(4)))
    plain = features(shared(folders["clip"], normalise=False), call(video(tmp_path), frames(4)))
    assert torch.allclose(found.clips.norm(dim=-1), torch.ones(1, 4), atol=1e-4)
    torch.testing.assert_close(found.words, unit(plain.words))


def test_frames_of_a_clip_are_averaged_by_an_encoder_of_images(folders, tmp_path):
    shown = frames(8)
    each = features(shared(folders["clip"], normalise=False), call(video(tmp_path), shown))
    pairs = features(
        shared(folders["clip"], normalise=False, frames_per_clip=2),
        call(video(tmp_path), shown),
    )
    torch.testing.assert_close(pairs.clips, each.clips.unflatten(1, (4, 2)).mean(2))
    assert pairs.clip_s.tolist() == [4.0]


def test_the_embedding_of_the_whole_query_can_be_one_more_word(folders, tmp_path):
    calls = [
        call(video(tmp_path), frames(4), text) for text in ("the dog", "when does the cat jump")
    ]
    plain = features(shared(folders["clip16"], normalise=False), *calls)
    more = features(shared(folders["clip16"], normalise=False, pooled_word=True), *calls)
    assert more.word_mask.sum(1).tolist() == [5, 8]
    torch.testing.assert_close(more.words[0, :4], plain.words[0, :4])
    model, _, tokens = library(folders["clip16"])
    with torch.no_grad():
        wanted = model.get_text_features(**tokens("the dog", return_tensors="pt")).pooler_output[0]
    torch.testing.assert_close(more.words[0, 4], wanted)
    assert not more.words[0, 5:].any()
    with pytest.raises(UsageError, match=r"embedding of a text has 20 numbers.*features.pooled_w"):
        features(shared(folders["clip"], pooled_word=True), *calls)


def test_a_long_question_is_cut_and_keeps_its_end_token(folders, tmp_path):
    long = "the cat " * 20
    for words_max, kept in ((None, LONGEST), (5, 5), (50, LONGEST)):
        reader = shared(folders["clip"], words_max=words_max)
        tokens = reader.prepare(call(video(tmp_path), frames(4), long)).tokens
        assert len(tokens) == kept
        assert (tokens[0], tokens[-1]) == (2, 3)


def test_without_words_of_its_own_the_llm_is_asked_for_them(folders, tmp_path):
    reader = shared(folders["clip"], words=False)
    assert reader.text_width is None
    assert reader.context_need().question
    found = features(reader, call(video(tmp_path), frames(4), question=""))
    assert found.words is None
    assert found.clips.shape == (1, 4, 20)


# ---- clips in time ----


@given(count=some.integers(1, 300), per_clip=some.integers(1, 16))
def test_each_clip_takes_frames_of_its_own_part_of_the_video(count, per_clip):
    chosen = clip_frames(count, per_clip)
    length = len(chosen) // per_clip
    assert len(chosen) == length * per_clip
    assert length == max(1, int(count / per_clip + 0.5))
    assert (np.diff(chosen) >= 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < count
    middles = (chosen + 0.5) / count  # of the frames, as fractions of the video
    wanted = (np.arange(len(chosen)) + 0.5) / len(chosen)
    assert (np.abs(middles - wanted) <= 0.5 / count + 1e-9).all()
    if count % per_clip == 0:
        assert chosen.tolist() == list(range(count))


@pytest.mark.parametrize(("kind", "per_clip"), [("clip", 1), ("xclip", 4)])
@pytest.mark.parametrize(
    ("clip_s", "clips_max", "length"), [(1.0, 50, 3), (0.5, 50, 6), (0.5, 4, 4)]
)
def test_a_real_video_is_cut_into_clips_of_about_the_length_asked_for(
    folders, tmp_path, kind, per_clip, clip_s, clips_max, length
):
    path = tmp_path / "moving.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(31):
            picture = np.full((48, 64, 3), 8 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    reader = shared(folders[kind], clip_s=clip_s, clips_max=clips_max, normalise=False)
    media = Media("video", path)
    view = read_media(media, {"head": reader.context_need().media})["head"]
    assert len(view.frames) == pytest.approx(length * per_clip, abs=1)
    prepared = reader.prepare(Seen("moments/1", "when", (media,), (view.info,), (view,)))
    assert prepared.clip_count == length
    assert prepared.clip_s == pytest.approx(3.1 / length)
    assert prepared.pixels.shape == (length * per_clip, 3, 16, 16)
    assert prepared.pixels.dtype == torch.uint8
    shades = prepared.pixels.float().mean((1, 2, 3))
    assert (shades.diff() > 0).all()  # the video gets brighter


# ---- frozen, and in no checkpoint ----


class Holder(nn.Module):
    """A head, as far as holding an extractor goes."""

    def __init__(self, held):
        super().__init__()
        self.own = nn.Linear(2, 2)
        self.extractor = held


def test_the_encoder_is_in_no_checkpoint_and_never_trained(folders, tmp_path):
    head = Holder(extractor(folders["clip"])).train()
    assert sorted(head.state_dict()) == ["own.bias", "own.weight"]
    assert len(list(head.parameters())) == 2
    model = head.extractor.encoder._model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    found = features(head.extractor, call(video(tmp_path), frames(4)))
    assert not found.clips.requires_grad
    (found.clips.sum() * head.own.weight.sum()).backward()  # usable behind: no inference tensors
    assert head.own.weight.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_for_a_data_worker_has_no_weights_and_still_prepares(folders, tmp_path, kind):
    reader = shared(folders[kind])
    seen = call(video(tmp_path), frames(4))
    wanted = features(reader, seen)
    data = pickle.dumps(reader)
    assert len(data) < 50_000
    copy = pickle.loads(data)
    prepared = copy.prepare(seen)
    assert copy.encoder._model is None
    found = copy.encode(reader.collate([prepared]), CPU)  # it loads them if it has to
    assert torch.equal(found.clips, wanted.clips)
    assert torch.equal(found.words, wanted.words)


def test_loading_leaves_the_global_generator_alone(folders):
    before = torch.random.get_rng_state()
    extractor(folders["xclip"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_autocast_around_the_model_changes_nothing(folders, tmp_path):
    reader = shared(folders["clip"])
    seen = call(video(tmp_path), frames(4))
    wanted = features(reader, seen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = features(reader, seen)
    assert torch.equal(found.clips, wanted.clips)
    assert torch.equal(found.words, wanted.words)


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_in_16_bits_gives_float32_close_to_the_full_one(folders, tmp_path, kind):
    seen = call(video(tmp_path), frames(4))
    full = features(shared(folders[kind]), seen)
    half = features(shared(folders[kind], dtype="bfloat16"), seen)
    assert half.clips.dtype == half.words.dtype == torch.float32
    torch.testing.assert_close(half.clips, full.clips, atol=0.05, rtol=0)
    assert not torch.equal(half.clips, full.clips)


@pytest.mark.parametrize("words", [True, False])
def test_no_call_gives_empty_tensors_of_the_right_widths(folders, words):
    reader = shared(folders["siglip"], words=words)
    found = features(reader)
    assert found.clips.shape == (0, 1, 24)
    assert found.clip_mask.shape == (0, 1)
    assert found.clip_s.shape == (0,)
    if words:
        assert found.words.shape == (0, 1, 16)
        assert found.word_mask.shape == (0, 1)
