"""Moment retrieval and highlight detection, by hand: what the evaluation script of QVHighlights gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hf_lam.training import HighlightDetection, MomentRetrieval, clip_scores, submission_metrics

# Queries, each with its predicted windows, its true ones, and what follows: the first window's largest overlap, and
# the average precision at a threshold of 0.5.
CASES: dict[str, tuple[list[list[float]], list[list[float]], float, float]] = {
    "found at once": ([[0, 10, 0.9]], [[0, 10]], 1.0, 1.0),
    "missed": ([[20, 30, 0.9]], [[0, 10]], 0.0, 0.0),
    "windows that touch share nothing": ([[10, 20, 0.9]], [[0, 10]], 0.0, 0.0),
    "half is enough": ([[0, 5, 0.9]], [[0, 10]], 0.5, 1.0),
    "nothing predicted": ([], [[0, 10]], 0.0, 0.0),
    "the first counts for recall, the score for precision": ([[20, 30, 0.1], [0, 10, 0.9]], [[0, 10]], 0.0, 1.0),
    "of equal scores the first given goes first": ([[20, 30, 0.5], [0, 10, 0.5]], [[0, 10]], 0.0, 0.5),
    "a true window is found once": ([[0, 10, 0.9], [0, 9, 0.8], [20, 30, 0.7]], [[0, 10], [20, 30]], 1.0, 5 / 6),
    "the best of several true ones": ([[0, 10, 0.9]], [[0, 6], [0, 9]], 0.9, 0.5),
    "a window takes what is left": ([[0, 10, 0.9], [0, 10, 0.8]], [[0, 6], [0, 9]], 0.9, 1.0),
    "precision is that of the best later place": (
        [[50, 60, 0.9], [0, 10, 0.8], [20, 30, 0.7]],
        [[0, 10], [20, 30]],
        0.0,
        2 / 3,
    ),
    "after ten nothing counts": ([[40, 50, 1.0]] * 10 + [[0, 10, 2.0]], [[0, 10]], 0.0, 0.0),
    "a window without length": ([[5, 5, 0.9]], [[0, 10]], 0.0, 0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_moments_of_one_query(name: str) -> None:
    predicted, true, overlap, precision = CASES[name]
    found = MomentRetrieval().compute(predictions=[predicted], references=[true])
    assert found["MR-full-mAP@0.5"] == pytest.approx(100 * precision)
    assert found["MR-full-R1@0.5"] == (100.0 if overlap >= 0.5 else 0.0)
    assert found["MR-full-R1@0.7"] == (100.0 if overlap >= 0.7 else 0.0)


def test_moments_are_means_over_queries_alike_however_many_windows_each_has() -> None:
    queries = [(predicted, true) for predicted, true, _, _ in CASES.values()]
    found = MomentRetrieval().compute(predictions=[q[0] for q in queries], references=[q[1] for q in queries])
    alone = [MomentRetrieval().compute(predictions=[p], references=[t]) for p, t in queries]
    for name in ("MR-full-mAP", "MR-full-mAP@0.5", "MR-full-mAP@0.75", "MR-full-R1@0.5", "MR-full-R1@0.7"):
        assert found[name] == pytest.approx(np.mean([one[name] for one in alone]))


def test_the_mean_over_thresholds_counts_those_that_are_met() -> None:
    # 0.72 of the window: the five thresholds from 0.5 to 0.7.
    found = MomentRetrieval().compute(predictions=[[[0, 7.2, 1.0]]], references=[[[0, 10]]])
    assert found["MR-full-mAP"] == pytest.approx(50.0)
    assert found["MR-full-mAP@0.75"] == 0.0


def test_a_length_counts_its_windows_in_the_queries_that_have_one() -> None:
    predictions = [[[0, 10, 0.9], [20, 60, 0.8]], [[0, 30, 0.9]]]
    found = MomentRetrieval().compute(predictions=predictions, references=[[[0, 10], [20, 60]], [[0, 30]]])
    assert found["MR-short-R1@0.7"] == found["MR-short-mAP"] == 100.0  # 10 s is short, 30 s is middle
    assert found["MR-middle-R1@0.7"] == found["MR-middle-mAP"] == 100.0
    assert found["MR-long-R1@0.7"] == 0.0  # of the first query, whose first window is another
    assert found["MR-long-mAP"] == 50.0
    assert not [name for name in MomentRetrieval().compute(predictions=[[]], references=[[[0, 5]]]) if "long" in name]


def test_highlights_by_hand() -> None:
    # Three people; the clips have the scores 3, 2, 1, 0.
    people = [[4, 2, 0], [0, 2, 0], [4, 0, 0], [0, 0, 0]]
    found = HighlightDetection().compute(predictions=[[0.9, 0.8, 0.7, 0.1]], references=[people])
    # The first person: precision 1 at the first clip and 2/3 at the third; the second 1 and 1; the third saw nothing.
    assert found["HL-min-Fair-mAP"] == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1 + 0) / 3)
    assert found["HL-min-VeryGood-mAP"] == pytest.approx(100 * ((1 + 2 / 3) / 2 + 0 + 0) / 3)
    assert found["HL-min-Fair-Hit1"] == found["HL-min-VeryGood-Hit1"] == 100.0
    missed = HighlightDetection().compute(predictions=[[0.1, 0.8, 0.7, 0.2]], references=[people])
    assert missed["HL-min-Fair-Hit1"] == 100.0 and missed["HL-min-Good-Hit1"] == 0.0


@pytest.mark.parametrize(
    ("scores", "marks", "expected"),
    [
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 1 / 4),  # all found together
        ([0.5, 0.5, 0.1, 0.1], [1, 1, 0, 1], (1 + 3 / 4) / 2),  # two at once are one place
        ([0.9, 0.8, 0.7, 0.6], [0, 1, 1, 1], 3 / 4),  # interpolated: no place has less than a later one
        ([0.9, 0.8], [1, 0, 0, 1], (1 + 1 / 2) / 2),  # clips without a score have 0
        ([0.1, 0.2, 0.9, 0.9, 0.9], [1, 0], 1 / 2),  # scores without a clip are left out
        ([0.3, 0.2, 0.1], [1, 1, 1], 1.0),
        ([-1.0, -2.0], [0, 1, 0, 0], 1 / 4),  # so that a clip without a score comes before them
    ],
)
def test_precision_of_scores(scores: list[float], marks: list[int], expected: float) -> None:
    references = [[[4.0 * mark] for mark in marks]]
    found = HighlightDetection().compute(predictions=[scores], references=references)
    assert found["HL-min-VeryGood-mAP"] == pytest.approx(100 * expected)


def test_the_best_clip_may_lie_after_the_end() -> None:
    found = HighlightDetection().compute(predictions=[[0.1, 0.2, 0.9]], references=[[[4], [4]]])
    assert found["HL-min-Good-Hit1"] == 0.0


def test_clips_of_an_annotation() -> None:
    scores = clip_scores(9.0, [1, 3], [[4, 1, 2], [0, 3, 3]])
    assert scores.tolist() == [[0, 0, 0], [4, 1, 2], [0, 0, 0], [0, 3, 3]]
    assert len(clip_scores(0.3, [2], [[1]], clip_length=0.1)) == 3  # 0.3 / 0.1 is less than 3
    with pytest.raises(ValueError, match=r"clip 4 is not in a video of 9\.0 s, which has 4 clips"):
        clip_scores(9.0, [4], [[1, 1, 1]])
    with pytest.raises(ValueError, match="each of the 2 relevant clips"):
        clip_scores(9.0, [0, 1], [[1, 1, 1]])


def test_files_are_matched_by_query() -> None:
    annotations: list[dict[str, Any]] = [
        {
            "qid": qid,
            "duration": 20,
            "relevant_windows": [[0, 4]],
            "relevant_clip_ids": [0, 1],
            "saliency_scores": [[4, 4, 4], [2, 2, 2]],
        }
        for qid in (1, 2)
    ]
    right = {"qid": 2, "pred_relevant_windows": [[0, 4, 1.0]], "pred_saliency_scores": [1.0] + 9 * [0.0]}
    wrong = {"qid": 1, "pred_relevant_windows": [[8, 12, 1.0]], "pred_saliency_scores": 9 * [0.0] + [1.0]}
    found = submission_metrics([right, wrong], annotations)
    assert found["MR-full-R1@0.7"] == found["HL-min-VeryGood-Hit1"] == 50.0
    with pytest.raises(ValueError, match="1 are in one of them alone, such as qid 1"):
        submission_metrics([right], annotations)
    windows_alone = [{key: x for key, x in line.items() if "saliency" not in key} for line in (right, wrong)]
    assert all(name.startswith("MR") for name in submission_metrics(windows_alone, annotations))
    # As Charades-STA, whose clips nobody scored: predictions have scores nevertheless.
    unscored = [{"qid": line["qid"], "relevant_windows": line["relevant_windows"]} for line in annotations]
    assert set(submission_metrics([right, wrong], unscored)) == set(submission_metrics(windows_alone, annotations))


@pytest.mark.parametrize(
    ("metric", "predictions", "references", "message"),
    [
        (MomentRetrieval, [], [], "a prediction for each query, got 0 for 0"),
        (HighlightDetection, [], [], "a prediction for each query, got 0 for 0"),
        (MomentRetrieval, [[[0.0, 1.0, 1.0]]], [[]], "query 0 has no true window"),
        (MomentRetrieval, [[[3.0, 1.0, 1.0]]], [[[0.0, 1.0]]], "does not end after it starts"),
        (MomentRetrieval, [[[0.0, 1.0, 1.0]]], [[[1.0, 1.0]]], "does not end after it starts"),
        (MomentRetrieval, [[[0.0, 1.0]]], [[[0.0, 1.0]]], "3 finite numbers"),
        (MomentRetrieval, [[[0.0, float("nan"), 1.0]]], [[[0.0, 1.0]]], "3 finite numbers"),
        (HighlightDetection, [[]], [[[1.0]]], "query 0"),
        (HighlightDetection, [[float("nan")]], [[[1.0]]], "not finite"),
    ],
)
def test_what_cannot_be_measured(metric: Any, predictions: Any, references: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        # In a file, the next one would wait for the lock that this one leaves.
        metric(keep_in_memory=True).compute(predictions=predictions, references=references)
