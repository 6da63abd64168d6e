"""Answers in the formats of benchmarks, read back and scored as a benchmark would."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.heads.mask.test_results import square
from tpokit import DataError, MediaInfo, UsageError
from tpokit.answers import Answer, Call
from tpokit_mask.metric import MaskMetric
from tpokit_mask.metrics.protocols import davis_semi_supervised, referring_video
from tpokit_mask.metrics.quality import mask_quality
from tpokit_mask.metrics.tracking_benchmarks import TrackedSequence, got10k_scores, lasot_scores
from tpokit_mask.results import FrameResult, MaskTrack, frame_result
from tpokit_mask.saved_answers import SavedAnswers
from tpokit_mask.submission import FORMATS, main, write_submission

RATE = 6
EMPTY = np.zeros((20, 30), dtype=bool)
NAMES = ["00000", "00005", "00010", "00015"]  # as in Ref-YouTube-VOS


def track(*masks, rate=RATE):
    return MaskTrack(
        "video", 20, 30, tuple(frame_result(k / rate, mask, 0.5) for k, mask in enumerate(masks))
    )


@pytest.fixture
def written(tmp_path):
    """Writes a file of answers about one video, a folder of four frames unless told, in a format;
    gives the folder of the result.
    """

    def write(benchmark, answers, medium="frames", info=None):
        frames = tmp_path / "frames"
        frames.mkdir()
        for name in NAMES:
            (frames / f"{name}.jpg").touch()
        (tmp_path / "cats.mp4").touch()
        info = {"kind": "video", "width": 30, "height": 20, "duration_s": 4 / RATE, **(info or {})}
        lines = []
        for sample, tracks in answers:
            calls = tuple(Call("mask", found) for found in tracks)
            answer = Answer("Where is the cat?", "It is <mask>.", calls, (MediaInfo(**info),))
            place = medium and str(tmp_path / medium)
            line = {"data": "cats", "sample": sample, "medium": place, **answer.to_json()}
            line |= {"rate": RATE} if medium == "frames" else {}
            lines.append(line)
        saved = tmp_path / "answers.jsonl"
        saved.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert write_submission(saved, benchmark, tmp_path / "out") == len(lines)
        return tmp_path / "out"

    return write


def pictures(folder):
    return [np.asarray(Image.open(folder / f"{name}.png")) for name in NAMES]


MOVING = [square(2 * k, 4, 6) for k in range(4)]
TURNED = [mask[:, ::-1] for mask in MOVING]


# ---- masks ----


@pytest.mark.parametrize("benchmark", ["mevis", "ref_youtube_vos", "sa_v"])
def test_masks_come_back_from_pictures_and_score_as_before(written, benchmark):
    answers = [("cats/0", [track(*MOVING)]), ("cats/1", [track(*TURNED)])]
    folder = written(benchmark, answers)
    found = [np.stack(pictures(folder / "cats" / name)) for name in "01"]
    assert set(np.unique(found)) == {0, 255}
    np.testing.assert_array_equal(np.stack(found) > 0, [MOVING, TURNED])
    true = np.roll(MOVING, 1, axis=-1)
    metric = MaskMetric()
    for _, tracks in answers:
        metric.add(tracks, [track(*true)], MediaInfo("video", 30, 20, 1.0))
    scores = referring_video([mask_quality(m[None] > 0, true[None]) for m in found]).scores
    assert metric.scores()["j&f"] == pytest.approx(scores.mean)
    assert 0.2 < scores.mean < 0.8
    files = {path.name for path in (folder / "cats" / "0").iterdir()}
    assert files == {f"{name}.png" for name in NAMES}


def test_of_a_part_the_other_frames_are_empty(written):
    found = [frame_result((k + 1) / RATE, mask, 0.5) for k, mask in enumerate(MOVING[:2])]
    folder = written("mevis", [("cats/0", [MaskTrack("video", 20, 30, tuple(found))])])
    expected = [EMPTY, MOVING[0], MOVING[1], EMPTY]
    np.testing.assert_array_equal(np.stack(pictures(folder / "cats" / "0")) > 0, expected)


def test_a_folder_of_frames_needs_its_rate(written, tmp_path):
    written("mevis", [("cats/0", [track(*MOVING)])])
    line = json.loads((tmp_path / "answers.jsonl").read_text())
    del line["rate"]
    (tmp_path / "answers.jsonl").write_text(json.dumps(line))
    with pytest.raises(DataError, match="must say how many there are a second"):
        write_submission(tmp_path / "answers.jsonl", "mevis", tmp_path / "again")


def test_an_expression_is_the_union_of_its_calls(written):
    folder = written("mevis", [("cats/0", [track(*MOVING), track(*TURNED)])])
    both = np.stack(MOVING) | np.stack(TURNED)
    np.testing.assert_array_equal(np.stack(pictures(folder / "cats/0")) > 0, both)


def test_without_a_call_all_masks_are_empty(written):
    folder = written("mevis", [("cats/0", [])])
    assert not np.any(pictures(folder / "cats/0"))


def test_a_track_with_fewer_frames_gives_the_nearest_one(written):
    folder = written("sa_v", [("cats/7", [track(MOVING[0], MOVING[3], rate=RATE / 3)])])
    found = np.stack(pictures(folder / "cats/7")) > 0
    np.testing.assert_array_equal(found, [MOVING[0], MOVING[0], MOVING[3], MOVING[3]])


def test_frames_of_a_file_are_counted(written):
    folder = written("sa_v", [("cats/7", [track(*MOVING)])], "cats.mp4")
    assert sorted(path.name for path in (folder / "cats/7").iterdir()) == [
        f"0000{place}.png" for place in range(4)
    ]


def test_objects_of_davis_stand_in_one_palette_picture(written):
    answers = [("cats/2", [track(*MOVING)]), ("cats/1", [track(*TURNED)])]
    folder = written("davis", answers)
    found = np.stack(pictures(folder / "cats"))
    picture = Image.open(folder / "cats" / "00000.png")
    assert picture.mode == "P"
    assert len(picture.convert("RGB").getcolors()) == 3
    assert set(np.unique(found)) == {0, 1, 2}
    objects = np.stack([found == number for number in (1, 2)])
    np.testing.assert_array_equal(objects, [TURNED, MOVING])  # they do not overlap
    true = np.roll([TURNED, MOVING], 1, axis=-1)
    direct = davis_semi_supervised([mask_quality(np.array([TURNED, MOVING]), true)])
    assert davis_semi_supervised([mask_quality(objects, true)]).scores == direct.scores


def test_calls_of_a_davis_sequence_are_counted_and_the_smaller_object_is_in_front(written):
    small, large = square(5, 5, 3), square(3, 3, 10)
    folder = written("davis", [("cats", [track(*[small] * 4), track(*[large] * 4)]), ("dogs", [])])
    found = pictures(folder / "cats")[0]
    np.testing.assert_array_equal(found == 1, small)
    np.testing.assert_array_equal(found == 2, large & ~small)
    assert not np.any(pictures(folder / "dogs"))


# ---- boxes ----


TRUE = np.array([[2.0 * k + 1, 4.0, 6.0, 6.0] for k in range(4)])


def read_boxes(path):
    return np.loadtxt(path, delimiter=",")


def test_lasot_has_a_line_for_each_frame_and_scores_as_before(written):
    lost = track(*MOVING[:2], EMPTY, MOVING[3])
    boxes = read_boxes(written("lasot", [("cat-1", [lost])]) / "cat-1.txt")
    np.testing.assert_array_equal(boxes[:, 0], [0, 2, 2, 6])  # the last box is repeated
    np.testing.assert_array_equal(boxes[:, 1:], [[4, 6, 6]] * 4)
    corners = [(x, y, x + width, y + height) for x, y, width, height in TRUE.tolist()]
    expected = [FrameResult(k / RATE, None, box) for k, box in enumerate(corners)]
    metric = MaskMetric()
    media = MediaInfo("video", 30, 20, 1.0)
    metric.add([lost], [MaskTrack("video", 20, 30, tuple(expected))], media)
    sequence = TrackedSequence("cat-1", boxes, TRUE, size_px=(30, 20))
    assert metric.scores()["auc"] == lasot_scores([sequence]).success_auc
    assert metric.scores()["ao"] == got10k_scores([sequence]).average_overlap


def test_got10k_has_a_folder_with_boxes_and_times(written):
    folder = written("got10k", [("GOT-10k_Val_000001", [track(*MOVING)]), ("none", [])])
    first = folder / "GOT-10k_Val_000001"
    text = (first / "GOT-10k_Val_000001_001.txt").read_text()
    assert text.splitlines()[1] == "2.000,4.000,6.000,6.000"
    assert np.loadtxt(first / "GOT-10k_Val_000001_time.txt").tolist() == [0] * 4
    assert not read_boxes(folder / "none" / "none_001.txt").any()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("benchmark", "samples", "message"),
    [
        ("mevis", ["cats"], "line 1: the sample id 'cats' must be video/expression or"),
        ("lasot", ["a/b"], "line 1: the sample id 'a/b' must be the name of the sequence"),
        ("mevis", ["cats/0", "cats/0"], "line 2: cats/0 was there before, in .*line 1"),
        ("mevis", ["../cats"], "sample id '../cats' names no folder"),
        ("got10k", ["/cats"], "sample id '/cats' names no folder"),
        ("davis", ["cats/0"], "cats/0: objects of DAVIS have numbers from 1 to 255"),
        ("davis", ["cats/tom"], "cats/tom: objects of DAVIS have numbers"),
        ("davis", ["cats", "cats/1"], "line 2: object 1 of cats was there before, in .*line 1"),
    ],
)
def test_samples_that_do_not_fit_a_format_are_refused(written, benchmark, samples, message):
    with pytest.raises(DataError, match=message):
        written(benchmark, [(sample, [track(*MOVING)]) for sample in samples])


@pytest.mark.parametrize(
    ("medium", "info", "tracks", "message"),
    [
        ("cats.mp4", {"kind": "image"}, [], "cats/0 is about an image; the formats are for videos"),
        ("no_folder", {}, [], "no_folder is not there; run this in the folder"),
        (
            "cats.mp4",
            {},
            [],
            "line 1: nothing was found in .*cats.mp4, so it is not known how many",
        ),
        (None, {}, [], r"line 1: cannot be read as an answer \(TypeError"),
        ("frames", {"width": 40}, [track(*MOVING)], r"height, width \[\(20, 30\)\] in a video of"),
    ],
)
def test_media_that_cannot_be_written_are_refused(written, medium, info, tracks, message):
    with pytest.raises(DataError, match=message):
        written("mevis", [("cats/0", tracks)], medium, info)


def test_a_line_that_is_no_answer_is_refused(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"sample": "cats/0"}\n')
    with pytest.raises(DataError, match=r"line 1: cannot be read .* \(KeyError: 'media'\)"):
        SavedAnswers(tmp_path / "answers.jsonl").read(0)


def test_nothing_is_written_over_and_formats_are_known(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").touch()
    with pytest.raises(UsageError, match="out: already there; name a new folder"):
        write_submission(tmp_path / "answers.jsonl", "mevis", tmp_path / "out")
    with pytest.raises(UsageError, match=f"no format 'coco'; there are {', '.join(FORMATS)}"):
        write_submission(tmp_path / "answers.jsonl", "coco", tmp_path / "new")


def test_the_command_says_in_one_line_what_it_wrote_or_what_is_wrong(written, tmp_path, capsys):
    written("mevis", [("cats/0", [track(*MOVING)])])
    answers, output = str(tmp_path / "answers.jsonl"), tmp_path / "new"
    main([answers, "--format", "sa_v", "--output", str(output)])
    assert capsys.readouterr().out == f"{output}: format sa_v, samples: 1\n"
    with pytest.raises(SystemExit) as left:
        main([answers, "--format", "lasot", "--output", str(output)])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(f"UsageError: {output}: already there")
