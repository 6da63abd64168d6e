"""Sources of moments on the real annotations, where a checkout has them beside it."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tpokit_temporal.sources.charades import CharadesSource
from tpokit_temporal.sources.moment_lines import MomentLinesSource
from tpokit_temporal.sources.options import MomentLinesOptions, MomentOptions

FOLDER = Path(__file__).parents[4] / "shared" / "annotations"
CHARADES = {"charades_sta_train_tvr_format": 12404, "charades_sta_test_tvr_format": 3720}
QVHIGHLIGHTS = {"qvhighlights_train_release": 7218, "qvhighlights_val_release": 1550}

STEP = 5  # opening a source reads every row; this many fewer are compared one by one

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="no folder shared/annotations with real annotations beside the tree"
)


def unpacked(name, folder):
    data = gzip.decompress((FOLDER / f"{name}.jsonl.gz").read_bytes())
    (folder / f"{name}.jsonl").write_bytes(data)
    return [json.loads(line) for line in data.splitlines()]


def annotations(source):
    random = np.random.default_rng(0)
    for index in range(0, len(source), STEP):
        sample = source.read(index, random)
        assert sample.calls == ["temporal"]
        yield sample.targets["temporal"][0]


@pytest.mark.parametrize(("name", "count"), CHARADES.items())
def test_all_of_charades_is_read_the_same_from_lines_and_from_text(tmp_path, caplog, name, count):
    rows = unpacked(name, tmp_path)
    text = [
        f"{row['vid']} {row['relevant_windows'][0][0]} {row['relevant_windows'][0][1]}##"
        f"{row['query']}"
        for row in rows
    ]
    (tmp_path / "charades.txt").write_text("\n".join(text))
    (tmp_path / "lengths.json").write_text(
        json.dumps({row["vid"]: row["duration"] for row in rows})
    )
    lines = CharadesSource(MomentOptions(annotations=f"{name}.jsonl"), tmp_path)
    texts = CharadesSource(
        MomentOptions(annotations="charades.txt", durations="lengths.json"), tmp_path
    )
    assert len(lines) == len(texts) == count
    for row, one, other in zip(rows[::STEP], annotations(lines), annotations(texts), strict=True):
        assert one == {
            "moments_s": row["relevant_windows"],
            "video": row["vid"],
            "query": row["query"],
            "query_id": str(row["qid"]),
            "duration_s": row["duration"],
        }
        assert other == {**one, "query_id": other["query_id"]}
    assert not caplog.records


@pytest.mark.parametrize(("name", "count"), QVHIGHLIGHTS.items())
def test_all_of_qvhighlights_is_read(tmp_path, caplog, name, count):
    rows = unpacked(name, tmp_path)
    source = MomentLinesSource(MomentLinesOptions(annotations=f"{name}.jsonl"), tmp_path)
    assert len(source) == len(rows) == count
    for row, found in zip(rows[::STEP], annotations(source), strict=True):
        assert found["moments_s"] == row["relevant_windows"]
        assert row["vid"].startswith(f"{found['video']}_")
        assert len(found["saliency"]) == math.ceil(row["duration"] / 2)
        rated = {
            clip: sum(ratings)
            for clip, ratings in zip(row["relevant_clip_ids"], row["saliency_scores"], strict=True)
        }
        assert found["saliency"] == [rated.get(n, 0) for n in range(len(found["saliency"]))]
        assert max(found["saliency"]) <= found["saliency_max"] == 12
    assert not caplog.records
