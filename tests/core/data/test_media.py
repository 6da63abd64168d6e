"""Reading images and videos: made on the spot, the number of each frame is written in its grey."""

import av
import numpy as np
import pytest
from PIL import Image

from tpokit.data import video as video_module
from tpokit.data.media import frame_times, read_media
from tpokit.errors import DataError, UsageError
from tpokit.types import Media, MediaNeed

WIDTH, HEIGHT, RATE = 64, 48, 10


def write_video(path, frames=40, gop=10, rotation=0, times=None, audio=False, kind=None):
    """A video of 10 frames a second: frame i is grey of value 5 (i mod 50), corner red."""
    with av.open(str(path), "w", format=kind) as container:
        if audio:
            sound = container.add_stream("aac", rate=16000)
            sound.layout = "mono"
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = gop
        if times is not None:
            stream.options = {"bf": "0"}
        if rotation:
            stream.set_display_rotation(rotation)
        if audio:
            for packet in sound.encode(_silence(16000 * frames // RATE)):
                container.mux(packet)
            container.mux(sound.encode(None))
        for index in range(frames):
            picture = np.full((HEIGHT, WIDTH, 3), 5 * (index % 50), np.uint8)
            picture[:8, :8] = [255, 0, 0]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index if times is None else times[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _silence(samples):
    frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), "fltp", "mono")
    frame.sample_rate = 16000
    return frame


def numbers(view):
    """Frame numbers modulo 50, as read from the pixels."""
    return [round(float(frame[30:, 30:].mean()) / 5) for frame in view.frames]


def read_video(path, need, start_s=None, end_s=None, **more):
    return read_media(Media("video", path, start_s, end_s), {"head": need}, **more)["head"]


# ---- images ----


def test_an_image_is_one_frame_for_every_consumer(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    views = read_media(
        Media("image", tmp_path / "a.png"), {"backbone": MediaNeed(frames=4), "mask": MediaNeed()}
    )
    assert set(views) == {"backbone", "mask"}
    assert views["mask"].frames.dtype == np.uint8
    np.testing.assert_array_equal(views["mask"].frames, pixels[None])
    assert views["backbone"].times_s == (0.0,)
    assert (views["backbone"].info.width, views["backbone"].info.height) == (30, 20)


def test_a_photo_is_turned_as_its_exif_says(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :8] = 255  # a light left edge
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to show
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    frames = read_media(Media("image", tmp_path / "a.jpg"), {"x": MediaNeed()})["x"].frames
    assert frames.shape == (1, 32, 16, 3)
    assert frames[0, :6].mean() > 240  # the left edge is now on top
    assert frames[0, 12:].mean() < 15


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_any_colour_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (5, 4)).save(path)
    frames = read_media(Media("image", path), {"x": MediaNeed()})["x"].frames
    assert frames.shape == (1, 4, 5, 3)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "a.png")
    frames = read_media(Media("image", tmp_path / "a.png"), {"x": MediaNeed()})["x"].frames
    assert (frames == 0x80).all()


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_truncated_image_is_an_error_with_its_path(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)
    path = tmp_path / name
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=rf"{name}: cannot be read as an image: .*truncated"):
        read_media(Media("image", path), {"x": MediaNeed()})


def test_what_is_no_image_or_not_there_is_an_error_with_its_path(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a\.png: cannot be read as an image: cannot identify"):
        read_media(Media("image", tmp_path / "a.png"), {"x": MediaNeed()})
    with pytest.raises(DataError, match=r"b\.png: there is no such file"):
        read_media(Media("image", tmp_path / "b.png"), {"x": MediaNeed()})


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [12, 40])
def test_an_image_beyond_pillows_limit_is_an_error(tmp_path, monkeypatch, side):
    Image.new("RGB", (side, side)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        DataError, match=rf"a\.png: .*({side} x {side} pixels|{side * side} pixels)"
    ):
        read_media(Media("image", tmp_path / "a.png"), {"x": MediaNeed()})


# ---- which frames ----


def test_times_are_the_middles_of_equal_parts():
    assert frame_times(MediaNeed(frames=4), 2.0, 6.0) == [2.5, 3.5, 4.5, 5.5]
    assert frame_times(MediaNeed(rate=0.5), 0.0, 8.0) == [1.0, 3.0, 5.0, 7.0]
    assert frame_times(MediaNeed(rate=10, frames_max=2), 0.0, 4.0) == [1.0, 3.0]
    assert frame_times(MediaNeed(rate=0.1), 0.0, 1.0) == [0.5]
    with pytest.raises(UsageError, match="frames or rate"):
        frame_times(MediaNeed(), 0.0, 1.0)


