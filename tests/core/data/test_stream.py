"""Streaming gives what reading gives, a few frames at a time."""

import gc
import time
import weakref
from itertools import islice

import av
import numpy as np
import pytest
from PIL import Image

from tests.core.data.test_frame_folder import frame_folder_of
from tests.core.data.test_video import HEIGHT, KINDS, UNEVEN, WIDTH, everything, write
from tpokit.data import image
from tpokit.data.media import read_media
from tpokit.data.stream import TimedFrame, stream_frames
from tpokit.data.video_frames import FrameWalk, MissedFrameError
from tpokit.errors import DataError, UsageError
from tpokit.types import Media, MediaNeed


def times(frames):
    return [frame.time_s for frame in frames]


def assert_same(frames, view):
    """What was streamed is what was read, without repeats."""
    kept = [index for index, at in enumerate(view.times_s) if at not in view.times_s[:index]]
    assert times(frames) == [view.times_s[index] for index in kept]
    for frame, index in zip(frames, kept, strict=True):
        np.testing.assert_array_equal(frame.pixels, view.frames[index])


def read(media, rate):
    return read_media(media, {"head": MediaNeed(rate=rate, frames_max=999)})["head"]


# ---- which frames ----


@pytest.mark.parametrize(
    "kind",
    ["mp4", "mp4 open groups", "mkv live", "webm vp9", "avi h264 reordered", "ts", "flv"],
)
def test_what_comes_is_what_decoding_everything_and_what_reading_give(tmp_path, kind):
    name, options = KINDS[kind]
    path = write(tmp_path / name, **options)
    found = list(stream_frames(Media("video", path)))
    whole = everything(path)
    assert times(found) == pytest.approx([index / 10 for index in range(60)], abs=2e-3)
    for frame, pixels in zip(found, whole, strict=True):
        np.testing.assert_array_equal(frame.pixels, pixels)
    for part, first, last in (((2.95, 4.0), 29, 39), ((4.0, None), 40, 59), ((0.0, 0.01), 0, 0)):
        found = list(stream_frames(Media("video", path, *part)))
        assert [round(10 * at) for at in times(found)] == list(range(first, last + 1))
        np.testing.assert_array_equal(found[0].pixels, whole[first])
        np.testing.assert_array_equal(found[-1].pixels, whole[last])
    for part, rate in (((None, None), 2.0), ((1.23, 4.9), 7.3)):
        media = Media("video", path, *part)
        assert_same(list(stream_frames(media, rate)), read(media, rate))


def test_times_of_a_variable_rate_are_kept_and_no_frame_comes_twice(tmp_path):
    path = write(tmp_path / "a.mp4", shown=UNEVEN)
    found = list(stream_frames(Media("video", path)))
    assert times(found) == pytest.approx([at / 10 for at in UNEVEN])
    assert_same(list(stream_frames(Media("video", path), 3.0)), read(Media("video", path), 3.0))
    fast = list(stream_frames(Media("video", path), 1000.0))
    assert times(fast) == times(found)[:-1], "the file says that it ends where its last one begins"


def test_a_folder_of_frames_streams_as_it_is_read(tmp_path):
    media = Media("video", frame_folder_of(tmp_path / "frames", 20), 0.52, 1.5, rate=10.0)
    found = list(stream_frames(media))
    assert times(found) == [index / 10 for index in range(5, 15)]
    assert [frame.pixels[0, 0, 0] for frame in found] == list(range(5, 15))
    assert_same(list(stream_frames(media, 4.0)), read(media, 4.0))


def test_an_image_is_one_frame_at_the_start(tmp_path):
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "a.png")
    (frame,) = stream_frames(Media("image", tmp_path / "a.png"), 2.0)
    assert isinstance(frame, TimedFrame)
    assert (frame.time_s, frame.pixels.shape) == (0.0, (4, 5, 3))


@pytest.mark.parametrize("turn", [0, 90])
def test_frames_are_writable_and_lie_in_one_piece_however_they_are_turned(tmp_path, turn):
    from tests.core.data.test_media import write_video

    path = write_video(tmp_path / "a.mp4", frames=3, rotation=turn)
    for frame in stream_frames(Media("video", path)):
        assert frame.pixels.shape == ((WIDTH, HEIGHT, 3) if turn else (HEIGHT, WIDTH, 3))
        assert frame.pixels.flags.c_contiguous
        assert frame.pixels.flags.writeable


def test_where_a_short_cut_leads_past_a_frame_the_rest_is_decoded_whole(tmp_path, monkeypatch):
    media = Media("video", write(tmp_path / "a.mp4"))
    expected, whole = list(stream_frames(media, 3.0)), list(stream_frames(media))
    real, calls = FrameWalk.at, []

    def lost(self, wanted):
        calls.append(wanted)
        if self._short_cuts and len(calls) in (1, 8):  # the first time, and amid the second stream
            raise MissedFrameError
        return real(self, wanted)

    monkeypatch.setattr(FrameWalk, "at", lost)
    assert times(stream_frames(media)) == times(whole)
    found = list(stream_frames(media, 3.0))
    assert times(found) == times(expected)
    for frame, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(frame.pixels, other.pixels)


