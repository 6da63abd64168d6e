"""Frames of real containers and codecs at wanted seconds: the same as decoding everything."""

import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tpokit.data import video as video_module
from tpokit.data.video import Video
from tpokit.data.video_frames import FrameWalk
from tpokit.errors import DataError

WIDTH, HEIGHT, RATE = 64, 48, 10
REAL = Path(__file__).parents[4] / "shared" / "media" / "real" / "videos"
UNEVEN = [0, 1, 2, 20, 21, 39, 40, 41, 42, 80]
"""Tenths of a second at which frames are shown: a variable rate."""
QUIET = {"x265-params": "log-level=none"}
KINDS = {
    "mp4": ("a.mp4", {}),
    "mp4 open groups": ("a.mp4", {"codec_options": {"x264-params": "open-gop=1:bframes=3"}}),
    "mp4 in fragments": ("a.mp4", {"movflags": "frag_keyframe+empty_moov"}),
    "mp4 hevc": ("a.mp4", {"codec": "libx265", "codec_options": QUIET}),
    "mkv": ("a.mkv", {}),
    "mkv live": ("a.mkv", {"live": "1"}),
    "webm vp8": ("a.webm", {"codec": "libvpx", "codec_options": {"auto-alt-ref": "1"}}),
    "webm vp9": ("a.webm", {"codec": "libvpx-vp9"}),
    "webm live": ("a.webm", {"codec": "libvpx", "live": "1"}),
    "avi mpeg4": ("a.avi", {"codec": "mpeg4"}),
    "avi mpeg4 reordered": ("a.avi", {"codec": "mpeg4", "codec_options": {"bf": "2"}}),
    "avi h264 reordered": ("a.avi", {}),
    "ts": ("a.ts", {}),
    "flv": ("a.flv", {}),
}


