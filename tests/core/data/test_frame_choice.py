"""Which frames of a video are taken: middles, random times, videos that have too few."""

from itertools import pairwise

import numpy as np
import pytest

from tests.core.data.fakes import PointHead, SeeingHead
from tests.core.data.test_conversation import make_encoder, talk
from tests.core.data.test_frame_folder import frame_folder_of, numbers
from tests.core.data.test_video import UNEVEN, write
from tpokit import DataError, DataSource
from tpokit.data.bad_samples import BadSampleLimit
from tpokit.data.dataset import MixedDataset
from tpokit.data.frame_folder import FrameFolder
from tpokit.data.media import frame_times, read_media
from tpokit.data.video import Video
from tpokit.types import Media, MediaNeed

ANYWHERE = MediaNeed(frames=4, pick="random")


def read(path, need, *part, rate=None, random=None):
    media = Media("video", path, *(part or (None, None)), rate=rate)
    return read_media(media, {"head": need}, random=random)["head"]


def generator(seed=0):
    return np.random.default_rng(seed)


# ---- the middle of each part ----


def mvbench_frames(first, last, count):
    """``get_index`` of VideoChat2's MVBench notebook, and ``load_video`` of TPO's demo."""
    part = (last - first) / count
    return [int(first + part / 2 + np.round(part * index)) for index in range(count)]


