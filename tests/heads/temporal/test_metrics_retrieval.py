"""Moment retrieval against a plain restatement of its definition, one query at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpokit_temporal.average_precision import (
    detection_average_precision,
    match_moments,
    moment_iou,
    ranking_average_precision,
    trapezoid_average_precision,
)
from tpokit_temporal.retrieval import (
    PRECISION_THRESHOLDS,
    RECALL_THRESHOLDS,
    RetrievalQuery,
    in_range,
    query_average_precision,
    retrieval_scores,
    top_iou,
)


def query(predicted, true):
    return RetrievalQuery(
        np.array(predicted, dtype=float).reshape(-1, 3), np.array(true, dtype=float).reshape(-1, 2)
    )


def plain_iou(a, b):
    both = min(a[1], b[1]) - max(a[0], b[0])
    return both / ((a[1] - a[0]) + (b[1] - b[0]) - both) if both > 0 else 0.0


def plain_average_precision(predicted, true, threshold):
    """By the book: greedy matching, precision made monotone, area over recall."""
    free, hits = list(range(len(true))), []
    for moment in sorted(predicted[:10], key=lambda row: -row[2]):
        close = [(plain_iou(moment, true[place]), place) for place in free]
        best = max(close, default=(0.0, -1))
        hits.append(best[0] >= threshold)
        if hits[-1]:
            free.remove(best[1])
    area, found = 0.0, 0
    for rank, hit in enumerate(hits):
        if hit:
            tops = [sum(hits[: end + 1]) / (end + 1) for end in range(rank, len(hits))]
            area += max(tops) / len(true)
            found += 1
    return area


times = st.integers(0, 20).map(lambda step: step / 2)
moments = st.tuples(times, st.integers(1, 12)).map(lambda pair: (pair[0], pair[0] + pair[1] / 2))
scored = st.tuples(moments, st.integers(0, 4)).map(lambda pair: (*pair[0], pair[1] / 4))
queries = st.lists(
    st.tuples(st.lists(scored, max_size=13), st.lists(moments, min_size=1, max_size=5)),
    min_size=1,
    max_size=4,
)


@given(queries)
@settings(max_examples=150, deadline=None)
def test_average_precision_equals_the_plain_definition(cases):
    found = query_average_precision([query(*case) for case in cases])
    expected = [
        [plain_average_precision(*case, threshold) for threshold in PRECISION_THRESHOLDS]
        for case in cases
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(queries)
@settings(max_examples=50, deadline=None)
def test_top_iou_equals_the_plain_definition(cases):
    expected = [
        max((plain_iou(predicted[0], moment) for moment in true), default=0) if predicted else 0
        for predicted, true in cases
    ]
    np.testing.assert_allclose(top_iou([query(*case) for case in cases]), expected, atol=1e-12)


def test_moments_that_are_empty_or_reversed_overlap_with_nothing():
    whole = np.array([0.0, 10.0])
    for moment in ([5, 5], [8, 2], [20, 30], [np.nan, np.nan]):
        assert moment_iou(np.array(moment, dtype=float), whole) == 0
    assert moment_iou(whole, whole) == 1


def test_a_true_moment_is_met_once_and_the_last_of_equals_is_taken():
    iou = np.array([[[0.8, 0.8], [0.9, 0.6]]])
    assert match_moments(iou, [0.5, 0.7]).tolist() == [[[True, True], [True, True]]]
    taken = np.array([[[0.8, 0.8], [0.1, 0.9]]])  # the first takes the second moment
    assert match_moments(taken, [0.5]).tolist() == [[[True, False]]]


def test_average_precision_of_hand_computed_hits():
    right = np.array([[[True, False, True, False]]])
    assert detection_average_precision(right, np.array([2]))[0, 0] == pytest.approx((1 + 2 / 3) / 2)


def test_the_first_listed_moment_counts_for_recall_and_the_scores_for_precision():
    first_wrong = query([(50, 60, 0.1), (0, 10, 0.9)], [(0, 10)])
    found = retrieval_scores([first_wrong])
    assert found.recall[0.5] == 0
    assert found.average_precision[0.95] == 1


def test_only_ten_predictions_count():
    wrong = [(50, 60, 0.9)] * 10
    assert retrieval_scores([query([*wrong, (0, 10, 1.0)], [(0, 10)])]).mean_average_precision == 0


def test_a_query_without_a_prediction_is_wrong_unless_it_is_to_be_skipped():
    answered, silent = query([(0, 10, 0.9)], [(0, 10)]), query([], [(0, 10)])
    found = retrieval_scores([answered, silent])
    assert (found.mean_iou, found.mean_average_precision) == (0.5, 0.5)
    released = retrieval_scores([answered, silent], skip_unanswered=True)
    assert (released.mean_iou, released.mean_average_precision) == (0.5, 1.0)
    assert retrieval_scores([silent], skip_unanswered=True).mean_average_precision == 0


def test_a_query_without_a_true_moment_does_not_count():
    assert retrieval_scores([query([(0, 1, 1)], [])]) is None
    assert retrieval_scores([]) is None
    mixed = retrieval_scores([query([(0, 1, 1)], []), query([(0, 1, 1)], [(0, 1)])])
    assert set(mixed.recall) == set(RECALL_THRESHOLDS)
    assert mixed.mean_iou == 1


def test_a_range_of_length_keeps_true_moments_up_to_its_end():
    both = query([(0, 10, 1)], [(0, 10), (0, 30), (5, 5.5)])
    assert in_range([both], 0, 10)[0].true.tolist() == [[0, 10], [5, 5.5]]
    assert in_range([both], 10, 30)[0].true.tolist() == [[0, 30]]
    assert in_range([both], 30, 150) == []


def plain_ranking_precision(scores, positive):
    """Precision at every score, made monotone, averaged where recall grows."""
    cuts = sorted(set(scores), reverse=True)
    table = []
    for cut in cuts:
        chosen = [p for s, p in zip(scores, positive, strict=True) if s >= cut]
        table.append((sum(chosen), sum(chosen) / len(chosen)))
    found, before = [], 0
    for index, (hits, _) in enumerate(table):
        if hits > before:
            found.append(max(precision for _, precision in table[index:]))
        before = hits
    return sum(found) / len(found) if found else 0.0


rankings = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12)


@given(st.lists(rankings, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_precision_of_rankings_with_ties_equals_the_plain_definition(cases):
    longest = max(map(len, cases))
    scores = np.full((len(cases), longest), -np.inf)
    positive = np.zeros((len(cases), longest), dtype=bool)
    for index, case in enumerate(cases):
        scores[index, : len(case)], positive[index, : len(case)] = zip(*case, strict=True)
    expected = [plain_ranking_precision(*zip(*case, strict=True)) for case in cases]
    np.testing.assert_allclose(ranking_average_precision(scores, positive), expected, atol=1e-12)


def test_trapezoids_of_a_hand_computed_ranking():
    # recall 1/2 at precision 1, then precision 1/2, then recall 1 at precision 2/3
    ranking = np.array([[True, False, True], [False, False, False]])
    expected = [0.5 * (1 + 1) / 2 + 0.5 * (1 / 2 + 2 / 3) / 2, 0]
    np.testing.assert_allclose(trapezoid_average_precision(ranking), expected)
