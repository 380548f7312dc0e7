"""The metrics: evaluate's interface without its downloads, and what a Trainer takes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score
from transformers import EvalPrediction

from helpers.processes import run_code
from hf_lam.training import (
    F1,
    Accuracy,
    MeanAveragePrecision,
    classification_metrics,
    regression_metrics,
    retrieval_metrics,
)
from hf_lam.training.metrics import mean_average_precision, ranks_of

PREDICTED, TRUE = [0, 1, 2, 1, 0], [0, 1, 1, 1, 2]
ROWS = [[1, 0, 1], [0, 1, 0]], [[1, 0, 1], [0, 0, 1]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for the metrics' files. None may stay there, and nothing be written where the test runs.

    evaluate itself leaves the file of a computation that was refused; those tests keep it in memory.
    """
    folder, here = tmp_path / "cache", tmp_path / "here"
    here.mkdir()
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(folder))
    monkeypatch.chdir(here)
    yield folder
    assert list(here.iterdir()) == []
    assert list(folder.rglob("*.arrow")) == []


def test_accuracy() -> None:
    accuracy = Accuracy()
    assert accuracy.name == "accuracy"
    assert accuracy.compute(predictions=PREDICTED, references=TRUE) == {"accuracy": 0.6}
    assert accuracy.compute(predictions=np.array(PREDICTED), references=np.array(TRUE), normalize=False) == {
        "accuracy": 3.0
    }
    weighted = accuracy.compute(predictions=PREDICTED, references=TRUE, sample_weight=[1, 1, 6, 1, 1])
    assert weighted == {"accuracy": pytest.approx(0.3)}


def test_f1() -> None:
    f1 = F1()
    assert f1.name == "f1"
    # By hand: class 1 has 2 true positives, no false positive, 1 false negative.
    macro = f1.compute(predictions=PREDICTED, references=TRUE, average="macro")
    assert macro == {"f1": pytest.approx((2 / 3 + 4 / 5 + 0) / 3)}
    only = f1.compute(predictions=PREDICTED, references=TRUE, average="macro", labels=[1])
    assert only == {"f1": pytest.approx(4 / 5)}
    each = f1.compute(predictions=PREDICTED, references=TRUE, average=None)
    np.testing.assert_allclose(each["f1"], [2 / 3, 4 / 5, 0])
    binary = {"predictions": [1, 1, 0, 0], "references": [1, 0, 1, 1]}
    assert f1.compute(**binary) == {"f1": pytest.approx(2 * (1 / 2 * 1 / 3) / (1 / 2 + 1 / 3))}
    assert f1.compute(**binary, pos_label=0) == {"f1": 0.0}
    with pytest.raises(ValueError, match="multiclass but average='binary'"):
        F1(keep_in_memory=True).compute(predictions=PREDICTED, references=TRUE)


def test_multi_hot_rows() -> None:
    predictions, references = ROWS
    assert Accuracy("multilabel").compute(predictions=predictions, references=references) == {"accuracy": 0.5}
    scores = F1("multilabel").compute(predictions=predictions, references=references, average="micro")
    assert scores == {"f1": pytest.approx(4 / 6)}
    with pytest.raises(ValueError, match="don't match the expected format"):
        Accuracy(keep_in_memory=True).compute(predictions=predictions, references=references)


