"""The evaluator of QVHighlights: its own sample files, and its formats."""

import gzip
import json
import time
from pathlib import Path

import pytest

from tpokit import DataError
from tpokit_temporal.official_scores import official_scores

# The annotations are CC BY-NC-SA 4.0 and so not kept in the tree.
FOLDER = Path(__file__).parents[4] / "shared" / "golden" / "moment_retrieval"
at_hand = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="no folder shared/golden/moment_retrieval beside the tree"
)


def lines(name):
    return [json.loads(line) for line in gzip.open(FOLDER / name, "rt", encoding="utf-8")]


def prediction(qid, *moments, saliency=(0.1, 0.9)):
    return {
        "qid": qid,
        "pred_relevant_windows": [list(moment) for moment in moments],
        "pred_saliency_scores": list(saliency),
    }


def annotation(qid, *moments, ratings=((4, 4, 4),), clips=(1,)):
    return {
        "qid": qid,
        "duration": 4,
        "relevant_windows": [list(moment) for moment in moments],
        "relevant_clip_ids": list(clips),
        "saliency_scores": [list(row) for row in ratings],
    }


@at_hand
def test_the_sample_predictions_get_the_released_numbers_to_the_last_digit_in_seconds():
    predictions = lines("sample_val_preds.jsonl.gz")
    annotations = lines("highlight_val_release.jsonl.gz")
    began_s = time.process_time()
    found = official_scores(predictions, annotations)
    assert time.process_time() - began_s < 5  # the original: 24 s
    assert found == json.loads((FOLDER / "sample_val_metrics.json").read_text())["expected"]


@at_hand
def test_random_predictions_get_the_released_numbers_to_the_last_digit():
    case = json.loads((FOLDER / "metrics_random_seed61.json").read_text())
    found = official_scores(case["predictions"], case["ground_truth"])
    assert found == case["expected"]["metrics"]


def test_a_perfect_submission_scores_a_hundred():
    found = official_scores([prediction(1, (0, 4, 0.9))], [annotation(1, (0, 4))])
    assert set(found) == {
        "brief",
        "full",
        "short",
        "HL-min-Fair",
        "HL-min-Good",
        "HL-min-VeryGood",
    }
    assert set(found["brief"].values()) == {100.0}
    assert found["short"]["MR-mAP"]["average"] == 100.0
    assert found["full"]["MR-R1"]["0.95"] == 100.0


def test_a_query_without_a_prediction_is_left_out_of_precision_only_as_released():
    predictions = [prediction(1, (0, 4, 0.9)), prediction(2)]
    annotations = [annotation(1, (0, 4)), annotation(2, (0, 4))]
    released = official_scores(predictions, annotations)["brief"]
    assert (released["MR-full-mAP"], released["MR-full-R1@0.5"]) == (100.0, 50.0)
    strict = official_scores(predictions, annotations, skip_unanswered=False)["brief"]
    assert (strict["MR-full-mAP"], strict["MR-full-R1@0.5"]) == (50.0, 50.0)


def test_without_saliency_only_moments_are_scored():
    bare = {"qid": 1, "pred_relevant_windows": [[0, 4, 0.9]]}
    found = official_scores([bare], [annotation(1, (0, 4))])
    assert set(found) == {"brief", "full", "short"}


def test_a_rated_clip_beyond_the_last_whole_one_does_not_count():
    beyond = annotation(1, (0, 4), ratings=((4, 4, 4), (4, 4, 4)), clips=(1, 2))
    assert official_scores([prediction(1, (0, 4, 1))], [beyond])["HL-min-Good"]["HL-mAP"] == 100.0


def test_other_queries_are_refused_with_their_ids():
    with pytest.raises(DataError, match=r"1 without a prediction \(such as \[2\]\), 1 without an"):
        official_scores(
            [prediction(1, (0, 4, 1)), prediction(3, (0, 4, 1))],
            [annotation(1, (0, 4)), annotation(2, (0, 4))],
        )
    with pytest.raises(DataError, match="the predictions hold query 1 twice"):
        official_scores([prediction(1), prediction(1)], [annotation(1, (0, 4))])
