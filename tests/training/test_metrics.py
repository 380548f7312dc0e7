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
from hf_lam.training import F1, Accuracy, MeanAveragePrecision, classification_metrics
from hf_lam.training.metrics import mean_average_precision

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
