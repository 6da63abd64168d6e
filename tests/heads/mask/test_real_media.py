"""The whole path on real annotated media, with the true box as prompt: reading, preprocessing,
tracking, measuring, drawing. The network is very small and has never seen a photo, so how well it
segments says nothing; what it is measured against is checked with the true masks themselves.
"""

import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.heads.mask.tiny_sam2 import tiny_sam2
from tpokit.data.stream import stream_frames
from tpokit.reporting.film import write_film
from tpokit.types import Media, MediaInfo
from tpokit_mask.annotations import read_annotation
from tpokit_mask.drawing import MaskDrawing
from tpokit_mask.following import follow
from tpokit_mask.metric import MaskMetric
from tpokit_mask.options import TrackingOptions

FOLDER = Path(__file__).parents[4] / "shared" / "media" / "sam2"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="no folder shared/media/sam2 with annotated media beside the tree"
)


@pytest.fixture(scope="module")
def tennis(tmp_path_factory):
    """A second of it and its 24 masks."""
    folder = tmp_path_factory.mktemp("tennis")
    with zipfile.ZipFile(FOLDER / "davis_tennis_masks.zip") as archive:
        archive.extractall(folder)
    media = Media("video", FOLDER / "davis_tennis.mp4", end_s=1.0)
    frames = [
        {"time_s": frame / 24, "mask": {"png": str(folder / f"{frame:05d}.png")}}
        for frame in range(24)
    ]
    info = MediaInfo("video", 448, 256, 1.0)
    return media, info, read_annotation({"frames": frames}, info, "davis/tennis")


@pytest.fixture(scope="module")
def track(tennis):
    media, _, truth = tennis
    sam2 = tiny_sam2()
    tokens = sam2.box_tokens(torch.tensor([truth.box(0)]))
    (found,) = follow(sam2, [media], tokens, TrackingOptions(), batch=4)
    return found


def test_every_frame_is_answered_at_its_time_and_size(tennis, track):
    _, _, truth = tennis
    assert (track.height_px, track.width_px) == (256, 448)
    times_s = [frame.time_s for frame in track.frames]
    assert times_s == pytest.approx([frame.time_s for frame in truth.frames], abs=1e-3)
    assert truth.nearest(times_s) == list(range(24))


def test_the_measures_take_it_and_give_the_truth_full_marks(tennis, track):
    _, info, truth = tennis
    found, right, none = MaskMetric(), MaskMetric(), MaskMetric()
    found.add([track], [truth.result()], info)
    right.add([truth.result()], [truth.result()], info)
    none.add([], [truth.result()], info)
    assert right.scores() == {"j": 1.0, "f": 1.0, "j&f": 1.0}
    assert none.scores()["j"] == 0.0
    assert 0.0 <= found.scores()["j"] < 1.0
    assert found.constant()["j"] < 0.7


def test_true_masks_are_drawn_where_they_are(tennis, tmp_path):
    media, _, truth = tennis
    drawing, result = MaskDrawing(), truth.result()
    painted = []
    for frame in stream_frames(media):
        plain = Image.fromarray(frame.pixels)
        drawn = drawing.draw_frame(plain, [result], frame.time_s)
        painted.append((frame.time_s, drawn))
    changed = np.abs(np.asarray(painted[20][1], int) - np.asarray(plain_frame(media, 20), int))
    inside = changed.sum(-1) > 0
    assert inside[truth.mask(20)].mean() > 0.95
    assert inside[~truth.mask(20)].mean() < 0.05
    write_film(iter(painted), tmp_path / "tennis.mp4")
    with av.open(str(tmp_path / "tennis.mp4")) as film:
        assert film.streams.video[0].frames == 24


def plain_frame(media, number):
    return [frame.pixels for frame in stream_frames(media)][number]


def test_objects_of_a_photo_are_segmented_from_their_boxes():
    media = Media("image", FOLDER / "davis_bike.jpg")
    with Image.open(media.path) as picture:
        info = MediaInfo("image", picture.width, picture.height)
    path = str(FOLDER / "davis_bike_objects.png")
    truths = [read_annotation({"png": path, "values": [n]}, info, f"bike/{n}") for n in (1, 2)]
    sam2 = tiny_sam2()
    tokens = sam2.box_tokens(torch.tensor([truth.box(0) for truth in truths]))
    tracks = follow(sam2, [media, media], tokens, TrackingOptions(), batch=4)
    metric = MaskMetric()
    metric.add(tracks, [truth.result() for truth in truths], info)
    assert set(metric.scores()) == {"giou", "ciou"}
    drawn = MaskDrawing().draw_frame(Image.open(media.path), [t.result() for t in truths], 0.0)
    assert drawn.size == (info.width, info.height)