def test_average_precision_by_hand() -> None:
    # Ranked: positive, negative, positive, negative; and the reverse.
    scores, targets = [0.9, 0.7, 0.5, 0.2], [1, 0, 1, 0]
    forward, backward = (1 + 2 / 3) / 2, (1 / 2 + 2 / 4) / 2

    def compute(*columns: tuple[list[float], list[int]]) -> float:
        predictions = [list(row) for row in zip(*(column for column, _ in columns), strict=True)]
        references = [list(row) for row in zip(*(column for _, column in columns), strict=True)]
        result = MeanAveragePrecision().compute(predictions=predictions, references=references)
        arrays = mean_average_precision(np.array(predictions), np.array(references))
        assert result == {"map": pytest.approx(arrays)} and type(result["map"]) is float
        return result["map"]

    negated = [-score for score in scores]
    assert compute((scores, targets)) == pytest.approx(forward)
    assert compute((negated, targets)) == pytest.approx(backward)
    assert compute((scores, targets), (negated, targets)) == pytest.approx((forward + backward) / 2)
    # A class without positives is left out, one without negatives is always 1.
    assert compute((scores, targets), (scores, [0, 0, 0, 0])) == pytest.approx(forward)
    assert compute((scores, targets), (scores, [1, 1, 1, 1])) == pytest.approx((forward + 1) / 2)
    assert compute((scores, [1, 1, 0, 0])) == 1.0
    # Equal scores are one rank.
    assert compute(([0.5] * 4, targets)) == pytest.approx(0.5)
    # Scores that are equal in fp32.
    assert compute(([1 - 1e-12, 1 - 2e-12, 0.5, 0.4], [1, 0, 0, 0])) == 1.0


def test_mean_average_precision_equals_scikit_learns_macro_mean() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(50, 7)).astype(np.float32), rng.integers(0, 2, (50, 7))
    expected = average_precision_score(targets, scores, average="macro")
    result = MeanAveragePrecision().compute(predictions=scores, references=targets.astype(np.float32))
    assert result["map"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[0.1, 0.2]], [[0, 0]], "none of the 2 classes has a positive among the 1 samples"),
        ([[0.1, 0.2]], [[1]], "rows of 2 scores and 1 references"),
        ([[0.1, 0.2], [0.3]], [[1, 0], [1]], "rows of 1 or 2 scores and 1 or 2 references"),
        ([[0.1], [0.2]], [[1]], r"Mismatch in the number of predictions \(2\) and references \(1\)"),
        ([[0.1, float("nan")]], [[1, 0]], "the score of sample 0 for class 1 is nan, not finite"),
        ([[0.1], [0.2]], [[1], [2]], "the reference of sample 1 for class 0 is 2, not 0 or 1"),
    ],
)
def test_what_has_no_average_precision(predictions: Any, references: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanAveragePrecision(keep_in_memory=True).compute(predictions=predictions, references=references)


def test_arrays_of_different_shapes() -> None:
    for scores, targets in ((np.zeros((2, 3)), np.ones((2, 4))), (np.zeros(3), np.ones(3))):
        with pytest.raises(ValueError, match="of one shape") as caught:
            mean_average_precision(scores, targets)
        assert f"got {scores.shape} and {targets.shape}." in str(caught.value)


def test_in_parts_and_combined() -> None:
    both = evaluate.combine([Accuracy(), F1()])
    expected = {"accuracy": 0.75, "f1": pytest.approx(0.8)}
    predictions, references = [1, 1, 0, 1], [1, 1, 0, 0]
    assert both.compute(predictions=predictions, references=references) == expected
    for prediction, reference in zip(predictions, references, strict=True):
        both.add(prediction=prediction, reference=reference)
    assert both.compute() == expected
    both.add_batch(predictions=predictions[:3], references=references[:3])
    both.add_batch(predictions=np.array(predictions[3:]), references=np.array(references[3:]))
    assert both.compute() == expected
    rows = MeanAveragePrecision()
    rows.add(prediction=[0.9, 0.1], reference=[1, 0])
    rows.add_batch(predictions=[[0.5, 0.3]], references=[[0, 1]])
    assert rows.compute() == {"map": 1.0}


@pytest.mark.parametrize("in_memory", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_several_at_once(in_memory: bool) -> None:
    first, second = (Accuracy(keep_in_memory=in_memory) for _ in range(2))
    first.add(prediction=0, reference=0)
    second.add(prediction=0, reference=1)
    first.add(prediction=1, reference=1)
    assert second.compute() == {"accuracy": 0.0}
    assert first.compute() == {"accuracy": 1.0}


TWO_PROCESSES = """
import json, sys, time
from pathlib import Path
import evaluate
from transformers import Trainer
loaded_by_others = set(sys.modules)
from hf_lam.training import F1, Accuracy

assert not {"sklearn", "matplotlib", "tensorboard", "av"} & (sys.modules.keys() - loaded_by_others)
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
one, all_of_them = Accuracy(), F1(num_process=2, process_id=rank, experiment_id="whole")
one.add(prediction=0, reference=rank)
all_of_them.add_batch(predictions=[1, rank], references=[1, 1])
(folder / f"ready{rank}").touch()
while not all((folder / f"ready{other}").exists() for other in (0, 1)):
    time.sleep(0.01)
print(json.dumps([one.compute(), all_of_them.compute()]))
"""


@pytest.mark.slow
def test_two_processes_share_a_cache_without_a_clash(tmp_path: Path) -> None:
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_METRICS_CACHE": str(tmp_path / "cache")}

    def run(rank: int) -> Any:
        return json.loads(run_code(TWO_PROCESSES, rank, tmp_path, environment=environment).splitlines()[-1])

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, (0, 1)))
    # What each counted alone; F1 of [1, 0] and [1, 1] together, which the first process has.
    assert [one for one, _ in results] == [{"accuracy": 1.0}, {"accuracy": 0.0}]
    assert [both for _, both in results] == [{"f1": pytest.approx(6 / 7)}, None]