def reader_frames(total, count):
    """``middle`` in ``get_frame_indices`` of VideoChat2's training reader."""
    edges = np.linspace(0, total, min(count, total) + 1).astype(int)
    found = [(begin + end - 1) // 2 for begin, end in pairwise(edges)]
    return found + found[-1:] * (count - len(found))


@pytest.mark.parametrize("rate", [3, 25, 29.97])
@pytest.mark.parametrize("total", [1, 5, 10, 16, 17, 40, 100, 251])
def test_middles_are_those_of_sixteen_equal_parts_and_near_the_published_ones(
    tmp_path, total, rate
):
    folder = frame_folder_of(tmp_path / "frames", total, size=(2, 2))
    view = read(folder, MediaNeed(frames=16), rate=rate)
    ours = numbers(view)
    assert ours == [(2 * part + 1) * total // 32 for part in range(16)]
    assert view.times_s == tuple(index / rate for index in ours)
    assert set(np.subtract(ours, mvbench_frames(0, total - 1, 16))) <= {-1, 0, 1, 2}
    if total >= 16:
        assert set(np.subtract(ours, reader_frames(total, 16))) <= {0, 1}


def test_middles_of_a_clip_count_from_its_start(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 200, size=(2, 2))
    ours = numbers(read(folder, MediaNeed(frames=16), 2.0, 7.5, rate=25.0))
    assert ours[:3] == [54, 62, 71]
    theirs = mvbench_frames(round(2.0 * 25), round(7.5 * 25), 16)
    assert set(np.subtract(ours, theirs)) <= {-1, 0, 1}


@pytest.mark.parametrize("total", [5, 16, 40, 59])
def test_a_file_gives_the_same_middles_as_the_published_formula_of_equal_parts(tmp_path, total):
    path = write(tmp_path / "a.mp4", shown=range(total))
    found = read(path, MediaNeed(frames=16))
    assert [round(10 * at) for at in found.times_s] == [
        (2 * part + 1) * total // 32 for part in range(16)
    ]


# ---- random times ----


def test_each_part_gives_one_random_time():
    starts = np.array([2.0, 3.0, 4.0, 5.0])
    random = generator()
    drawn = np.array([frame_times(ANYWHERE, 2.0, 6.0, random) for _ in range(200)])
    places = drawn - starts
    assert places.min() >= 0
    assert places.max() < 1
    assert np.allclose(places.mean(0), 0.5, atol=0.08)
    assert np.abs(np.corrcoef(places.T) - np.eye(4)).max() < 0.25, "each part draws its own"
    by_rate = frame_times(MediaNeed(rate=0.5, pick="random"), 0.0, 8.0, generator())
    assert [int(at // 2) for at in by_rate] == [0, 1, 2, 3]


def test_without_a_generator_and_for_who_wants_middles_nothing_is_drawn():
    middles = [2.5, 3.5, 4.5, 5.5]
    random = generator()
    assert frame_times(ANYWHERE, 2.0, 6.0) == middles
    assert frame_times(MediaNeed(frames=4), 2.0, 6.0, random) == middles
    assert random.random() == generator().random()


def test_consumers_get_random_times_of_their_own_in_one_pass(tmp_path, monkeypatch):
    folder = frame_folder_of(tmp_path / "frames", 100, size=(2, 2))
    read_times = []
    real = FrameFolder.frames
    monkeypatch.setattr(
        FrameFolder, "frames", lambda self, at: read_times.append(at) or real(self, at)
    )
    needs = {"backbone": ANYWHERE, "head": ANYWHERE, "still": MediaNeed(frames=4)}
    views = read_media(Media("video", folder, rate=10.0), needs, random=generator())
    assert len(read_times) == 1
    assert numbers(views["still"]) == [12, 37, 62, 87]
    assert numbers(views["backbone"]) != numbers(views["head"])
    for view in views.values():
        assert [at // 2.5 for at in view.times_s] == [0, 1, 2, 3]
        assert view.times_s == tuple(index / 10 for index in numbers(view))
    alone = read_media(
        Media("video", folder, rate=10.0), {"backbone": ANYWHERE}, random=generator()
    )
    assert numbers(alone["backbone"]) == numbers(views["backbone"]), "heads change nothing for it"


def encoder_that_wants(need, *kinds):
    encoder = make_encoder(*kinds)
    encoder.processor.media_need = lambda: need
    return encoder


class Clips(DataSource):
    """Clips that call a head which looks at the middles."""

    def __init__(self, folder):
        self.medium = Media("video", folder, rate=10.0)

    def __len__(self):
        return 3

    def read(self, index, random):
        return talk("where", "<sight>", media=(self.medium,), targets={"sight": (0.5,)})


def clips(folder, seed=0):
    encoder = encoder_that_wants(ANYWHERE, PointHead, SeeingHead)
    limit = BadSampleLimit(0.0, 9)
    return MixedDataset({"clips": Clips(folder)}, {"clips": 1.0}, seed, encoder, limit)


def test_training_draws_by_seed_epoch_and_sample_and_asking_takes_the_middles(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 200, size=(2, 2))
    whole, resumed = clips(folder), clips(folder)
    drawn = [numbers(whole[position].example.views[0]) for position in range(9)]
    assert len({tuple(found) for found in drawn}) == 9, "three samples in three epochs"
    for position in (8, 4, 6):  # a run that goes on from anywhere
        assert numbers(resumed[position].example.views[0]) == drawn[position]
    assert numbers(clips(folder, seed=1)[0].example.views[0]) != drawn[0]
    for reading in (whole[0], whole[5]):
        assert numbers(reading.example.head_views["sight"][0]) == [25, 75, 125, 175]
    encoder = encoder_that_wants(ANYWHERE, PointHead, SeeingHead)
    asked = encoder.encode(Clips(folder).read(0, None), "ask", answer_next=True)
    assert numbers(asked.views[0]) == [25, 75, 125, 175]


# ---- videos that have too few frames ----


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_short_video_repeats_frames_gives_fewer_or_is_an_error(tmp_path, kind):
    if kind == "file":
        path, rate = write(tmp_path / "a.mp4", shown=range(5)), None
    else:
        path, rate = frame_folder_of(tmp_path / "frames", 5), 10.0
    repeated = read(path, MediaNeed(frames=8), rate=rate)
    assert [round(10 * at) for at in repeated.times_s] == [0, 0, 1, 2, 2, 3, 4, 4]
    fewer = read(path, MediaNeed(frames=8, short="fewer"), rate=rate)
    assert [round(10 * at) for at in fewer.times_s] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(fewer.frames, repeated.frames[[0, 2, 3, 5, 6]])
    message = (
        rf"{path.name}: the video has too few frames: 5, but 8 are asked for; set frames: 5 or "
        r"less, or short_videos: repeat"
    )
    with pytest.raises(DataError, match=message):
        read(path, MediaNeed(frames=8, short="error"), rate=rate)
    assert len(read(path, MediaNeed(frames=5, short="error"), rate=rate).frames) == 5


def test_the_error_names_the_part_that_is_too_short_and_its_sample(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 40)
    need = MediaNeed(frames=8, short="error")
    assert len(read(folder, need, 0.5, 1.3, rate=10.0).frames) == 8
    with pytest.raises(DataError, match=r"the part from 0\.5 s to 1\.2 s has too few frames: 7,"):
        read(folder, need, 0.5, 1.2, rate=10.0)
    encoder = encoder_that_wants(need, PointHead)
    medium = Media("video", folder, 0.5, 0.6, rate=10.0)
    with pytest.raises(DataError, match=r"clips/7: .*frames: the part .* has too few frames: 1,"):
        encoder.encode(talk("where", "here", media=(medium,)), "clips")


def test_a_frame_that_stays_long_is_no_sign_of_too_few(tmp_path):
    path = write(tmp_path / "a.mp4", shown=UNEVEN)
    need = MediaNeed(frames=8, short="error")
    view = read(path, need)
    assert len(set(view.times_s)) < 8 < len(UNEVEN)
    np.testing.assert_array_equal(view.frames, read(path, MediaNeed(frames=8)).frames)
    with pytest.raises(DataError, match=r"too few frames: 10, but 11 are asked for"):
        read(path, MediaNeed(frames=11, short="error"))


def test_random_times_that_meet_in_a_frame_are_no_sign_of_too_few(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 8)
    need = MediaNeed(frames=8, pick="random", short="error")
    found = [numbers(read(folder, need, rate=10.0, random=generator(seed))) for seed in range(9)]
    assert all(len(frames) == 8 for frames in found)
    assert all(frame == part for frames in found for part, frame in enumerate(frames))
    longer = frame_folder_of(tmp_path / "longer", 9)
    found = [numbers(read(longer, need, rate=10.0, random=generator(seed))) for seed in range(9)]
    assert any(len(set(frames)) < 8 for frames in found)


def test_frames_are_counted_only_where_one_came_twice(tmp_path, monkeypatch):
    opened = []
    real = Video.every
    monkeypatch.setattr(Video, "every", lambda *part: opened.append(part) or real(*part))
    path = write(tmp_path / "a.mp4", shown=range(40))
    read(path, MediaNeed(frames=40, short="error"))
    read(path, MediaNeed(frames=60))
    read(path, MediaNeed(frames=60, short="fewer"))
    assert opened == []


def test_too_high_a_rate_repeats_frames_whatever_is_said_of_short_videos(tmp_path):
    folder = frame_folder_of(tmp_path / "frames", 4)
    for short in ("repeat", "fewer", "error"):
        view = read(folder, MediaNeed(rate=20, short=short), rate=10.0)
        assert numbers(view) == [0, 0, 1, 1, 2, 2, 3, 3]
