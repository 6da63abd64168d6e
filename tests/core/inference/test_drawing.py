"""Answers are drawn as a picture or as a video; what cannot be drawn is told at once."""

import numpy as np
import pytest
from PIL import Image

from tests.core.data.test_frame_folder import frame_folder_of
from tests.core.data.test_video import UNEVEN, write
from tpokit import Answer, DataError, Drawing, Media, Predictor, UsageError
from tpokit.answers import Call, NoResult
from tpokit.data.stream import stream_frames
from tpokit.inference.drawing import check_drawing, write_drawing
from tpokit.inference.predictor import media_of


class Still(Drawing):
    """Makes the picture twice as wide."""

    task = "still"

    def draw(self, picture, results, view):
        return picture.resize((2 * picture.width, picture.height))


class Moving(Drawing):
    """Fills the picture with the first result's colour at that time."""

    task = "moving"
    moves = True

    def draw(self, picture, results, view):
        return self.draw_frame(picture, results, view.times_s[0])

    def draw_frame(self, frame, results, time_s):
        return Image.new("RGB", frame.size, results[0](time_s))


class Corner(Moving):
    """Blackens the upper left quarter of what is there."""

    def draw_frame(self, frame, results, time_s):
        made = frame.copy()
        made.paste((0, 0, 0), (0, 0, frame.width // 2, frame.height // 2))
        return made


class Found:
    """Plugins that offer these drawings."""

    def __init__(self, *kinds):
        self.kinds = kinds

    def for_task(self, kind, task):
        return [made for made in self.kinds if made.task == task]

    def factory(self, spec):
        return spec


ALL = Found(Still, Moving, Corner)


def answer(*calls):
    return Answer("where", "there", tuple(Call(task, result) for task, result in calls))


def tint(time_s):
    return (round(25 * time_s), 200, 0)


def test_a_film_has_every_frame_at_its_time_with_what_moves_and_nothing_else(tmp_path):
    clip = Media("video", write(tmp_path / "a.mp4", shown=UNEVEN))
    write_drawing(answer(("moving", tint), ("still", 1)), [clip], tmp_path / "b.MP4", ALL)
    made = list(stream_frames(Media("video", tmp_path / "b.MP4")))
    times_s = [frame.time_s for frame in stream_frames(clip)]
    assert [frame.time_s for frame in made] == pytest.approx(times_s, abs=1e-4)
    for frame, at in zip(made, times_s, strict=True):
        assert frame.pixels.shape == (48, 64, 3), "the still drawing is left out"
        assert np.abs(frame.pixels[36:, 40:].reshape(-1, 3).mean(0) - tint(at)).max() < 6
        assert frame.pixels[4:16, 4:24].mean() < 6, "the second drawing is over the first"


def test_times_of_a_part_are_those_of_the_whole(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 30, size=(64, 48))
    heard = []
    part = Media("video", folder, 1.0, 2.0, rate=10.0)
    found = answer(("moving", lambda at: heard.append(at) or (0, 0, 0)))
    write_drawing(found, [part], tmp_path / "a.mp4", Found(Moving))
    assert heard == [index / 10 for index in range(10, 20)]
    assert len(list(stream_frames(Media("video", tmp_path / "a.mp4")))) == 10


def test_a_picture_has_all_drawings(tmp_path):
    clip = Media("video", write(tmp_path / "a.mp4"))
    write_drawing(answer(("moving", tint), ("still", 1)), [clip], tmp_path / "a.png", ALL)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape == (48, 128, 3)
    assert picture[40, 100].tolist() == [75, 200, 0], "at 3.0 s, in the middle"


def test_a_drawing_that_does_not_move_leaves_a_frame_as_it_is():
    frame = Image.new("RGB", (4, 4))
    assert Still.moves is False
    assert Still().draw_frame(frame, [], 0.0) is frame


def test_the_predictor_draws_media_by_path_and_by_themselves(tmp_path):
    path = write(tmp_path / "a.mp4")
    predictor = Predictor.__new__(Predictor)
    predictor._plugins = ALL
    for index, medium in enumerate((path, str(path), Media("video", path))):
        predictor.draw(answer(("moving", tint)), [medium], tmp_path / f"{index}.png")
        assert (tmp_path / f"{index}.png").is_file()


# ---- what cannot be drawn ----


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("video", "a.avi", r"a\.avi: results are drawn into .*\.png.*\.mp4.* '\.avi' is neither"),
        ("video", "a", r"the name has no such ending"),
        ("image", "a.mp4", r"a\.mp4: b\.png is an image, which makes no video; write a \.png"),
        (None, "a.png", "nothing to draw on: the question had no image or video"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, kind, name, message):
    from pathlib import Path

    media = [] if kind is None else [Media(kind, Path("b.png"))]
    with pytest.raises(UsageError, match=message):
        check_drawing(media, tmp_path / name)
    with pytest.raises(UsageError, match=message):
        write_drawing(answer(), media, tmp_path / name, ALL)


@pytest.mark.parametrize(
    ("called", "named"), [(("still", "far"), "far, still"), ((), "no head")], ids=str
)
def test_a_film_in_which_nothing_moves_is_refused(tmp_path, called, named):
    clip = Media("video", tmp_path / "a.mp4")
    found = answer(*((task, NoResult("none")) for task in called))
    with pytest.raises(
        UsageError, match=rf"b\.mp4: the answer called {named}, and nothing .* write a \.png"
    ):
        write_drawing(found, [clip], tmp_path / "b.mp4", ALL)


def test_a_medium_that_breaks_on_the_way_leaves_no_film(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 5, size=(64, 48))
    (folder / "00003.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"00003\.png: cannot be read"):
        write_drawing(
            answer(("moving", tint)), [Media("video", folder, rate=5.0)], tmp_path / "a.mp4", ALL
        )
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


def test_a_folder_needs_its_rate(tmp_path):
    with pytest.raises(UsageError, match=r"is a folder; .* give Media\(.video., path, rate=\.\.\."):
        media_of(tmp_path)
    with pytest.raises(UsageError, match=r"no such file: .*gone\.mp4"):
        media_of(tmp_path / "gone.mp4")
    assert media_of(Media("video", tmp_path, rate=2.0)).rate == 2.0
