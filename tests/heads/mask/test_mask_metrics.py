"""J, F and their averages: the golden numbers of the public evaluators."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tpokit_mask.metrics.boundary import (
    boundary_accuracy,
    boundary_map,
    tolerance_px,
)
from tpokit_mask.metrics.protocols import (
    davis_semi_supervised,
    referring_video,
    segment_anything_video,
)
from tpokit_mask.metrics.quality import mask_quality
from tpokit_mask.metrics.region import region_similarity

GOLDEN = Path(__file__).parents[2] / "golden" / "masks"
NUMBERS = json.loads((GOLDEN / "jf.json").read_text(encoding="utf-8"))
TENSORS = load_file(GOLDEN / "jf.safetensors")
PAIRS = NUMBERS["pairs"]["rows"]
SEQUENCES = NUMBERS["sequences"]["results"]
TOLERANCE, PERCENT_TOLERANCE = 1e-6, 1e-4  # as the JSON file states


def decoded(name, shape):
    """Masks from row-major run lengths that start with zeros."""
    runs = TENSORS[f"{name}.runs"]
    offsets = TENSORS.get(f"{name}.offsets", np.array([0, len(runs)]))
    parts = np.split(runs, offsets[1:-1])
    masks = [np.repeat(np.arange(len(part)) % 2 == 1, part) for part in parts]
    return np.concatenate(masks).reshape(shape)


@pytest.fixture(scope="module", params=sorted(SEQUENCES))
def sequence(request):
    """Name, expected numbers and quality of a golden sequence."""
    expected = SEQUENCES[request.param]
    masks = [decoded(f"seq.{request.param}.{k}", expected["shape"]) for k in ("pred", "gt")]
    return request.param, expected, mask_quality(*masks)


@pytest.mark.parametrize("row", PAIRS, ids=lambda row: row["name"])
def test_j_and_f_of_single_pairs_are_those_of_the_public_evaluator(row):
    predicted, true = (decoded(f"pair.{row['id']}.{k}", row["shape"]) for k in ("pred", "gt"))
    assert region_similarity(predicted, true) == pytest.approx(row["J"], abs=TOLERANCE)
    assert boundary_accuracy(predicted, true) == pytest.approx(row["F"], abs=TOLERANCE)
    assert tolerance_px(*row["shape"]) == row["radius"]
    assert boundary_map(true).sum() == row["n_boundary_gt"]
    assert boundary_map(predicted).sum() == row["n_boundary_pred"]


@pytest.mark.parametrize("row", PAIRS, ids=lambda row: row["name"])
def test_every_pair_counts_for_sa_v_as_it_does_in_its_evaluator(row):
    # Two frames, so that an object that is in neither mask of the pair does not count on it. On the
    # other one it is predicted perfectly.
    predicted, true = (decoded(f"pair.{row['id']}.{k}", row["shape"]) for k in ("pred", "gt"))
    full = np.ones(row["shape"], dtype=bool)
    two = [np.stack([mask, full])[None] for mask in (predicted, true)]
    found = segment_anything_video([mask_quality(*two)], skip_ends=False).scores
    for name, value in (("J_sav", found.region), ("F_sav", found.boundary)):
        expected = 1.0 if row[name] is None else (row[name] + 1) / 2
        assert value == pytest.approx(expected, abs=TOLERANCE)


def test_j_and_f_of_real_sequences_agree_frame_by_frame(sequence):
    name, _, found = sequence
    np.testing.assert_allclose(found.region, TENSORS[f"seq.{name}.J"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.boundary, TENSORS[f"seq.{name}.F"], rtol=0, atol=TOLERANCE)


def test_the_averages_of_davis_agree(sequence):
    _, numbers, found = sequence
    expected, scores = numbers["davis_semi_supervised"], davis_semi_supervised([found])
    for letter, statistics in (("J", scores.region), ("F", scores.boundary)):
        for field in ("mean", "recall", "decay"):
            wanted = [row[field] for row in expected["per_object"][letter]]
            values = getattr(statistics, field)
            np.testing.assert_allclose(values, wanted, rtol=0, atol=TOLERANCE)
    summary = {"mean": scores.scores, "recall": scores.recall, "decay": scores.decay}
    for field, values in summary.items():
        assert values.region == pytest.approx(expected[f"J_{field}"], abs=TOLERANCE)
        assert values.boundary == pytest.approx(expected[f"F_{field}"], abs=TOLERANCE)
    assert scores.scores.mean == pytest.approx(expected["JF_mean"], abs=TOLERANCE)


def test_the_averages_of_referring_video_agree(sequence):
    _, numbers, found = sequence
    expected, scores = numbers["referring_vos_all_frames"], referring_video([found])
    np.testing.assert_allclose(scores.region, expected["per_object_J"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(scores.boundary, expected["per_object_F"], rtol=0, atol=TOLERANCE)
    assert scores.scores.region == pytest.approx(expected["J"], abs=TOLERANCE)
    assert scores.scores.boundary == pytest.approx(expected["F"], abs=TOLERANCE)
    assert scores.scores.mean == pytest.approx(expected["JF"], abs=TOLERANCE)


@pytest.mark.parametrize("frames", ["skip_first_and_last", "all_frames"])
def test_the_averages_of_sa_v_agree(sequence, frames):
    _, numbers, found = sequence
    expected = numbers["sav_percent"][frames]
    scores = segment_anything_video([found], skip_ends=frames == "skip_first_and_last")
    rows = [expected["per_object"][name] for name in sorted(expected["per_object"])]
    for letter, values in (("J", scores.region), ("F", scores.boundary)):
        wanted = [row[letter] for row in rows]
        np.testing.assert_allclose(100 * values, wanted, rtol=0, atol=PERCENT_TOLERANCE)
    printed = scores.scores.percentages(decimals=6)
    wanted = {"J&F": expected["JF"], "J": expected["J"], "F": expected["F"]}
    assert printed == pytest.approx(wanted, abs=PERCENT_TOLERANCE)