def test_single_label_for_a_trainer(cache: Path) -> None:
    logits = np.eye(3, dtype=np.float32)[PREDICTED] * 5 - 2
    expected = {"accuracy": 0.6, "f1": pytest.approx((2 / 3 + 4 / 5 + 0) / 3)}
    compute = classification_metrics(is_multi_label=False)
    assert compute(EvalPrediction(logits, np.array(TRUE))) == expected
    assert compute(EvalPrediction((logits, np.zeros((5, 2, 7))), np.array(TRUE))) == expected
    perfect = compute(EvalPrediction(np.eye(3)[TRUE], np.array(TRUE)))
    assert perfect == {"accuracy": 1.0, "f1": 1.0}
    assert all(type(value) is float for value in perfect.values())
    # A class of the model that comes nowhere does not count as 0.
    assert compute(EvalPrediction(np.eye(4)[TRUE], np.array(TRUE))) == {"accuracy": 1.0, "f1": 1.0}
    with pytest.raises(ValueError, match=r"got \(5, 3\) and \(5, 3\).*is_multi_label=True"):
        compute(EvalPrediction(logits, np.eye(3)[TRUE]))
    assert not cache.exists()


@pytest.mark.parametrize("classes", [1, 5])
def test_multi_label_for_a_trainer(classes: int, cache: Path) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(40, classes)).astype(np.float32)
    labels = (rng.random((40, classes)) < 0.4).astype(np.float32)
    compute = classification_metrics(is_multi_label=True)
    found = compute(EvalPrediction((logits, np.zeros(3)), labels))
    aps = [average_precision_score(labels[:, i], logits[:, i]) for i in range(classes)]
    hits = int(((logits > 0) * labels).sum())
    micro = 2 * hits / (int((logits > 0).sum()) + int(labels.sum()))
    assert found == {"map": pytest.approx(np.mean(aps)), "f1": pytest.approx(micro)}
    if classes > 1:
        assert found["f1"] == pytest.approx(f1_score(labels, logits > 0, average="micro"))
    assert all(type(value) is float for value in found.values())
    # Nothing above the threshold: a score of 0 and no warning.
    assert compute(EvalPrediction(logits - 100, labels)) == {"map": pytest.approx(np.mean(aps)), "f1": 0.0}
    with pytest.raises(ValueError, match="none of the"):
        compute(EvalPrediction(logits, np.zeros_like(labels)))
    assert not cache.exists()


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_metrics_of_tokens_are_those_of_the_labelled_ones() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(3, 4, 5)), generator.integers(0, 5, (3, 4))
    labels[0, 2:], labels[2] = -100, -100
    known = labels != -100
    metrics = classification_metrics(is_multi_label=False)
    assert metrics(EvalPrediction(logits, labels)) == metrics(EvalPrediction(logits[known], labels[known]))
    many = (generator.random((3, 4, 5)) > 0.5).astype(float)
    many[0, 2:], many[1, 1, 0] = np.nan, np.nan  # a class that is not known: the token is left out
    known = ~np.isnan(many).any(-1)
    metrics = classification_metrics(is_multi_label=True)
    assert metrics(EvalPrediction(logits, many)) == metrics(EvalPrediction(logits[known], many[known]))


