"""Annotations and sources on real media, where a checkout has them beside it."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tpokit.data.media import read_media
from tpokit.types import MediaInfo, MediaNeed
from tpokit_mask.annotations import read_annotation
from tpokit_mask.sources.davis import DavisSource
from tpokit_mask.sources.options import DavisOptions, SavOptions
from tpokit_mask.sources.sa_v import SavSource

FOLDER = Path(__file__).parents[4] / "shared" / "media" / "sam2"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="no folder shared/media/sam2 with annotated media beside the tree"
)


def generator():
    return np.random.default_rng(0)


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_davis_tennis_in_the_layout_of_davis(tmp_path):
    masks = tmp_path / "DAVIS" / "Annotations" / "480p" / "tennis"
    frames = tmp_path / "DAVIS" / "JPEGImages" / "480p" / "tennis"
    for folder in (masks, frames):
        folder.mkdir(parents=True)
    with zipfile.ZipFile(FOLDER / "davis_tennis_masks.zip") as archive:
        archive.extractall(masks)
    for path in masks.iterdir():  # of the frames only the names are looked at here
        (frames / f"{path.stem}.jpg").touch()
    source = DavisSource(DavisOptions(folder="DAVIS"), tmp_path)
    sample = source.read(0, generator())
    assert (len(source), sample.id) == (1, "tennis/1")
    target = read_annotation(sample.targets["mask"][0], MediaInfo("video", 448, 256, 3), sample.id)
    track = target.result()
    assert len(track.frames) == 70
    assert target.nearest([k / 24 for k in range(70)]) == list(range(70))
    for index in range(0, 70, 23):
        with Image.open(masks / f"{index:05d}.png") as picture:
            assert (track.mask(index) == np.asarray(picture)).all()
    x0, y0, x1, y1 = sample.given["mask"][0]
    assert track.frames[0].box == pytest.approx((x0 * 448, y0 * 256, x1 * 448, y1 * 256))
    # the player moves on, little by little
    assert all(overlap(track.mask(k), track.mask(k + 1)) > 0.5 for k in range(0, 69, 10))


def test_objects_of_davis_bike_are_told_apart():
    with Image.open(FOLDER / "davis_bike.jpg") as picture:
        info = MediaInfo("image", picture.width, picture.height)
    path = FOLDER / "davis_bike_objects.png"
    bicycle, rider = (
        read_annotation({"png": str(path), "values": [value]}, info, "bike") for value in (1, 2)
    )
    both = read_annotation({"png": str(path)}, info, "bike")
    assert (bicycle.mask(0) | rider.mask(0) == both.mask(0)).all()
    assert not (bicycle.mask(0) & rider.mask(0)).any()
    assert rider.box(0)[1] < bicycle.box(0)[1]  # the rider's head is above the bicycle


def test_all_objects_of_a_published_file_of_sa_v_are_read(tmp_path):
    shutil.copy(FOLDER / "sav_000001_manual.json", tmp_path)
    found = json.loads((tmp_path / "sav_000001_manual.json").read_text())
    source = SavSource(SavOptions(folder="."), tmp_path)
    info = MediaInfo("video", int(found["video_width"]), int(found["video_height"]), 20.125)
    assert len(source) == found["masklet_num"] == 5
    for number in range(5):
        sample = source.read(number, generator())
        assert sample.id == f"sav_000001/{number}"
        first = int(found["masklet_first_appeared_frame"][number])
        assert (sample.media[0].start_s or 0) == pytest.approx(first / 6)
        target = read_annotation(sample.targets["mask"][0], info, sample.id)
        assert len(target.frames) == found["masklet_frame_count"][number] - first
        assert sample.given["mask"][0] == target.box(0)


def test_windows_of_a_published_file_of_sa_v_are_seen_on_their_annotated_frames(tmp_path):
    # another video of the same rate in its place: what matters is which frames are read
    shutil.copy(FOLDER / "sav_000001_manual.json", tmp_path)
    shutil.copy(FOLDER / "davis_tennis.mp4", tmp_path / "sav_000001.mp4")
    found = json.loads((tmp_path / "sav_000001_manual.json").read_text())
    found["masklet"] = found["masklet"][:17]  # of 70 frames
    (tmp_path / "sav_000001_manual.json").write_text(json.dumps(found))
    source = SavSource(SavOptions(folder=".", window=8), tmp_path)
    sample = source.read(0, generator())
    view = read_media(sample.media[0], {"mask": MediaNeed(frames=8)})["mask"]
    assert view.times_s == pytest.approx(
        [frame["time_s"] for frame in sample.targets["mask"][0]["frames"]]
    )
