"""A folder of frames is read like the video file of the same frames."""

import numpy as np
import pytest
from PIL import Image

from tests.core.data.test_video import write
from tpokit.data import frame_folder, image
from tpokit.data.frame_folder import FrameFolder
from tpokit.data.media import read_media
from tpokit.errors import DataError
from tpokit.types import Media, MediaNeed

WIDTH, HEIGHT = 12, 8


def frame_folder_of(folder, count, name="{:05}.png", size=(WIDTH, HEIGHT)):
    """Frame k is grey of value k."""
    folder.mkdir(exist_ok=True)
    for index in range(count):
        Image.new("RGB", size, (index,) * 3).save(folder / name.format(index))
    return folder


def read(folder, need, rate=10.0, start_s=None, end_s=None, **more):
    media = Media("video", folder, start_s, end_s, rate)
    return read_media(media, {"head": need}, **more)["head"]


def numbers(view):
    return view.frames[:, 0, 0, 0].tolist()


def test_a_folder_is_read_by_seconds_as_a_file_is(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 40)
    file = write(tmp_path / "a.mp4", shown=range(40))
    for need in (MediaNeed(frames=8), MediaNeed(rate=3), MediaNeed(rate=30), MediaNeed(frames=1)):
        for part in ((None, None), (1.0, 3.0), (0.55, 9.0)):
            found = read(folder, need, 10.0, *part)
            expected = read_media(Media("video", file, *part), {"head": need})["head"]
            assert found.times_s == pytest.approx(expected.times_s, abs=1e-9)
            assert found.duration_s == pytest.approx(expected.duration_s)
            assert numbers(found) == [round(10 * at) for at in found.times_s]
            assert (found.kind, found.frames.dtype) == ("video", np.uint8)


def test_frame_k_is_shown_from_k_divided_by_the_rate(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 10)
    view = read(folder, MediaNeed(frames=4), rate=2.5)
    assert view.duration_s == 4.0
    assert numbers(view) == [1, 3, 6, 8]
    assert view.times_s == (0.4, 1.2, 2.4, 3.2)
    assert view.info.width, view.info.height == (WIDTH, HEIGHT)


@pytest.mark.parametrize("rate", [6, 24, 29.97, 30, 60])
def test_each_frame_begins_exactly_at_its_time(tmp_path, rate):
    folder = frame_folder_of(tmp_path / "frames", 70, "{}.png", (2, 2))
    with FrameFolder(folder, rate, 30.0) as frames:
        shown = frames.frames([index / rate for index in range(70)])
    assert shown.frames[:, 0, 0, 0].tolist() == list(range(70))
    assert shown.times_s == tuple(index / rate for index in range(70))


def test_only_wanted_frames_are_opened_and_each_once(tmp_path, monkeypatch):
    folder = frame_folder_of(tmp_path / "frames", 30)
    opened = []
    real = Image.open
    monkeypatch.setattr(image.Image, "open", lambda path: opened.append(path.stem) or real(path))
    media = Media("video", folder, rate=10.0)
    read_media(media, {"few": MediaNeed(frames=2), "all": MediaNeed(rate=1), "x": MediaNeed(1)})
    assert opened == ["00005", "00007", "00015", "00022", "00025"]


def test_numbers_in_names_count_as_numbers_and_other_files_are_left_alone(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 12, "shot 1 - {}.PNG")
    (folder / "readme.txt").write_text("about")
    (folder / "._shot 1 - 0.png").write_bytes(b"of another system")
    assert numbers(read(folder, MediaNeed(rate=10))) == list(range(12))


def test_a_frame_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path, MediaNeed(frames=1)).frames.shape == (1, WIDTH, HEIGHT, 3)


# ---- what can go wrong ----


def test_a_rate_belongs_to_a_folder_and_a_folder_needs_one(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 2)
    with pytest.raises(DataError, match=r"frames: a folder of frames; give its frames per second"):
        read(folder, MediaNeed(frames=1), rate=None)
    with pytest.raises(DataError, match=r"00000\.png: a rate of 10 frames a second .* is a file"):
        read(folder / "00000.png", MediaNeed(frames=1))
    with pytest.raises(DataError, match=r"frames: a folder, but an image is a file"):
        read_media(Media("image", folder), {"head": MediaNeed(frames=1)})


@pytest.mark.parametrize("rate", [0.0, -3.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_an_error(tmp_path, rate):
    folder = frame_folder_of(tmp_path / "frames", 2)
    with pytest.raises(DataError, match=r"frames: .* frames a second; the rate must be above 0"):
        read(folder, MediaNeed(frames=1), rate=rate)


def test_a_folder_without_frames_or_none_at_all_is_an_error(tmp_path):
    (tmp_path / "a.gif").write_text("")
    with pytest.raises(DataError, match=r"without frames; it must hold \.jpg, \.jpeg, \.png"):
        read(tmp_path, MediaNeed(frames=1))
    with pytest.raises(DataError, match=r"gone: there is no such file"):
        read(tmp_path / "gone", MediaNeed(frames=1))


def test_a_broken_frame_is_named(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 5)
    (folder / "00003.png").write_bytes(b"no picture")
    assert numbers(read(folder, MediaNeed(frames=1))) == [2], "it is not wanted here"
    with pytest.raises(DataError, match=r"00003\.png: cannot be read as an image: cannot identify"):
        read(folder, MediaNeed(rate=10))


def test_a_frame_of_another_size_is_named_with_both_sizes(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 5)
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "00003.png")
    with pytest.raises(
        DataError, match=r"00003\.png: a frame of 8 x 12 pixels, but 00000\.png has 12 x 8"
    ):
        read(folder, MediaNeed(rate=10))


def test_a_part_beyond_the_end_is_an_error(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 5)
    with pytest.raises(DataError, match=r"from 0\.5 s is beyond the end, the video has 0\.50 s"):
        read(folder, MediaNeed(frames=1), start_s=0.5)


def test_reading_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    folder = frame_folder_of(tmp_path / "frames", 5)
    now_s = iter(range(100))
    monkeypatch.setattr(frame_folder.time, "monotonic", lambda: next(now_s))
    with pytest.raises(DataError, match=r"frames: decoding took longer than 2 s, given up"):
        read(folder, MediaNeed(rate=10), limit_s=2.0)