def test_numbers_of_tokens_may_be_those_that_trainer_pads_with() -> None:
    predicted = np.array([[[1.0], [-3.0], [-100.0]], [[-98.0], [2.0], [5.0]]])
    true = np.array([[2.0, np.nan, -100.0], [-100.0, 2.0, 4.0]])
    found = regression_metrics(EvalPrediction(predicted, true))
    expected = regression_metrics(EvalPrediction(np.array([1.0, -98.0, 2.0, 5.0]), np.array([2.0, -100.0, 2.0, 4.0])))
    assert found == expected and found["mae"] == pytest.approx((1 + 2 + 0 + 1) / 4)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3, 2)), np.full((2, 3), -100), "none of the 6 tokens has a label"),
        (np.zeros((2, 3, 2)), np.zeros((2, 4), int), r"labels of tokens must be \(2, 3\).*got \(2, 4\)"),
    ],
)
def test_what_metrics_of_tokens_refuse(logits: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(is_multi_label=False)(EvalPrediction(logits, labels))


# --- retrieval -------------------------------------------------------------------------------------------------------


def both_sides(first: Any, second: Any, *more: Any) -> EvalPrediction:
    return EvalPrediction((np.asarray(first, dtype=np.float32), np.asarray(second, dtype=np.float32), *more), None)


def test_retrieval_by_hand() -> None:
    # Ranks of the own: 1, 2, 1 from the first side, and 1, 2, 2 from the second.
    first = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    second = [[1, 0.9, 0], [0, 0.8, 0], [0, 0, 1]]
    found = retrieval_metrics(both_sides(first, second))
    assert found["first_to_second_r@1"] == pytest.approx(2 / 3)
    assert found["first_to_second_r@5"] == found["second_to_first_r@10"] == 1.0
    assert found["first_to_second_median_rank"] == 1.0
    assert found["second_to_first_r@1"] == 1.0
    assert set(found) == {
        f"{direction}_{metric}"
        for direction in ("first_to_second", "second_to_first")
        for metric in ("r@1", "r@5", "r@10", "median_rank")
    }


def test_samples_without_a_side_are_left_out_of_retrieval() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 20, 6))
    expected = retrieval_metrics(both_sides(first, second))
    more_first = np.concatenate([first, np.zeros((2, 6)), generator.normal(size=(1, 6))])
    more_second = np.concatenate([second, generator.normal(size=(2, 6)), np.zeros((1, 6))])
    assert retrieval_metrics(both_sides(more_first, more_second, "more outputs")) == expected


def test_one_embedding_for_everything_finds_nothing() -> None:
    vector = np.random.default_rng(0).normal(size=7)
    same = np.tile(vector, (30, 1))
    found = retrieval_metrics(both_sides(same, same))
    assert found["first_to_second_r@10"] == 0.0
    assert found["second_to_first_median_rank"] == 30.0


def test_ranks_do_not_depend_on_how_many_rows_are_compared_at_a_time() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 50, 4))
    expected = (first @ second.T >= (first * second).sum(1)[:, None] - 1e-12).sum(1)
    for rows in (1, 7, 1024):
        np.testing.assert_array_equal(ranks_of(first, second, rows), expected)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([[1, 0]], [[1, 0, 0]], r"one shape \(samples, size\), got \(1, 2\) and \(1, 3\)"),
        ([[np.nan, 0]], [[1, 0]], "NaN or infinite"),
        ([[1, 0], [0, 0]], [[0, 0], [0, 1]], "none of the 2 samples has both sides"),
    ],
)
def test_what_retrieval_refuses(first: Any, second: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(both_sides(first, second))
    with pytest.raises(ValueError, match="embeddings of both sides"):
        retrieval_metrics(EvalPrediction(np.zeros((2, 3)), None))
