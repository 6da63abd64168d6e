"""A film shows each picture at its time, and is whole or absent."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tpokit import CheckpointError, UsageError
from tpokit.data.stream import stream_frames
from tpokit.reporting import film
from tpokit.reporting.film import write_film
from tpokit.types import Media


def grey(value, size=(64, 48)):
    return Image.new("RGB", size, (value,) * 3)


def shown(path):
    """Time and grey of each frame."""
    frames = stream_frames(Media("video", path))
    return [(round(frame.time_s, 4), float(frame.pixels.mean())) for frame in frames]


def test_pictures_are_shown_at_their_times(tmp_path):
    times_s = [0.5, 0.6, 0.7, 2.5, 2.6, 4.4, 4.5]  # of a part that begins at 0.5 s
    path = tmp_path / "a.mp4"
    write_film(((at, grey(30 * index)) for index, at in enumerate(times_s)), path)
    found = shown(path)
    assert [at for at, _ in found] == pytest.approx([at - 0.5 for at in times_s])
    assert [value for _, value in found] == pytest.approx([30 * n for n in range(7)], abs=3)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.duration * stream.time_base == Fraction(41, 10), "the last stays for 0.1 s"
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_colours_are_kept(tmp_path):
    colours = [(230, 159, 0), (0, 114, 178), (200, 30, 30)]
    pictures = (Image.new("RGB", (64, 48), colour) for colour in colours)
    write_film(enumerate(pictures), tmp_path / "a.mp4")
    for frame, colour in zip(
        stream_frames(Media("video", tmp_path / "a.mp4")), colours, strict=True
    ):
        assert np.abs(frame.pixels.reshape(-1, 3).mean(0) - colour).max() < 4


@pytest.mark.parametrize(("size", "even"), [((63, 47), (64, 48)), ((64, 33), (64, 34))])
def test_odd_sizes_get_one_more_pixel(tmp_path, size, even):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 1), np.uint8)
    picture = Image.fromarray(pixels.repeat(3, -1))
    write_film([(0.0, picture)], tmp_path / "a.mp4")
    (frame,) = stream_frames(Media("video", tmp_path / "a.mp4"))
    assert frame.pixels.shape == (even[1], even[0], 3)
    difference = frame.pixels[: size[1], : size[0]].astype(int) - np.asarray(picture)
    assert np.abs(difference).mean() < 8
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.duration == pytest.approx(40_000), "one picture stays for 1/25 s"


def test_times_that_do_not_rise_still_give_every_picture_its_turn(tmp_path):
    write_film([(0.0, grey(0)), (0.0, grey(100)), (1.0, grey(200))], tmp_path / "a.mp4")
    assert [value for _, value in shown(tmp_path / "a.mp4")] == pytest.approx([0, 100, 200], abs=3)


def test_what_fails_on_the_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("older")

    def broken():
        yield 0.0, grey(0)
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        write_film(broken(), path)
    with pytest.raises(UsageError, match=r"a\.mp4: no frames to make a video of"):
        write_film([], path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.mp4", "older")]


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"cannot save .*gone/a\.mp4: .*No such file"):
        write_film([(0.0, grey(0))], tmp_path / "gone" / "a.mp4")
    real = film.av.open
    monkeypatch.setattr(film.av, "open", lambda path, *rest, **more: real("/dev/full", "w", "mp4"))
    with pytest.raises(CheckpointError, match=r"cannot save .*a\.mp4: .*No space left"):
        write_film(((n / 10, grey(n)) for n in range(3)), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_taken_as_they_are_needed(tmp_path):
    """No more than the encoder looks ahead are held: what it wants does not grow with the film."""
    alive, most = 0, 0

    class Counted:
        def __init__(self):
            nonlocal alive, most
            alive, most = alive + 1, max(most, alive + 1)
            self.size = (64, 48)

        def convert(self, mode):
            return grey(9)

        def __del__(self):
            nonlocal alive
            alive -= 1

    write_film(((n / 10, Counted()) for n in range(40)), tmp_path / "a.mp4")
    assert most <= 3
