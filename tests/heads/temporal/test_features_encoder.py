"""Frozen dual encoders, on tiny random CLIP, SigLIP and X-CLIP models made here."""

import functools
import pickle
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    VideoMAEImageProcessor,
    ViTConfig,
    ViTModel,
    XCLIPConfig,
    XCLIPModel,
)

from tpokit import CheckpointError, DataError, Media, MediaInfo, Seen, UsageError, View
from tpokit.data.media import read_media
from tpokit.types import moved
from tpokit_temporal.features import encoder_extractor
from tpokit_temporal.features.encoder_extractor import EncoderExtractor, clip_frames
from tpokit_temporal.features.extractor import make_extractor, unit
from tpokit_temporal.features.options import EncoderFeatures

CPU = torch.device("cpu")
KINDS = ("clip", "siglip", "xclip")
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "when", "does", "the", "a", "red", "cat", "dog", "jump"]
LONGEST = 12


def tokenizer():
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=LONGEST,
    )


def text_side(**more):
    return {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": LONGEST,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
        **more,
    }


def vision_side(**more):
    return {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        **more,
    }


def model_of(kind):
    """A model and its image processor; widths of images and words differ."""
    cropped = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    if kind == "siglip":
        config = SiglipConfig(text_config=text_side(), vision_config=vision_side())
        return SiglipModel(config), SiglipImageProcessor(size={"height": 16, "width": 16})
    if kind == "siglip2":
        config = Siglip2Config(text_config=text_side(), vision_config=vision_side(num_patches=4))
        return Siglip2Model(config), Siglip2ImageProcessor(patch_size=8, max_num_patches=4)
    if kind == "xclip":
        frames = {
            "num_frames": 4,
            "mit_hidden_size": 20,
            "mit_intermediate_size": 32,
            "mit_num_hidden_layers": 1,
            "mit_num_attention_heads": 2,
        }
        config = XCLIPConfig(
            text_config=text_side(),
            vision_config=vision_side(**frames),
            projection_dim=20,
            prompt_layers=1,
            prompt_num_attention_heads=2,
        )
        return XCLIPModel(config), VideoMAEImageProcessor(**cropped)
    if kind == "vit":
        return ViTModel(ViTConfig(**vision_side())), CLIPImageProcessor(**cropped)
    config = CLIPConfig(text_config=text_side(), vision_config=vision_side(), projection_dim=20)
    if kind == "clip16":
        config = CLIPConfig(text_config=text_side(), vision_config=vision_side(), projection_dim=16)
    return CLIPModel(config), CLIPImageProcessor(**cropped)


def saved(folder, kind):
    torch.manual_seed(1)
    model, processor = model_of(kind)
    for part in (model, processor, tokenizer()):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: saved(root / kind, kind) for kind in (*KINDS, "clip16", "siglip2", "vit")}


def extractor(folder, cache=False, **options):
    return make_extractor(EncoderFeatures(model=str(folder), cache=cache, **options), Path("/"))


@functools.cache
def shared(folder, **options):
    """The same without a cache; made once, because loading takes longest here."""
    return extractor(folder, **options)


def frames(count, seed=0, height=30, width=40):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def video(folder, name="v.mp4", content=b"some video"):
    path = folder / name
    path.write_bytes(content)
    return Media("video", path)


def call(media, shown, question="when does the cat jump", duration_s=16.0):
    """What a worker sees of a question about a video of which it was given frames."""
    views = (
        ()
        if shown is None
        else (View("video", shown, (0.0,) * len(shown), duration_s, media.path),)
    )
    info = (MediaInfo(media.kind, 40, 30, duration_s),)
    return Seen("moments/1", question, (media,), info, views)


def features(reader, *calls):
    return reader.encode(reader.collate([reader.prepare(seen) for seen in calls]), CPU)


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


# ---- each video once ----


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


# ---- messages ----


def test_an_empty_question_and_a_picture_are_refused(folders, tmp_path):
    reader = shared(folders["clip"])
    with pytest.raises(DataError, match=r"^moments/1: the question is empty; it must say what to"):
        reader.prepare(call(video(tmp_path), frames(4), "  "))
    picture = Media("image", tmp_path / "a.png")
    with pytest.raises(DataError, match="moments are found in a video, but its first medium is an"):
        reader.prepare(call(picture, frames(1)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere", "features.model '/nowhere': there is no folder /nowhere"),
        ("../nowhere/at/all", "there is no folder"),
        ("nobody/nothing", "there is no folder /nobody/nothing, and the hub gives no repository"),
    ],
)
def test_a_model_that_is_not_there_is_named(model, message):
    with pytest.raises(UsageError, match=message):
        extractor(model)


def test_a_folder_without_weights_or_with_a_revision_is_refused(folders, tmp_path):
    shutil.copy(folders["clip"] / "config.json", tmp_path)
    with pytest.raises(UsageError, match=r"must hold config.json and weights \(\*.safetensors or"):
        extractor(tmp_path)
    with pytest.raises(UsageError, match=r"is a local folder, so revision 'main' means nothing"):
        shared(folders["clip"], revision="main")


def test_a_model_with_one_side_only_is_refused_before_its_weights_are_read(folders, tmp_path):
    shutil.copytree(folders["vit"], tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(UsageError, match=r"is of the class 'vit', which does not encode both"):
        extractor(tmp_path / "vit")


def test_a_model_of_changing_resolution_is_refused(folders):
    with pytest.raises(UsageError, match=r"Siglip2ImageProcessor.* choose a model of fixed resol"):
        shared(folders["siglip2"])


def test_an_image_processor_that_keeps_the_shape_is_refused(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path / "clip")
    CLIPImageProcessor(size={"shortest_edge": 16}, do_center_crop=False).save_pretrained(
        tmp_path / "clip"
    )
    with pytest.raises(UsageError, match="does not resize and crop to one size"):
        extractor(tmp_path / "clip")


def test_weights_that_are_not_all_there_are_refused(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    weights = load_file(path)
    del weights["visual_projection.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack visual_projection.weight \(1 in all"):
        extractor(tmp_path / "clip")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be loaded from"):
        extractor(tmp_path / "clip")


def test_a_folder_without_image_processor_is_refused(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match="its image processor cannot be loaded from"):
        extractor(tmp_path / "clip")


def test_a_wrong_number_of_frames_for_an_encoder_of_videos_is_refused(folders):
    with pytest.raises(UsageError, match=r"frames_per_clip is 8, but .* was made for 4 frames"):
        shared(folders["xclip"], frames_per_clip=8)


def test_weights_in_the_older_format_are_read_too(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    seen = call(video(tmp_path), frames(4))
    found = features(extractor(tmp_path / "clip"), seen)
    assert torch.equal(found.clips, features(shared(folders["clip"]), seen).clips)