def test_a_video_gives_the_frames_that_are_shown_at_the_times(tmp_path):
    view = read_video(write_video(tmp_path / "a.mp4"), MediaNeed(frames=8))
    assert view.kind == "video"
    assert view.duration_s == pytest.approx(4.0)
    assert numbers(view) == [2, 7, 12, 17, 22, 27, 32, 37]
    assert view.times_s == pytest.approx([0.2, 0.7, 1.2, 1.7, 2.2, 2.7, 3.2, 3.7])


def test_a_frame_is_shown_until_the_next_one(tmp_path):
    times = [0, 1, 2, 20, 21, 39]  # variable rate: frame 2 stays for 1.8 s
    path = write_video(tmp_path / "a.mp4", frames=6, times=times)
    view = read_video(path, MediaNeed(frames=4), 0.0, 4.0)  # 0.5, 1.5, 2.5, 3.5 s
    assert numbers(view) == [2, 2, 4, 4]
    assert view.times_s == pytest.approx([0.2, 0.2, 2.1, 2.1])


def test_consumers_share_one_pass_and_get_their_own_frames(tmp_path, monkeypatch):
    opened = []
    real = av.open
    monkeypatch.setattr(video_module.av, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
    path = write_video(tmp_path / "a.mp4")
    opened.clear()
    views = read_media(
        Media("video", path, 1.0, 3.0), {"few": MediaNeed(frames=2), "many": MediaNeed(rate=5)}
    )
    assert len(opened) == 1
    assert numbers(views["few"]) == [15, 25]
    assert numbers(views["many"]) == [11, 13, 15, 17, 19, 21, 23, 25, 27, 29]
    assert views["few"].duration_s == views["many"].duration_s == 2.0


def test_a_clip_that_was_filmed_upright_is_shown_upright(tmp_path):
    path = write_video(tmp_path / "a.mp4", rotation=90)  # counter-clockwise
    frames = read_video(path, MediaNeed(frames=1)).frames
    assert frames.shape == (1, WIDTH, HEIGHT, 3)
    red, grey = frames[0, -3, 2], frames[0, 2, 2]  # the upper left corner went to the lower left
    assert red[0] > 200
    assert red[1] < 60
    assert grey[0] == pytest.approx(grey[1], abs=3)


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_other_containers_count_from_their_first_frame(tmp_path, name):
    view = read_video(write_video(tmp_path / name), MediaNeed(frames=4))  # .ts starts at 1.4 s
    assert numbers(view) == [5, 15, 25, 35] or numbers(view) == [4, 14, 24, 34]
    assert [round(10 * at) for at in view.times_s] == numbers(view)


def test_sound_in_front_of_the_pictures_does_no_harm(tmp_path):
    view = read_video(write_video(tmp_path / "a.mp4", audio=True), MediaNeed(frames=4), 0.0, 4.0)
    assert numbers(view) == [5, 15, 25, 35]


# ---- what can go wrong ----


def test_a_part_beyond_the_end_or_empty_is_an_error(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    with pytest.raises(DataError, match=r"from 7 s is beyond the end, the video has 4\.00 s"):
        read_video(path, MediaNeed(frames=2), 7.0, 9.0)
    with pytest.raises(DataError, match=r"from 3 s to 2 s is empty"):
        read_video(path, MediaNeed(frames=2), 3.0, 2.0)


def test_an_end_beyond_the_end_means_the_end(tmp_path):
    view = read_video(write_video(tmp_path / "a.mp4"), MediaNeed(frames=1), 2.0, 9.0)
    assert view.duration_s == pytest.approx(2.0)
    assert numbers(view) == [30]


def test_a_sound_file_has_no_video_stream(tmp_path):
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        container.mux(stream.encode(_silence(16000)))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match=r"a\.m4a: has no video stream \(it holds audio\)"):
        read_video(tmp_path / "a.m4a", MediaNeed(frames=1))


def test_what_is_no_video_is_an_error_with_its_path(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(DataError, match=r"a\.mp4: cannot be decoded as a video: Invalid data"):
        read_video(tmp_path / "a.mp4", MediaNeed(frames=1))


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mkv"])
def test_a_truncated_video_is_an_error_and_never_a_still(tmp_path, name):
    path = write_video(tmp_path / name, frames=100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    if name == "a.ts":  # it has no header that says how long it was, so it is just shorter
        assert read_video(path, MediaNeed(frames=2)).duration_s < 6
        return
    with pytest.raises(DataError, match=name):
        read_video(path, MediaNeed(frames=8))


def test_decoding_that_takes_too_long_is_given_up(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    with pytest.raises(DataError, match=r"a\.mp4: decoding took longer than 0\.0001 s, given up"):
        read_video(path, MediaNeed(frames=8), limit_s=1e-4)