# ---- memory and work ----


@pytest.mark.parametrize("rate", [None, 8.0])
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_no_more_than_two_frames_are_held(tmp_path, rate, folder):
    if folder:
        media = Media("video", frame_folder_of(tmp_path / "frames", 40), rate=10.0)
    else:
        media = Media("video", write(tmp_path / "a.mp4", shown=range(40)))
    alive, most = [], 0
    for frame in stream_frames(media, rate):
        alive.append(weakref.ref(frame.pixels))
        del frame
        most = max(most, sum(held() is not None for held in alive))
    assert len(alive) in (32, 40)
    assert most <= 2


def test_decoded_frames_do_not_wait_for_the_garbage_to_be_collected(tmp_path):
    from tests.core.data.test_media import write_video

    path = write_video(tmp_path / "a.mp4", rotation=90)
    gc.collect()
    gc.disable()
    try:
        stream = stream_frames(Media("video", path))
        assert len(list(islice(stream, 30))) == 30
        assert sum(type(thing) is av.VideoFrame for thing in gc.get_objects()) < 12
    finally:
        gc.enable()


def test_frames_that_are_not_taken_are_not_decoded(tmp_path, monkeypatch):
    decoded = []
    real = FrameWalk._decode
    monkeypatch.setattr(FrameWalk, "_decode", lambda *a: decoded.append(a) or real(*a))
    stream = stream_frames(Media("video", write(tmp_path / "a.mp4")))
    assert decoded == []
    assert len(list(islice(stream, 2))) == 2
    assert len(decoded) < 12, "the codec reorders a few"

    opened = []
    open_image = Image.open
    monkeypatch.setattr(image.Image, "open", lambda path: opened.append(path) or open_image(path))
    folder = frame_folder_of(tmp_path / "frames", 10)
    taken = list(islice(stream_frames(Media("video", folder, rate=5.0)), 2))
    assert [path.stem for path in opened] == ["00000", "00001"]
    assert times(taken) == [0.0, 0.2]


def test_a_stream_that_is_left_lets_go_of_its_file(tmp_path, monkeypatch):
    from tpokit.data.video import Video

    closed = []
    real = Video.close
    monkeypatch.setattr(Video, "close", lambda self: closed.append(self.path) or real(self))
    path = write(tmp_path / "a.mp4")
    stream = stream_frames(Media("video", path))
    next(stream)
    assert closed == []
    stream.close()
    assert closed == [path]


def test_the_clock_stands_still_while_a_frame_is_used(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4")
    folder = frame_folder_of(tmp_path / "frames", 3)
    later_s = 0.0
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + later_s)
    for media in (Media("video", path), Media("video", folder, rate=1.0)):
        shown = 0
        for _ in islice(stream_frames(media), 3):
            later_s += 100.0  # far beyond the limit, had it counted
            shown += 1
        assert shown == 3


# ---- what can go wrong ----


def test_errors_are_those_of_reading(tmp_path):
    path = write(tmp_path / "a.mp4")
    for media, message in (
        (Media("video", tmp_path / "gone.mp4"), r"gone\.mp4: there is no such file"),
        (Media("video", path, 9.0), r"a\.mp4: the part from 9 s is beyond the end"),
        (Media("video", path, rate=2.0), r"a\.mp4: a rate of 2 frames a second .* is a file"),
        (Media("video", tmp_path), r"a folder of frames; give its frames per second"),
    ):
        with pytest.raises(DataError, match=message):
            next(stream_frames(media))
    with pytest.raises(UsageError, match="0 frames a second; the rate must be above 0"):
        stream_frames(Media("video", path), 0.0)


@pytest.mark.parametrize("rate", [None, 5.0])
def test_a_video_that_was_cut_off_does_not_end_quietly(tmp_path, rate):
    path = write(tmp_path / "a.mkv", shown=range(200))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    taken = []
    with pytest.raises(DataError, match=r"a\.mkv: .*(cut off|cannot be decoded)"):
        taken.extend(stream_frames(Media("video", path), rate))


def test_damage_in_the_middle_ends_the_stream_with_an_error(tmp_path):
    path = write(tmp_path / "a.mp4")
    whole = bytearray(path.read_bytes())
    start = whole.index(b"mdat") + 1200
    whole[start : start + 100] = b"\xff" * 100
    path.write_bytes(whole)
    taken = []
    with pytest.raises(DataError, match=r"a\.mp4: cannot be decoded as a video: Invalid data"):
        for frame in stream_frames(Media("video", path)):
            taken.append(frame.time_s)
    assert taken[:2] == [0.0, 0.1], "what came before it was given"