def write(path, codec="libx264", shown=range(60), gop=12, sound=None, codec_options=None, **muxer):
    """A video with a step in its grey at each frame; ``shown``: tenths of a second."""
    with av.open(str(path), "w", container_options=muxer) as container:
        packets = [] if sound is None else sound_packets(container, sound, 0.1 * max(shown))
        stream = container.add_stream(codec, rate=RATE, options=codec_options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = gop
        for index, tenth in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = tenth, Fraction(1, RATE)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def picture(index, width=WIDTH, height=HEIGHT):
    return np.full((height, width, 3), 5 + 4 * (index % 60), np.uint8)


def sound_packets(container, codec, length_s):
    stream = container.add_stream(codec, rate=48000)
    stream.layout = "mono"
    name = stream.codec_context.format.name
    silence = np.zeros((1, 960), np.int16 if name.startswith("s16") else np.float32)
    packets = []
    for start in range(0, int(48000 * length_s), 960):
        frame = av.AudioFrame.from_ndarray(silence, name, "mono")
        frame.sample_rate, frame.pts = 48000, start
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def everything(path):
    """Pixels of all frames, in the order in which they are shown."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def read(path, times_s, limit_s=30.0):
    with Video(path, limit_s) as video:
        return video.frames(times_s)


def assert_shown(path, shown, times_s, whole=None):
    """What is read at some times is what stands in the file for them; ``whole``: `everything`."""
    whole = whole or everything(path)
    assert len(whole) == len(shown)
    found = read(path, times_s)
    expected = [
        max([n for n, at in enumerate(shown) if at <= 10 * t + 1e-6] or [0]) for t in times_s
    ]
    assert found.times_s == pytest.approx([shown[n] / 10 for n in expected], abs=2e-3)
    for frame, n in zip(found.frames, expected, strict=True):
        np.testing.assert_array_equal(frame, whole[n])


# ---- which frame is shown at a time ----


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_decoding_everything(tmp_path, kind):
    name, options = KINDS[kind]
    path = write(tmp_path / name, **options)
    whole = everything(path)
    for seed in range(6):
        random = np.random.default_rng(seed)
        count = int(random.integers(1, 17))
        times_s = np.sort(random.uniform(0, 5.99, count)).round(3) + 0.003  # between two frames
        assert_shown(path, range(60), times_s.tolist(), whole)
    assert_shown(path, range(60), [index / 10 + 0.05 for index in range(60)], whole)
    assert_shown(path, range(60), [4.15, 5.55], whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_is_as_long_as_its_frames(tmp_path, kind):
    name, options = KINDS[kind]
    with Video(write(tmp_path / name, **options), 30.0) as video:
        assert video.duration_s == pytest.approx(6.0, abs=0.02)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")],
)
def test_a_variable_rate_changes_nothing(tmp_path, name, codec):
    path = write(tmp_path / name, codec, UNEVEN)
    assert_shown(path, UNEVEN, [0.05, 0.15, 1.0, 1.95, 2.05, 3.5, 3.95, 4.15, 4.3, 7.9])


@pytest.mark.parametrize(
    ("name", "codec", "sound"),
    [
        ("a.mp4", "libx264", "aac"),
        ("a.mkv", "libx264", "aac"),
        ("a.webm", "libvpx", "libopus"),
        ("a.ts", "libx264", "aac"),
    ],
)
def test_pictures_that_begin_after_the_sound_keep_their_place(tmp_path, name, codec, sound):
    shown = range(20, 60)
    path = write(tmp_path / name, codec, shown, sound=sound)
    with Video(path, 30.0) as video:
        assert video.duration_s == pytest.approx(6.0, abs=0.03)
        found = video.frames([0.5, 2.07, 3.07, 5.57])
    whole = everything(path)
    assert found.times_s == pytest.approx([2.0, 2.0, 3.0, 5.5], abs=0.03)
    for frame, n in zip(found.frames, [0, 0, 10, 35], strict=True):
        np.testing.assert_array_equal(frame, whole[n])


@pytest.mark.parametrize("name", ["bottles", "cars", "conveyor", "nasa_webb"])
def test_real_videos_give_the_frames_of_decoding_everything(name):
    path = REAL / f"{name}.mp4"
    if not path.is_file():
        pytest.skip(f"{path} is not there: the real videos are not part of the repository")
    with Video(path, 30.0) as video:
        times_s = [video.duration_s * (index + 0.5) / 16 for index in range(16)]
        found = video.frames(times_s)
    expected = {}
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            expected.update(
                {at: frame for at in times_s if frame.time <= at + 1e-6}  # later ones replace it
            )
    for at, begin, pixels in zip(times_s, found.times_s, found.frames, strict=True):
        assert begin == pytest.approx(expected[at].time, abs=1e-6)
        np.testing.assert_array_equal(pixels, expected[at].to_ndarray(format="rgb24"))


def test_a_change_of_size_is_scaled_to_the_first_frame(tmp_path):
    """A browser that records a call changes the size of its pictures when the line gets slow."""
    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        small = av.CodecContext.create("libvpx", "w")
        small.width, small.height, small.pix_fmt = WIDTH // 2, HEIGHT // 2, "yuv420p"
        small.time_base = Fraction(1, RATE)
        for encoder, first in ((stream, 0), (small, 10)):
            size = (encoder.width, encoder.height)
            for index in range(first, first + 10):
                frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, RATE)
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
            for packet in encoder.encode(None):
                packet.stream = stream
                container.mux(packet)
    found = read(path, [0.55, 1.55])
    assert found.frames.shape == (2, HEIGHT, WIDTH, 3)
    assert everything(path)[15].shape == (HEIGHT // 2, WIDTH // 2, 3)
    assert [(frame.mean() - 5) / 4 for frame in found.frames] == pytest.approx([5, 15], abs=0.6)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_frames_are_turned_and_mirrored_as_the_file_says(tmp_path, rotation, mirrored):
    flat = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    flat[:24, :32], flat[:24, 32:], flat[24:, :32] = 60, 120, 180
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.set_display_rotation(rotation, hflip=mirrored)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(flat, format="rgb24")))
        container.mux(stream.encode(None))
    expected = np.rot90(flat, rotation // 90)
    expected = expected[:, ::-1] if mirrored else expected
    found = read(tmp_path / "a.mp4", [0.0]).frames[0]
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 8


# ---- how little is decoded ----


@pytest.fixture
def decoded(monkeypatch):
    """Counts the frames that come out of the decoder."""
    counted = []
    real = FrameWalk._decode

    def counting(walk, packet):
        before = len(walk._decoded)
        real(walk, packet)
        counted.extend([1] * (len(walk._decoded) - before))

    monkeypatch.setattr(FrameWalk, "_decode", counting)
    return counted


def test_a_key_frame_in_between_is_jumped_to(tmp_path, decoded):
    path = write(tmp_path / "a.mp4", shown=range(300))
    assert_shown(path, range(300), [28.05])
    assert len(decoded) < 12


def test_without_an_index_a_long_gap_is_jumped_over(tmp_path, decoded):
    path = write(tmp_path / "a.ts", shown=range(300))
    assert_shown(path, range(300), [0.05, 28.05])
    assert len(decoded) < 60


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mkv"])
def test_key_frames_that_are_far_apart_cost_little(tmp_path, decoded, name):
    path = write(tmp_path / name, shown=range(300), gop=300)
    assert_shown(path, range(300), [index + 0.05 for index in range(0, 30, 3)])
    assert len(decoded) < 2 * 300


def test_frames_that_nobody_wants_and_no_other_needs_are_not_decoded(tmp_path, decoded):
    path = write(tmp_path / "a.mp4", shown=range(100), gop=300)
    assert_shown(path, range(100), [3.05, 9.95])
    assert len(decoded) < 70


def test_a_file_that_is_wrong_about_which_frames_are_needed_is_decoded_whole(tmp_path, monkeypatch):
    def wrong(walk, packet):
        if packet.pts is not None:
            walk._passed.append(packet.pts)
        return True

    monkeypatch.setattr(FrameWalk, "_unwanted", wrong)
    path = write(tmp_path / "a.mp4")
    assert_shown(path, range(60), [index / 10 + 0.05 for index in range(60)])


def test_large_frames_are_decoded_by_all_cores(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4")
    monkeypatch.setattr(video_module, "_LARGE_PIXELS", WIDTH * HEIGHT)
    assert_shown(path, range(60), [0.55, 1.55, 1.65, 5.55])


# ---- what can go wrong ----


def test_a_tag_in_another_encoding_does_no_harm(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "cafe"
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(3), format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"cafe", b"caf\xe9"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path)).close()
    assert read(path, [0.0]).frames.shape == (1, HEIGHT, WIDTH, 3)


def test_a_codec_that_nobody_knows_is_an_error_with_the_path(tmp_path):
    path = write(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"xyz1"))
    with pytest.raises(DataError, match=r"a\.mp4: FFmpeg has no decoder for its video stream"):
        Video(path, 30.0)


def test_frames_that_are_too_large_are_an_error_before_decoding(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4")
    monkeypatch.setattr(video_module, "FRAME_PIXELS_MAX", WIDTH * HEIGHT - 1)
    with pytest.raises(DataError, match=r"a\.mp4: a video of 64 x 48 pixels is larger than"):
        Video(path, 30.0)


def test_a_stream_without_times_is_an_error_with_the_path(tmp_path):
    with pytest.raises(DataError, match=r"a\.h264: its frames have no times"):
        Video(write(tmp_path / "a.h264"), 30.0)


def test_damage_in_the_middle_is_an_error_with_the_path(tmp_path):
    path = write(tmp_path / "a.mp4")
    whole = bytearray(path.read_bytes())
    start = whole.index(b"mdat") + 1200
    whole[start : start + 100] = b"\xff" * 100
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"a\.mp4: cannot be decoded as a video: Invalid data"):
        read(path, [index / 10 + 0.05 for index in range(60)])


@pytest.mark.parametrize("wait_s", [20.0, 40.0])
def test_the_time_is_up_inside_ffmpeg_too(tmp_path, monkeypatch, wait_s):
    """Each look at the clock finds it ``wait_s`` later: a disk that hardly answers."""
    path = write(tmp_path / "a.mp4", shown=range(300))
    video = Video(path, 30.0)
    now_s = time.monotonic()

    def late():
        nonlocal now_s
        now_s += wait_s
        return now_s

    with video, monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", late)
        with pytest.raises(DataError, match=r"a\.mp4: decoding took longer than 30 s, given up"):
            video.frames([28.05])
