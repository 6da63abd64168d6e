"""Features in files: what is read, how files are put together, and every message."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file

from tpokit import DataError, Media, MediaInfo, Seen, UsageError
from tpokit_temporal.features.choice import make_extractor
from tpokit_temporal.features.extractor import padded, unit
from tpokit_temporal.features.files import FileExtractor
from tpokit_temporal.features.options import (
    BackboneFeatures,
    EncoderFeatures,
    FeatureOptions,
    FileFeatures,
)

WIDTH = 6


def numbers(rows, width=WIDTH, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def write(path, array, key="features"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **{key: array})
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        save_file({key: torch.as_tensor(array)}, path)


def call(video="v1", duration_s=20.0, query_id="7", start_s=None, end_s=None, kind="video"):
    media = Media(kind, Path("videos") / f"{video}.mp4", start_s, end_s)
    return Seen(
        where=f"highlights/{query_id}",
        question="When?",
        media=(media,),
        info=(MediaInfo(kind, 64, 48, duration_s),),
        sample_id=query_id,
    )


def extractor(folder, video=({"folder": "clip", "width": WIDTH},), text=None, scaled=True, **more):
    """Over the folder ``clip``, if nothing else is said, with clips of 2 s."""
    (folder / "clip").mkdir(exist_ok=True)
    video = [{"normalise": scaled, **source} for source in video]
    text = text and {"normalise": scaled, **text}
    return FileExtractor(FileFeatures(video=video, text=text, **more), folder)


# ---- what is read ----


@pytest.mark.parametrize("ending", [".npz", ".npy", ".safetensors"])
def test_the_rows_of_a_file_are_the_clips_of_its_video(tmp_path, ending):
    rows = numbers(10)
    write(tmp_path / "clip" / f"v1{ending}", rows)
    reader = extractor(
        tmp_path,
        video=[{"folder": "clip", "width": WIDTH, "pattern": f"{{video}}{ending}"}],
        scaled=False,
    )
    prepared = reader.prepare(call())
    assert np.array_equal(prepared.clips, rows)
    assert (prepared.clip_count, prepared.clip_s, prepared.words) == (10, 2.0, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_number_formats_that_numpy_may_lack_become_float32(tmp_path, dtype):
    rows = torch.arange(10 * WIDTH).reshape(10, WIDTH).to(dtype)
    write(tmp_path / "clip" / "v1.safetensors", rows)
    video = [{"folder": "clip", "width": WIDTH, "pattern": "{video}.safetensors"}]
    clips = extractor(tmp_path, video=video, scaled=False).prepare(call()).clips
    assert clips.dtype == np.float32
    assert np.array_equal(clips, rows.float().numpy())


def test_sources_are_scaled_each_and_put_side_by_side_up_to_the_shortest(tmp_path):
    slow, clip = numbers(10, 5), 100 * numbers(9, 3, seed=1)
    write(tmp_path / "slowfast" / "v1.npz", slow)
    write(tmp_path / "clip" / "v1.npz", clip, key="image_features")
    reader = extractor(
        tmp_path, video=[{"folder": "slowfast", "width": 5}, {"folder": "clip", "width": 3}]
    )
    assert reader.video_width == 8
    clips = reader.prepare(call()).clips
    assert clips.shape == (9, 8)
    for part, rows in ((clips[:, :5], slow[:9]), (clips[:, 5:], clip)):
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(part, rows / (lengths + 1e-5), rtol=1e-6)


def test_a_finer_source_is_averaged_over_the_clips_of_the_coarser_one(tmp_path):
    write(tmp_path / "coarse" / "v1.npy", np.full((3, 2), 7.0))
    write(tmp_path / "fine" / "v1.npy", np.array([[0.0], [2.0], [10.0], [20.0], [5.0]]))
    video = [
        {"folder": "coarse", "width": 2, "clip_s": 2, "pattern": "{video}.npy"},
        {"folder": "fine", "width": 1, "clip_s": 1, "pattern": "{video}.npy"},
    ]
    prepared = extractor(tmp_path, video=video, scaled=False).prepare(call(duration_s=5.2))
    assert prepared.clips.tolist() == [[7, 7, 1], [7, 7, 15], [7, 7, 5]]
    assert prepared.clip_s == 2


@settings(max_examples=30, deadline=None)
@given(rows=some.integers(1, 60), row_s=some.floats(0.2, 3), factor=some.floats(1, 6))
def test_averaging_takes_the_rows_whose_middle_lies_in_the_clip(
    tmp_path_factory, rows, row_s, factor
):
    folder = tmp_path_factory.mktemp("rates")
    clip_s = row_s * factor
    fine = numbers(rows, 2)
    middles_s = (np.arange(rows) + 0.5) * row_s
    borders = np.abs(middles_s / clip_s - np.round(middles_s / clip_s))
    if borders.min() < 1e-9:  # a row in the middle of two clips: rounding decides
        return
    clips = int(middles_s[-1] // clip_s) + 1
    write(folder / "coarse" / "v1.npy", np.ones((clips, 1)))
    write(folder / "fine" / "v1.npy", fine)
    video = [
        {"folder": "coarse", "width": 1, "clip_s": clip_s, "pattern": "{video}.npy"},
        {"folder": "fine", "width": 2, "clip_s": row_s, "pattern": "{video}.npy"},
    ]
    reader = extractor(folder, video=video, scaled=False, slack_clips=2)
    found = reader.prepare(call(duration_s=rows * row_s)).clips[:, 1:]
    wanted = [fine[(middles_s // clip_s) == clip].mean(0) for clip in range(clips)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_part_of_a_video_gets_the_rows_of_that_part(tmp_path):
    rows = numbers(50)
    write(tmp_path / "clip" / "v1.npz", rows)
    reader = extractor(tmp_path, scaled=False)
    seen = call(start_s=30.0, end_s=50.0, duration_s=20.0)
    assert np.array_equal(reader.prepare(seen).clips, rows[15:25])
    first = call(end_s=30.0, duration_s=30.0)  # how DiDeMo videos are meant
    assert np.array_equal(reader.prepare(first).clips, rows[:15])


def test_a_clip_too_many_is_cut_off(tmp_path):
    rows = numbers(10)
    write(tmp_path / "clip" / "v1.npz", rows)
    prepared = extractor(tmp_path, clips_max=9, scaled=False).prepare(call())
    assert np.array_equal(prepared.clips, rows[:9])
    assert (prepared.clip_count, prepared.clip_s) == (9, 2.0)


def test_a_video_of_too_many_clips_gets_longer_ones(tmp_path):
    rows = numbers(10)
    write(tmp_path / "clip" / "v1.npz", rows)
    prepared = extractor(tmp_path, clips_max=5, scaled=False).prepare(call())
    np.testing.assert_allclose(prepared.clips, rows.reshape(5, 2, WIDTH).mean(1), rtol=1e-6)
    assert (prepared.clip_count, prepared.clip_s) == (5, 4.0)
    for clips_max in range(1, 9):  # every one has its rows, and together they are the whole video
        found = extractor(tmp_path, clips_max=clips_max).prepare(call())
        assert len(found.clips) == found.clip_count == clips_max
        assert found.clip_count * found.clip_s == pytest.approx(20.0)
        np.testing.assert_allclose(np.linalg.norm(found.clips, axis=1), 1.0, atol=1e-4)


# ---- words ----


def test_words_come_by_the_id_of_the_query_and_are_scaled(tmp_path):
    write(tmp_path / "clip" / "v1.npz", numbers(10))
    words = 9 * numbers(5, 4, seed=2)
    path = tmp_path / "text" / "qid7.npz"
    path.parent.mkdir()
    np.savez(path, pooler_output=words[0], last_hidden_state=words)  # as published
    reader = extractor(tmp_path, text={"folder": "text", "width": 4})
    assert reader.text_width == 4
    assert not reader.context_need().question
    lengths = np.linalg.norm(words, axis=1, keepdims=True)
    np.testing.assert_allclose(reader.prepare(call()).words, words / (lengths + 1e-5), rtol=1e-6)


def test_words_can_stay_as_they_are_beside_scaled_clips(tmp_path):
    write(tmp_path / "clip" / "v1.npz", 5 * numbers(10))
    write(tmp_path / "text" / "qid7.npz", 5 * numbers(3, 4))
    text = {"folder": "text", "width": 4, "normalise": False}  # how TVSum is published
    prepared = extractor(tmp_path, text=text).prepare(call())
    assert np.array_equal(prepared.words, 5 * numbers(3, 4))
    np.testing.assert_allclose(np.linalg.norm(prepared.clips, axis=1), 1.0, atol=1e-4)


def test_a_single_vector_of_a_query_is_one_word(tmp_path):
    write(tmp_path / "clip" / "v1.npz", numbers(10))
    write(tmp_path / "text" / "v1-7.npz", numbers(1, 4)[0], key="pooler_output")
    text = {"folder": "text", "width": 4, "pattern": "{video}-{query_id}.npz"}
    assert extractor(tmp_path, text=text).prepare(call()).words.shape == (1, 4)


def test_a_query_with_too_many_words_is_cut_or_refused_as_the_recipe_says(tmp_path):
    write(tmp_path / "clip" / "v1.npz", numbers(10))
    words = numbers(9, 4)
    write(tmp_path / "text" / "qid7.npz", words)
    text = {"folder": "text", "width": 4, "words_max": 6}
    cut = extractor(tmp_path, text=text, scaled=False).prepare(call()).words
    assert np.array_equal(cut, words[:6])
    refusing = extractor(tmp_path, text={**text, "longer": "error"})
    with pytest.raises(DataError, match=r"has 9 words, but at most 6 fit \(features.text.words_m"):
        refusing.prepare(call())


def test_without_files_of_queries_the_words_are_those_of_the_llm(tmp_path):
    reader = extractor(tmp_path)
    assert reader.text_width is None
    assert reader.context_need().question
    assert reader.context_need().media is None
    assert not reader.wants_frames(call().media[0])


# ---- batches ----


def test_calls_of_different_lengths_are_padded_and_masked(tmp_path):
    for video, rows in (("v1", 10), ("v2", 4)):
        write(tmp_path / "clip" / f"{video}.npz", numbers(rows))
    for query, words in (("7", 3), ("8", 5)):
        write(tmp_path / "text" / f"qid{query}.npz", numbers(words, 4))
    reader = extractor(tmp_path, text={"folder": "text", "width": 4})
    calls = [
        reader.prepare(call("v1", 20.0, "7")),
        reader.prepare(call("v2", 8.5, "8")),
    ]
    found = reader.encode(reader.collate(calls), torch.device("cpu"))
    assert found.clips.shape == (2, 10, WIDTH)
    assert found.words.shape == (2, 5, 4)
    assert found.clip_mask.sum(1).tolist() == [10, 4]
    assert found.word_mask.sum(1).tolist() == [3, 5]
    assert found.clip_s.tolist() == [2.0, 2.0]
    assert torch.equal(found.clips[1, :4], torch.from_numpy(calls[1].clips))
    assert not found.clips[1, 4:].any()
    assert not found.words[0, 3:].any()
    assert found.clips.dtype == found.words.dtype == torch.float32


def test_no_call_gives_empty_tensors_of_the_right_widths(tmp_path):
    (tmp_path / "text").mkdir()
    reader = extractor(tmp_path, text={"folder": "text", "width": 4})
    found = reader.encode(reader.collate([]), torch.device("cpu"))
    assert found.clips.shape == (0, 1, WIDTH)
    assert found.clip_mask.shape == (0, 1)
    assert found.words.shape == (0, 1, 4)
    assert found.word_mask.shape == (0, 1)
    assert found.clip_s.shape == (0,)
    wordless = extractor(tmp_path)
    assert wordless.encode(wordless.collate([]), torch.device("cpu")).words is None


def test_a_zero_row_stays_zero_when_it_is_scaled():
    assert not unit(torch.zeros(2, 3)).any()
    assert padded([torch.ones(2, 3)], 3)[1].tolist() == [[True, True]]


# ---- messages ----


def refused(reader, seen=None):
    with pytest.raises(DataError) as found:
        reader.prepare(seen or call())
    return str(found.value)


@pytest.mark.parametrize(
    ("array", "key", "message"),
    [
        (np.zeros(8), "features", r"has the shape \[8\]; it must be \[clips, 6\], a row for each"),
        (np.zeros((1, 10, 6)), "features", r"has the shape \[1, 10, 6\]; it must be \[clips, 6\]"),
        (np.zeros((10, 8)), "features", "has 8 numbers a clip, but the recipe says width: 6"),
        (np.zeros((0, 6)), "features", "is empty; it needs at least one clip"),
        (np.full((10, 6), np.inf), "features", "row 0 has a number that is not finite"),
        (np.array([["a"] * 6] * 10), "features", "holds <U1 instead of real numbers"),
        (np.zeros((10, 6), complex), "features", "holds complex128 instead of real numbers"),
        (np.array([None] * 10), "features", "cannot be read as .npz: Object arrays cannot be load"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, array, key, message):
    write(tmp_path / "clip" / "v1.npz", array, key)
    said = refused(extractor(tmp_path))
    assert said.startswith(f"highlights/7: {tmp_path / 'clip' / 'v1.npz'}")
    assert re.search(message, said), said


def test_the_row_that_is_not_finite_is_named(tmp_path):
    rows = numbers(10)
    rows[6, 2] = np.nan
    write(tmp_path / "clip" / "v1.npz", rows)
    assert "row 6 has a number that is not finite" in refused(extractor(tmp_path))


def test_a_missing_array_is_refused_with_those_that_are_there(tmp_path):
    path = tmp_path / "clip" / "v1.npz"
    path.parent.mkdir()
    np.savez(path, a=numbers(10), b=numbers(10))
    said = refused(extractor(tmp_path, video=[{"folder": "clip", "width": WIDTH, "key": "c"}]))
    assert said.endswith("has no array 'c'; it holds a, b")
    assert refused(extractor(tmp_path)).endswith("holds a, b; say with 'key' which one is meant")


def test_a_missing_file_is_named(tmp_path):
    said = refused(extractor(tmp_path))
    assert said == f"highlights/7: there is no file {tmp_path / 'clip' / 'v1.npz'}"


def test_a_missing_file_of_a_query_says_what_a_free_question_needs(tmp_path):
    write(tmp_path / "clip" / "v1.npz", numbers(10))
    (tmp_path / "text").mkdir()
    said = refused(extractor(tmp_path, text={"folder": "text", "width": 4}))
    assert f"there is no file {tmp_path / 'text' / 'qid7.npz'} with features of the query" in said
    assert "can only be asked without features.text" in said


@pytest.mark.parametrize("ending", [".npz", ".npy", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 40, 150])
def test_a_file_that_is_cut_off_is_refused(tmp_path, ending, kept):
    path = tmp_path / "clip" / f"v1{ending}"
    write(path, numbers(10))
    path.write_bytes(path.read_bytes()[:kept])
    video = [{"folder": "clip", "width": WIDTH, "pattern": f"{{video}}{ending}"}]
    assert f"cannot be read as {ending}:" in refused(extractor(tmp_path, video=video))


@pytest.mark.parametrize("slack", [0, 1, 3])
@pytest.mark.parametrize("duration_s", [1.0, 13.9, 14.1, 17.9, 18.1, 20.0, 21.9, 22.1, 26.1])
def test_a_length_may_miss_the_duration_by_rounding_and_the_slack(tmp_path, slack, duration_s):
    write(tmp_path / "clip" / "v1.npz", numbers(10))
    reader = extractor(tmp_path, slack_clips=slack)
    seen = call(duration_s=duration_s)
    if 20 - 2 * slack - 2 < duration_s < 20 + 2 * slack + 2:
        assert reader.prepare(seen).clip_count == 10
    else:
        said = refused(reader, seen)
        assert f"has 10 clips of 2 s, but the video v1.mp4 up to {duration_s:.2f} s makes" in said
        assert said.endswith("is it the right file, and is clip_s right?")


def test_the_message_about_a_length_says_what_would_fit(tmp_path):
    write(tmp_path / "clip" / "v1.npz", numbers(10))
    said = refused(extractor(tmp_path), call(duration_s=41.0))
    assert "the video v1.mp4 up to 41.00 s makes 19 to 22;" in said


def test_a_part_that_lies_behind_the_features_is_refused(tmp_path):
    write(tmp_path / "clip" / "v1.npz", numbers(10))
    reader = extractor(tmp_path)
    assert "up to 40.00 s makes at least" in refused(reader, call(start_s=30.0, duration_s=10.0))
    assert reader.prepare(call(start_s=10.0, duration_s=11.0)).clip_count == 5


def test_sources_of_very_different_lengths_are_refused(tmp_path):
    write(tmp_path / "slowfast" / "v1.npz", numbers(12))
    write(tmp_path / "clip" / "v1.npz", numbers(10))
    reader = extractor(
        tmp_path,
        video=[{"folder": "slowfast", "width": WIDTH}, {"folder": "clip", "width": WIDTH}],
    )
    said = refused(reader, call(duration_s=22.0))
    assert "features of the video 'v1' differ in length: slowfast: 12, clip: 10 clips" in said


def test_a_picture_and_no_medium_at_all_are_refused(tmp_path):
    reader = extractor(tmp_path)
    said = refused(reader, call(kind="image", duration_s=0.0))
    assert said == "highlights/7: moments are found in a video, but its first medium is an image"
    assert refused(reader, Seen("highlights/7")).endswith("but it has no medium")


def test_a_missing_folder_is_refused_before_anything_is_read(tmp_path):
    options = FileFeatures(video=[{"folder": "nowhere", "width": 3}])
    with pytest.raises(UsageError, match=rf"features: there is no folder {tmp_path / 'nowhere'}"):
        make_extractor(options, tmp_path)


# ---- options ----


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("features.npz", "must hold {video}, and {video} only"),
        ("{video}{clip}.npz", "must hold {video}, and {video} only"),
        ("{video!r}.npz", "must hold {video}, and {video} only"),
        ("{video:>9}.npz", "must hold {video}, and {video} only"),
        ("{video.npz", "is no pattern"),
        ("{video}.pt", "must end in .npz, .npy, .safetensors"),
    ],
)
def test_a_pattern_that_cannot_be_filled_in_is_refused(pattern, message):
    with pytest.raises(ValidationError, match=message):
        FileFeatures(video=[{"folder": "a", "width": 1, "pattern": pattern}])


def test_a_key_for_a_file_without_names_is_refused():
    source = {"folder": "a", "width": 1, "pattern": "{video}.npy", "key": "features"}
    with pytest.raises(ValidationError, match=r"a \.npy file holds one array without a name"):
        FileFeatures(video=[source])


def test_the_kind_says_which_options_are_meant():
    read = TypeAdapter(FeatureOptions).validate_python
    assert read({"kind": "backbone", "rate": 2}) == BackboneFeatures(rate=2)
    assert read({"kind": "encoder", "model": "m", "cache": False}).cache is False
    assert isinstance(read({"kind": "encoder", "model": "m"}), EncoderFeatures)
    files = read({"kind": "files", "video": [{"folder": "a", "width": 3}]})
    assert files.video[0].pattern == "{video}.npz"
    with pytest.raises(ValidationError, match="'backbone', 'encoder', 'files'"):
        read({"kind": "slowfast"})


def test_options_do_not_import_torch():
    code = "import sys, tpokit_temporal.features.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
